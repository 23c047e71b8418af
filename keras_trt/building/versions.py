"""What shapes a graph between Keras and the engine, beside the model: the versions of all that is used."""

from __future__ import annotations

import functools
import importlib.metadata

from .._version import __version__


def versions() -> dict[str, str]:
    """Return the versions of all that shapes a graph between Keras and the engine."""
    found = {name: _version(name) for name in ("keras", "tf2onnx", "onnx", "onnx-ir", "onnxruntime", "numpy")}
    tensorflow = next((v for v in map(_version, ("tensorflow", "tensorflow-cpu", "tf-nightly")) if v), "")
    return {"keras_trt": __version__, "tensorflow": tensorflow, **found}


@functools.cache  # a path with many packages takes a tenth of a second, and what is imported stays what it was
def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
