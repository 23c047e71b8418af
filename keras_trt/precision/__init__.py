"""Float32 ONNX → typed ONNX. Precision is the types of the graph: TensorRT 11 knows no other way."""

from __future__ import annotations

from collections.abc import Collection

from ..options import Precision
from .lower import lower
from .ranges import overflowing
from .types import tensor_types

__all__ = ["overflowing", "tensor_types", "typed"]


def typed(onnx: bytes, precision: Precision, keep: Collection[str] = ()) -> bytes:
    """Return the graph with the types that a precision asks for.

    `"tf32"` and `"fp32"` are the float32 graph itself: they differ in a flag of the builder. The types of inputs
    and outputs stay as they are.

    Args:
        onnx: a serialized float32 `onnx.ModelProto`.
        precision: what is asked for.
        keep: names of nodes that compute in float32 whatever is asked for.
    """
    return lower(onnx, precision, keep) if precision in ("fp16", "bf16") else onnx
