"""What builds and runs engines: `base` is the one interface, `choose` picks who has it."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from typing import Literal

from ..errors import KerasTRTError
from ..options import BackendName
from .base import Backend, BuildSpec, EngineLayer, Finding, Judge, Timings

_logger = logging.getLogger("keras_trt")

__all__ = ["Backend", "BuildSpec", "EngineLayer", "Finding", "Judge", "Timings", "choose", "judge"]


def choose(name: BackendName, devices: Sequence[int]) -> tuple[Backend, list[str]]:
    """Return a backend that can be used here.

    Args:
        name: the backend, or `"auto"` for TensorRT, then TensorRT-RTX, then ONNX Runtime.
        devices: indices of the GPUs that are to run it.

    Returns:
        The backend, and why each backend that is installed and comes before it cannot be used.

    Raises:
        MissingDependencyError: if a backend is asked for by name and not installed.
        EngineLoadError: if it is asked for by name and cannot be used on this machine.
    """
    if name != "auto":
        return _make(name, devices), []
    reasons: list[str] = []
    for candidate in ("tensorrt", "tensorrt_rtx"):
        if importlib.util.find_spec(candidate) is None:
            continue
        try:
            return _make(candidate, devices), reasons
        except KerasTRTError as error:
            reasons.append(str(error))
    return _make("onnxruntime", devices), reasons


def judge(backend: Backend | None) -> Judge:
    """Return what tells best how TensorRT takes a graph: a TensorRT's own parser wherever one can be started.

    Args:
        backend: what is going to run, or `None` where nothing can.

    Returns:
        The backend if it is a TensorRT; else the parser of TensorRT, which needs a GPU's driver, or of TensorRT-RTX,
        which does not; else ONNX Runtime.
    """
    if backend is not None and backend.name != "onnxruntime":
        return backend
    flavors: tuple[Literal["tensorrt", "tensorrt_rtx"], ...] = ("tensorrt", "tensorrt_rtx")
    for name in flavors:
        if importlib.util.find_spec(name) is None:
            continue
        from .tensorrt.builder import PlanBuilder
        from .tensorrt.flavor import flavor

        try:
            return PlanBuilder(flavor(name))
        except KerasTRTError as error:
            _logger.info("The parser of '%s' cannot be used here: %s", name, error)
    return backend or _make("onnxruntime", [0])


def _make(name: str, devices: Sequence[int]) -> Backend:
    # Imported late: neither TensorRT nor CUDA is loaded where it is not used.
    if name == "onnxruntime":
        from .onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend()
    from .tensorrt import TensorRTBackend

    return TensorRTBackend("tensorrt_rtx" if name == "tensorrt_rtx" else "tensorrt", devices)
