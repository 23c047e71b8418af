"""A backend that rounds each result as the graph says: ONNX's own reference evaluator.

ONNX Runtime runs float16 graphs in float32 on x86, where nothing overflows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from keras_trt.backends import BuildSpec, Finding
from keras_trt.options import Precision

Array = np.ndarray[Any, Any]


class ReferenceBackend:
    """See `keras_trt.backends.Backend`."""

    name = "onnxruntime"  # a backend that is asked for by this name is this one
    title = "ONNX reference"
    default_precision: Precision = "fp16"
    beside_8_bits: Literal["fp16", "fp32"] = "fp16"
    device = device_name = "cpu"

    def __init__(self, *precisions: Precision) -> None:
        self.precisions = precisions or ("fp16", "bf16", "fp32")

    def identity(self) -> dict[str, Any]:
        return {"backend": "reference", "version": onnx.__version__}

    def supports(self, onnx: bytes) -> list[Finding]:  # noqa: ARG002
        return []

    def build(self, onnx: bytes, spec: BuildSpec) -> bytes:  # noqa: ARG002
        return onnx

    def load(self, plan: bytes) -> Any:
        return ReferenceEngine(plan)


class ReferenceEngine:
    """See `keras_trt.backends.base.HostEngine`."""

    def __init__(self, plan: bytes) -> None:
        self._evaluator = ReferenceEvaluator(onnx.load_from_string(plan))
        self.input_names = tuple(self._evaluator.input_names)
        self.output_names = tuple(self._evaluator.output_names)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        with np.errstate(all="ignore"):  # overflow is what is to be seen
            return list(self._evaluator.run(None, dict(feeds)))

    def close(self) -> None:
        pass
