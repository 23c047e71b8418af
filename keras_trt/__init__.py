"""TensorRT for Keras models in one line.

>>> import keras_trt
>>> fast = keras_trt.accelerate(model)
>>> fast.predict(x)

Or, so that the model's own `predict` and `evaluate` run on TensorRT and follow its weights:

>>> model.compile_trt()

Importing this package imports none of TensorFlow, Keras, TensorRT, CUDA and onnx: each is loaded by the first call
that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__
from .compiled import hook as _hook

if TYPE_CHECKING:
    from .api import accelerate as accelerate
    from .building.bisection import find_precision_plan as find_precision_plan
    from .cache import EngineCache as EngineCache
    from .callbacks import EngineCheckpoint as EngineCheckpoint
    from .callbacks import EngineValidation as EngineValidation
    from .diagnosis import Diagnosis as Diagnosis
    from .diagnosis import doctor as doctor
    from .errors import ArtifactError as ArtifactError
    from .errors import BuildError as BuildError
    from .errors import CacheError as CacheError
    from .errors import CudaError as CudaError
    from .errors import EngineLoadError as EngineLoadError
    from .errors import ExportError as ExportError
    from .errors import FallbackWarning as FallbackWarning
    from .errors import InputError as InputError
    from .errors import KerasTRTError as KerasTRTError
    from .errors import MissingDependencyError as MissingDependencyError
    from .errors import PlanError as PlanError
    from .errors import PrecisionError as PrecisionError
    from .errors import StaleEngineError as StaleEngineError
    from .errors import UnsupportedOperatorError as UnsupportedOperatorError
    from .errors import VerificationError as VerificationError
    from .export import export_onnx as export_onnx
    from .findings import Finding as Finding
    from .loaded import load as load
    from .model.trt_model import TRTModel as TRTModel
    from .options import BuildOptions as BuildOptions
    from .specs import OptimizationProfile as OptimizationProfile
    from .specs import ShapeRange as ShapeRange
    from .specs import TensorSpec as TensorSpec

_HOMES = {
    "accelerate": "api",
    "find_precision_plan": "building.bisection",
    "EngineCache": "cache",
    "EngineCheckpoint": "callbacks",
    "EngineValidation": "callbacks",
    "Diagnosis": "diagnosis",
    "doctor": "diagnosis",
    "ArtifactError": "errors",
    "BuildError": "errors",
    "CacheError": "errors",
    "CudaError": "errors",
    "EngineLoadError": "errors",
    "ExportError": "errors",
    "FallbackWarning": "errors",
    "InputError": "errors",
    "KerasTRTError": "errors",
    "MissingDependencyError": "errors",
    "PlanError": "errors",
    "PrecisionError": "errors",
    "StaleEngineError": "errors",
    "UnsupportedOperatorError": "errors",
    "VerificationError": "errors",
    "export_onnx": "export",
    "Finding": "findings",
    "load": "loaded",
    "TRTModel": "model.trt_model",
    "BuildOptions": "options",
    "OptimizationProfile": "specs",
    "ShapeRange": "specs",
    "TensorSpec": "specs",
}

__all__ = [
    "ArtifactError",
    "BuildError",
    "BuildOptions",
    "CacheError",
    "CudaError",
    "Diagnosis",
    "EngineCache",
    "EngineCheckpoint",
    "EngineLoadError",
    "EngineValidation",
    "ExportError",
    "FallbackWarning",
    "Finding",
    "InputError",
    "KerasTRTError",
    "MissingDependencyError",
    "OptimizationProfile",
    "PlanError",
    "PrecisionError",
    "ShapeRange",
    "StaleEngineError",
    "TRTModel",
    "TensorSpec",
    "UnsupportedOperatorError",
    "VerificationError",
    "__version__",
    "accelerate",
    "doctor",
    "export_onnx",
    "find_precision_plan",
    "load",
]

_hook.install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'keras_trt' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
