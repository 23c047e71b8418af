"""What a user does on Keras's JAX and PyTorch backends, in a process of its own: what was seen goes into a file."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnxruntime
from keras import layers as kl

import keras_trt
from keras_trt.cli.main import main as command
from keras_trt.source import own

from . import parts

ON_CPU: dict[str, Any] = {"backend": "onnxruntime", "verbose": 0, "batch_sizes": (1, 8, 32)}
FOLDER = Path(sys.argv[1])


class InTheScript(kl.Layer):
    def call(self, x: Any) -> Any:
        return x + 1


def of_this_script() -> Any:
    return keras.Sequential([keras.Input((4,)), InTheScript(), kl.Dense(3)])


def apart(expected: Any, found: Any) -> float:
    pairs = zip(keras.tree.flatten(expected), keras.tree.flatten(found), strict=True)
    return max(float(np.abs(np.asarray(one) - np.asarray(other)).max()) for one, other in pairs)


def warned(work: Callable[[], Any]) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        result = work()
    return result, [str(one.message) for one in records if one.category is keras_trt.FallbackWarning]


def one_model(make: Callable[[], tuple[Any, Any]]) -> dict[str, Any]:
    model, x = make()
    before = own(model, "predict")(x, verbose=0)
    fast, said = warned(lambda: keras_trt.accelerate(model, **ON_CPU))
    seen = {"warnings": said, "backend": fast.backend, "apart": apart(before, fast.predict(x, verbose=0))}
    again = keras_trt.accelerate(model, **ON_CPU).report().origin
    if not any(isinstance(layer, kl.Normalization) for layer in model._flatten_layers()):
        parts.moved(model)
    other = keras_trt.accelerate(model, **ON_CPU)
    after = own(model, "predict")(x, verbose=0)
    found = apart(after, other.predict(x, verbose=0))
    return seen | {"again": again, "other": other.report().origin, "moved": apart(before, after), "apart_then": found}


def calls() -> dict[str, Any]:
    """A call of an engine, and of a model that Keras runs."""
    seen = {}
    for name, model in ("engine", parts.mlp()[0]), ("keras", of_this_script()):
        x = parts.rows(8, 4)
        tensor, expected = keras.ops.convert_to_tensor(x), own(model, "predict")(x, verbose=0)
        fast, _ = warned(lambda model=model: keras_trt.accelerate(model, **ON_CPU))
        answers = [fast(x), fast(tensor), fast.predict(tensor, verbose=0), fast.predict_on_batch(tensor)]
        trained, _ = warned(lambda fast=fast, x=x: fast(x, training=True))
        kinds = [type(one).__module__.partition(".")[0].replace("jaxlib", "jax") for one in (*answers[:2], trained)]
        found = max(apart(expected, keras.ops.convert_to_numpy(one)) for one in answers)
        seen[name] = {"backend": fast.backend, "kinds": kinds, "apart": found}
    return seen


def following() -> dict[str, Any]:
    model, x = parts.mlp()
    y = parts.rows(40, 3)
    model.compile("adam", "mse")
    seen: dict[str, Any] = {"answers": [], "apart": [], "origins": []}
    with model.compile_trt(**ON_CPU) as fast:
        bias = model.layers[-1].bias
        for change in (
            lambda: None,
            lambda: model.fit(x, y, verbose=0),
            lambda: model.train_on_batch(x, y),
            lambda: bias.assign(bias + 1),
            lambda: model.set_weights([one * 1.25 for one in model.get_weights()]),
        ):
            change()
            answer = model.predict(x, verbose=0)
            seen["answers"].append(float(answer.sum()))
            seen["apart"].append(apart(own(model, "predict")(x, verbose=0), answer))
            seen["origins"].append(fast.report().origin)
        ours, seen["warnings"] = warned(lambda: [model.evaluate(x, y, verbose=0), model.evaluate(x, y, verbose=0)])
    return seen | {"evaluate": [*ours, model.evaluate(x, y, verbose=0)]}


def training() -> dict[str, Any]:
    model, x = parts.mlp()
    y = parts.rows(40, 3)
    model.compile("adam", "mse")
    checkpoint = keras_trt.EngineCheckpoint(FOLDER / "{epoch}.ktrt", **ON_CPU)
    history, said = warned(lambda: model.fit(x, y, epochs=2, verbose=0, callbacks=[checkpoint]))
    loaded = keras_trt.load(FOLDER / "2.ktrt", backend="onnxruntime", verbose=0)
    seen = {
        "warnings": said,
        "keys": sorted(history.history),
        "files": sorted(path.name for path in FOLDER.glob("*.ktrt")),
        "apart": apart(model.predict(x, verbose=0), loaded.predict(x, verbose=0)),
    }
    validation = keras_trt.EngineValidation((x, y), **ON_CPU)
    history, said = warned(lambda: model.fit(x, y, epochs=2, verbose=0, callbacks=[validation]))
    last = history.history["val_loss"][-1]
    return seen | {"validation": said, "val_loss": abs(last - model.evaluate(x, y, verbose=0))}


def refused() -> dict[str, Any]:
    def said(model: Any, **options: Any) -> str:
        try:
            keras_trt.accelerate(model, **ON_CPU, fallback="raise", **options)
        except keras_trt.ExportError as error:
            return str(error)
        return "no error"

    number = keras.Input((1,), dtype="int32")
    looks_up = keras.Model(number, kl.Embedding(6, 2)(kl.IntegerLookup(vocabulary=[1, 2, 3])(number)))
    script = of_this_script()
    script.compile("adam", "mse")
    x, y, checkpoint = (
        parts.rows(8, 4),
        parts.rows(8, 3),
        keras_trt.EngineCheckpoint(FOLDER / "never" / "a.ktrt", **ON_CPU),
    )
    history, warnings_of_fit = warned(lambda: script.fit(x, y, epochs=3, verbose=0, callbacks=[checkpoint]))
    return {
        "script": said(script),
        "lookup": said(looks_up),
        "another": said(parts.another_than_its_file()[0], verify=False),
        "epochs": len(history.history["loss"]),
        "warnings": [one for one in warnings_of_fit if "could not be made" in one],
    }


def files() -> dict[str, Any]:
    model, x = parts.normalized()
    keras_trt.export_onnx(model, FOLDER / "model.onnx")
    session = onnxruntime.InferenceSession(str(FOLDER / "model.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    model.save(FOLDER / "model.keras")
    seen = {"onnx": apart(model.predict(x, verbose=0), found)}
    return seen | {"command": command(["doctor", str(FOLDER / "model.keras"), "--backend", "onnxruntime"])}


def main() -> None:
    seen = {make.__name__: one_model(make) for make in (parts.mlp, parts.two_inputs, parts.subclassed)}
    for part in (calls, following, training, refused, files):
        seen[part.__name__] = part()
    (FOLDER / "seen.json").write_text(json.dumps({**seen, "backend": keras.config.backend()}))


if __name__ == "__main__":
    main()
