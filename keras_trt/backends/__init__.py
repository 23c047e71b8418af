"""What builds and runs engines: `base` is the one interface, `choose` picks who has it."""

from __future__ import annotations

import importlib.util

from ..errors import KerasTRTError
from ..options import BackendName
from .base import Backend, BuildSpec, Finding

__all__ = ["Backend", "BuildSpec", "Finding", "choose"]


def choose(name: BackendName, device: int) -> tuple[Backend, list[str]]:
    """Return a backend that can be used here.

    Args:
        name: the backend, or `"auto"` for TensorRT, then TensorRT-RTX, then ONNX Runtime.
        device: index of the GPU.

    Returns:
        The backend, and why each backend that is installed and comes before it cannot be used.

    Raises:
        MissingDependencyError: if a backend is asked for by name and not installed.
        EngineLoadError: if it is asked for by name and cannot be used on this machine.
    """
    if name != "auto":
        return _make(name, device), []
    reasons: list[str] = []
    for candidate in ("tensorrt", "tensorrt_rtx"):
        if importlib.util.find_spec(candidate) is None:
            continue
        try:
            return _make(candidate, device), reasons
        except KerasTRTError as error:
            reasons.append(str(error))
    return _make("onnxruntime", device), reasons


def _make(name: str, device: int) -> Backend:
    # Imported late: neither TensorRT nor CUDA is loaded where it is not used.
    if name == "onnxruntime":
        from .onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend()
    from .tensorrt import TensorRTBackend

    return TensorRTBackend("tensorrt_rtx" if name == "tensorrt_rtx" else "tensorrt", device)
