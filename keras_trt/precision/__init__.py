"""Float32 ONNX → typed ONNX. Precision is the types of the graph: TensorRT 11 knows no other way."""

from __future__ import annotations

from collections.abc import Collection

from ..options import Precision
from .lower import lower, lowered
from .quantize import Quantization, calibrate, even_thresholds, quantized
from .ranges import overflow_shows, overflowing, values_of
from .types import tensor_types

__all__ = [
    "Quantization",
    "calibrate",
    "even_thresholds",
    "lowered",
    "overflow_shows",
    "overflowing",
    "tensor_types",
    "typed",
    "values_of",
]


def typed(
    onnx: bytes, precision: Precision, keep: Collection[str] = (), quantization: Quantization | None = None
) -> bytes:
    """Return the graph with the types that a precision asks for.

    `"tf32"` and `"fp32"` are the float32 graph itself: they differ in a flag of the builder. The types of inputs
    and outputs stay as they are.

    Args:
        onnx: a serialized float32 `onnx.ModelProto`.
        precision: what is asked for.
        keep: names of nodes that compute in float32 whatever is asked for.
        quantization: for `"int8"` and `"fp8"`: the thresholds, and the precision of what is not quantized.
    """
    if precision in ("int8", "fp8"):
        if quantization is None:
            raise ValueError(f"{precision} needs thresholds.")
        return quantized(onnx, precision, quantization, keep)
    return lower(onnx, precision, keep) if precision in ("fp16", "bf16") else onnx
