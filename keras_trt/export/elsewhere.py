"""The export of models on Keras's JAX and PyTorch backends: TensorFlow does it, in a process of its own.

Keras's layers are the same on every backend, so the parent saves the model, and the child,
`python -m keras_trt.export.elsewhere FOLDER`, loads it on TensorFlow and exports it. Whether the child's model is the
same is not taken for granted: its answers are compared with those that the model gives here.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from .. import _child
from ..errors import ExportError, KerasTRTError, MissingDependencyError
from ..findings import Finding
from ..fingerprint.libraries import is_library_function
from ..reference import reference
from ..specs import Signature, TensorSpec
from . import ExportedModel, examine_here, stored

_MODEL, _ASKED, _EXPORT, _FOUND = "model.keras", "asked.json", "export", "found.json"
#: The child needs no GPU: it computes nothing.
_ENVIRONMENT = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
#: How far two backends may be apart in float32, by the norm. What is to be seen here is another model.
_SAME = 1e-2
_ROWS, _OPEN_AXIS = 3, 16


def examine(model: Any, takes: Signature) -> tuple[ExportedModel | None, tuple[Finding, ...]]:
    """Do in another process what `export.examine` does.

    Args:
        model: a built `keras.Model` on another backend than TensorFlow.
        takes: its inputs.

    Raises:
        MissingDependencyError: if TensorFlow is not installed.
        ExportError: if the model cannot be saved, loaded on TensorFlow, or is another one there.
    """
    import keras

    backend = keras.config.backend()
    if missing := [name for name in ("tensorflow", "tf2onnx", "onnx_ir") if find_spec(name) is None]:
        raise MissingDependencyError(
            f"Keras runs on {backend!r}, and the export goes through TensorFlow in a process of its own, for which "
            f"{', '.join(missing)} must be installed: pip install 'keras-trt[tensorflow]'. Keras stays as it is.",
            package=missing[0],
        )
    with _child.shared_folder("export", ExportError) as folder:
        asked = {
            "takes": takes.to_json(),
            "settings": {key: getattr(keras.config, key)() for key in ("floatx", "epsilon", "image_data_format")},
            "objects": _saved(model, folder / _MODEL, backend),
        }
        (folder / _ASKED).write_text(json.dumps(asked))
        code, log = _child.run(__name__, folder, environment=_ENVIRONMENT)
        _child.raise_told(folder)
        if code or not (folder / _FOUND).exists():
            raise ExportError(f"The process that exports the model on TensorFlow ended with status {code}.\n{log}")
        found = json.loads((folder / _FOUND).read_text())
        findings = tuple(Finding(**one) for one in found["findings"])
        if "export" not in found:
            return None, findings
        exported = _read((folder / _EXPORT).read_bytes(), found["export"], model)
    _refuse_another_model(model, exported, backend)
    how = Finding(
        f"Keras runs on {backend!r}, and the export goes through TensorFlow.",
        action="repaired",
        cost="some seconds at an export: a process of its own loads the model on TensorFlow",
    )
    return replace(exported, findings=(how, *findings)), (how, *findings)


def _saved(model: Any, path: Path, backend: str) -> list[tuple[str, str, str]]:
    """Save a model, and return the classes and functions of users in it: module, name, and name in the file."""
    try:
        model.save(path)
        with zipfile.ZipFile(path) as file:
            objects = sorted(set(_objects(json.loads(file.read("config.json")), _functions(model))))
    except Exception as error:  # a user's `get_config` may raise anything
        raise ExportError(
            f"Keras runs on {backend!r}, and the export, on TensorFlow, needs the model in a file. It cannot be saved: "
            f"{type(error).__name__}: {error}"
        ) from error
    if main := [name for module, name, _ in objects if module == "__main__"]:
        raise ExportError(
            f"Keras runs on {backend!r}, and the export, on TensorFlow in a process of its own, cannot import "
            f"{', '.join(map(repr, main))} from the script that runs. Move "
            f"{'it' if len(main) == 1 else 'them'} to a module, or run the script with KERAS_BACKEND=tensorflow."
        )
    return objects


def _objects(config: Any, functions: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield what is not Keras's own in a configuration: module, name in it, and name in the configuration."""
    if isinstance(config, Mapping):
        module, name, registered = (config.get(key) for key in ("module", "class_name", "registered_name"))
        if name == "function":
            if (function := functions.get(config["config"])) is not None:
                yield function.__module__, function.__name__, config["config"]
        elif registered and str(module).partition(".")[0] not in ("builtins", "keras"):
            yield str(module or "__main__"), str(name), str(registered)
    children = config.values() if isinstance(config, Mapping) else config if isinstance(config, list) else ()
    for child in children:
        yield from _objects(child, functions)


def _functions(model: Any) -> dict[str, Any]:
    """Return the functions that a user has registered or given to layers, by their names in a configuration."""
    import keras

    given = [item for layer in model._flatten_layers() for item in vars(layer).values()]
    own = [item for item in given if isinstance(item, FunctionType) and not is_library_function(item)]
    return {item.__name__: item for item in own} | dict(keras.saving.get_custom_objects())


def _read(data: bytes, about: Mapping[str, Any], model: Any) -> ExportedModel:
    """Return what the child has exported.

    Its recipe counts the model's variables, and is of use where they come in the same order here.
    """
    from .graph import Recipe

    exported = stored.read(data, about)
    if about["values"] == _values(model):
        return exported
    return replace(exported, recipe=Recipe(b"", (), (), {}, whole=False))


def _values(model: Any) -> list[str]:
    """Return digests of a model's variables, but for the states of seeds, from which inference draws nothing."""
    seeds = {id(source.state) for layer in model._flatten_layers() for source in layer._seed_generators}
    return ["" if id(one) in seeds else stored.digests([np.asarray(one)])[0] for one in model.variables]


def _refuse_another_model(model: Any, exported: ExportedModel, backend: str) -> None:
    """Refuse an export that is not of this model, as seen on random rows, where the model takes such."""
    from .graph.weights import evaluate

    random, signature = np.random.default_rng(0), exported.signature
    rows = [_random(random, spec) for spec in signature.inputs]
    try:
        expected = reference(model, signature, rows)
    except Exception:  # a model's own code, or a size that does not fit: who uses the export compares on other rows
        return
    found = evaluate(exported.onnx, {spec.name: array for spec, array in zip(signature.inputs, rows, strict=True)})
    apart = max(map(_apart, expected, found), default=0.0)
    if not apart < _SAME:
        raise ExportError(
            f"On TensorFlow '{model.name}' answers otherwise than on {backend!r} (relative difference {apart:.1e}): "
            "its file does not tell all of its attributes, or a layer of it computes something else there."
        )


def _random(random: np.random.Generator, spec: TensorSpec) -> Any:
    first, *others = spec.shape
    shape = (first or _ROWS, *(axis or _OPEN_AXIS for axis in others))
    kind = np.dtype(spec.dtype).kind
    return (random.normal(size=shape) if kind == "f" else random.integers(0, 2, shape)).astype(spec.dtype)


def _apart(expected: Any, found: Any) -> float:
    """Return how far floats are apart, relative to their norm."""
    if expected.shape != found.shape:
        return math.inf
    if expected.dtype.kind != "f" or not expected.size:
        return 0.0
    both = np.isfinite(expected) & np.isfinite(found)
    one, other = (np.where(both, array, 0).astype(np.float64) for array in (expected, found))
    return float(np.linalg.norm(one - other) / max(float(np.linalg.norm(one)), 1e-30))


def main(folder: Path) -> None:
    """Do in the child what the parent asks for."""
    import keras

    asked: dict[str, Any] = json.loads((folder / _ASKED).read_text())
    for name, value in asked["settings"].items():
        getattr(keras.config, f"set_{name}")(value)
    try:
        model = _loaded(folder / _MODEL, asked["objects"])
        exported, findings = examine_here(model, Signature.from_json(asked["takes"]))
    except KerasTRTError as error:
        _child.tell(folder, error)
        return
    found: dict[str, Any] = {"findings": [asdict(one) for one in findings]}
    if exported is not None:
        data, about = stored.whole(exported)
        (folder / _EXPORT).write_bytes(data)
        found["export"] = {**about, "values": _values(model)}
    (folder / _FOUND).write_text(json.dumps(found))


def _loaded(path: Path, objects: Sequence[Sequence[str]]) -> Any:
    import keras

    try:
        own = {registered: getattr(importlib.import_module(module), name) for module, name, registered in objects}
        # The lambdas in it are those of the parent, which has just written it.
        return keras.saving.load_model(path, custom_objects=own, compile=False, safe_mode=False)
    except Exception as error:  # users' modules and classes may raise anything
        raise ExportError(
            f"The export goes through TensorFlow, and the model cannot be loaded there: {type(error).__name__}: {error}"
        ) from error


if __name__ == "__main__":
    _child.end_with_parent(Path(sys.argv[1]))
    main(Path(sys.argv[1]))
