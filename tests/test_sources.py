"""What is taken for a model: one in memory, a file, a folder; and what is said of everything else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import keras_trt

from .models import accelerate, floats, keras, kl, rows_differ, same, tf

# Keras's own, when it saves and loads under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def model() -> Any:
    inputs = {"p": keras.Input((4,), name="p"), "q": keras.Input((5,), name="q")}
    joined = kl.concatenate([kl.Dense(8, activation="tanh")(inputs["p"]), inputs["q"]])
    return keras.Model(inputs, {"a": kl.Dense(2)(joined), "b": kl.Dense(3)(joined)}, name="both")


X = {"p": floats(4)(6), "q": floats(5)(6)}


class Doubler(tf.Module):
    """No Keras in it, two arguments, and a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = tf.Variable(np.random.default_rng(3).standard_normal((4, 3)).astype("float32"))

    @tf.function(
        input_signature=[tf.TensorSpec((None, 4), name="left"), tf.TensorSpec((None, 3), tf.int32, name="right")]
    )
    def run(self, left: Any, right: Any) -> Any:
        product = left @ self.table
        return {"sum": product + tf.cast(right, tf.float32), "twice": 2.0 * product}

    @tf.function(input_signature=[tf.TensorSpec((None, 4), name="left")])
    def one(self, left: Any) -> Any:
        return {"product": left @ self.table}


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "exported"])
@pytest.mark.parametrize("kind", [str, Path], ids=["str", "Path"])
def test_a_saved_model_answers_as_the_one_in_memory(model: Any, tmp_path: Path, name: str, kind: Any) -> None:
    path = tmp_path / name
    if name == "exported":
        model.export(path, verbose=False)
    else:
        model.save(path)
    fast = accelerate(kind(path), fallback="raise")
    assert fast.backend == "onnxruntime"
    expected = model.predict(X, verbose=0)
    rows_differ(expected)
    found = fast.predict(X, verbose=0)
    assert list(found) == (
        sorted(expected) if name == "exported" else list(expected)
    )  # TensorFlow sorts them in a file
    same(expected, {key: found[key] for key in expected})
    keras_trt.export_onnx(kind(path), tmp_path / "model.onnx")
    outputs = [value.name for value in onnx.load(tmp_path / "model.onnx").graph.output]
    assert outputs == ["a", "b"]


def test_an_exported_sequential_takes_and_gives_one_array(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((5,)), kl.Dense(8, activation="tanh"), kl.Dense(3)])
    model.export(tmp_path / "exported", verbose=False)
    x = floats(5)(6)
    expected = model.predict(x, verbose=0)
    rows_differ(expected)
    same(expected, accelerate(tmp_path / "exported", fallback="raise").predict(x, verbose=0))


def test_a_signature_keeps_the_names_of_its_inputs_and_outputs(tmp_path: Path) -> None:
    module = Doubler()
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures={"serving_default": module.run})
    fast = accelerate(tmp_path / "saved", fallback="raise")
    x = {"left": floats(4)(6), "right": np.arange(18, dtype="int32").reshape(6, 3)}
    expected = {key: value.numpy() for key, value in module.run(**x).items()}
    rows_differ(expected)
    same(expected, fast.predict(x, verbose=0))


def test_outputs_of_a_signature_are_sorted_as_the_file_keeps_no_order(tmp_path: Path) -> None:
    module = tf.Module()
    module.run = tf.function(lambda x: {name: x + i for i, name in enumerate("hgfedcba")})
    signature = module.run.get_concrete_function(tf.TensorSpec((None, 4), name="x"))
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures={"serving_default": signature})
    fast = accelerate(tmp_path / "saved", fallback="raise")
    x = floats(4)(6)
    same({name: x + 7 - i for i, name in enumerate("abcdefgh")}, fast.predict(x, verbose=0))


def test_a_signature_of_one_input_takes_an_array(tmp_path: Path) -> None:
    module = Doubler()
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures={"serving_default": module.one})
    fast = accelerate(tmp_path / "saved", fallback="raise")
    x = floats(4)(6)
    same({"product": module.one(x)["product"].numpy()}, fast.predict(x, verbose=0))


def test_a_serve_that_is_not_keras_s_gives_way_to_the_signature(tmp_path: Path) -> None:
    module = Doubler()
    module.serve = tf.function(lambda x: x)
    for kind in (tf.float32, tf.int32):
        module.serve.get_concrete_function(tf.TensorSpec((None, 4), kind))
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures={"serving_default": module.one})
    x = floats(4)(6)
    fast = accelerate(tmp_path / "saved", fallback="raise")
    same({"product": module.one(x)["product"].numpy()}, fast.predict(x, verbose=0))


def test_a_saved_model_that_was_replaced_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    x = floats(4)(6)
    for factor in (1.0, -1.0):  # in the graph, not in a variable
        module = tf.Module()
        module.run = tf.function(
            lambda left, factor=factor: {"product": left * factor}, input_signature=[tf.TensorSpec((None, 4))]
        )
        tf.saved_model.save(module, str(tmp_path / "saved"), signatures={"serving_default": module.run})
        fast = accelerate(tmp_path / "saved", cache=tmp_path / "cache", fallback="raise")
        same({"product": x * np.float32(factor)}, fast.predict(x, verbose=0))


CALLS = {
    "accelerate": lambda source: keras_trt.accelerate(source, cache=None),
    "doctor": keras_trt.doctor,
    "export_onnx": lambda source: keras_trt.export_onnx(source, "never.onnx"),
}


@pytest.fixture(params=list(CALLS))
def call(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    yield CALLS[request.param]
    assert not Path("never.onnx").exists()


def _text(path: Path) -> None:
    path.write_text("not a model")


def _weights(path: Path) -> None:
    keras.Sequential([keras.Input((2,)), kl.Dense(1)]).save_weights(path)


def _lambda(path: Path) -> None:
    keras.Sequential([keras.Input((2,)), kl.Lambda(lambda x: x * 2)]).save(path)


def _no_signature(path: Path) -> None:
    tf.saved_model.save(tf.Module(), str(path))


def _damaged_folder(path: Path) -> None:
    path.mkdir()
    (path / "saved_model.pb").write_bytes(b"\x00\xff" * 40)


@pytest.mark.parametrize(
    ("name", "write", "error", "words"),
    [
        ("missing.keras", None, FileNotFoundError, "no model at this path"),
        ("missing", None, FileNotFoundError, "no model at this path"),
        ("model.onnx", _text, ValueError, "not a Keras model"),
        ("model", _text, ValueError, "not a Keras model"),
        ("empty", Path.mkdir, ValueError, "no saved_model.pb"),
        ("broken.keras", _text, ValueError, "could not load this file"),
        ("broken.h5", _text, ValueError, "could not load this file"),
        ("only.weights.h5", _weights, ValueError, "could not load this file"),
        ("lambda.keras", _lambda, ValueError, "safe_mode=False"),
        ("none", _no_signature, ValueError, "serving_default"),
        ("damaged", _damaged_folder, ValueError, "could not be loaded"),
    ],
)
def test_what_is_no_model_is_named(call: Any, name: str, write: Any, error: Any, words: str) -> None:
    if write is not None:
        write(Path(name))
    with pytest.raises(error, match=words) as caught:
        call(name)
    assert f"Received: {name!r}" in str(caught.value)
    assert any(word in str(caught.value) for word in ("Allowed are", "pass the model", "model.export()"))


@pytest.mark.parametrize(
    "source", [None, 3, ["model.keras"], keras.layers.Dense(2)], ids=["None", "int", "list", "layer"]
)
def test_what_is_neither_model_nor_path(call: Any, source: Any) -> None:
    with pytest.raises(TypeError, match=r"takes a keras\.Model, or the path of one\. Received: "):
        call(source)


def test_a_model_of_tf_keras_is_told_what_to_do(call: Any) -> None:
    model = type("Sequential", (type("Model", (), {"__module__": "tf_keras.src.engine.training"}),), {})()
    with pytest.raises(TypeError, match=r"model of tf_keras \(Sequential\): save it as .* pass the folder"):
        call(model)


def test_a_saved_model_needs_tensorflow(tmp_path: Path) -> None:
    module = Doubler()
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures={"serving_default": module.one})
    code = "import sys, keras_trt\ntry: keras_trt.accelerate(sys.argv[1])\nexcept ValueError as error: print(error)\n"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "saved")],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax"},
    )
    assert "Keras runs on 'jax'" in done.stdout, done.stderr
