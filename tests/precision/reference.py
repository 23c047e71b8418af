"""A backend that rounds each result as the graph says: ONNX's own reference evaluator.

ONNX Runtime runs float16 graphs in float32 on x86, where nothing overflows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from keras_trt.backends import Finding
from keras_trt.backends.onnxruntime import OnnxRuntimeBackend
from keras_trt.options import Precision

Array = np.ndarray[Any, Any]


class ReferenceBackend(OnnxRuntimeBackend):
    """As ONNX Runtime's, but what it loads is run by the reference."""

    default_precision: Precision = "fp16"

    def __init__(self, *precisions: Precision) -> None:
        super().__init__()
        self.title = "ONNX reference"
        self.precisions = precisions or ("fp16", "bf16", "fp32")

    def identity(self) -> dict[str, Any]:
        return {"backend": "reference", "version": onnx.__version__}

    def supports(self, onnx: bytes) -> list[Finding]:  # noqa: ARG002
        return []

    def load(self, plan: bytes) -> Any:
        return [self.engine(plan)]

    def engine(self, plan: bytes) -> ReferenceEngine:
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
