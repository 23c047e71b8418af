"""Transposed convolutions and biases, which tf2onnx writes for constant sizes and channels at the end alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .writer import Writer


def bias(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """A sum with one number for each channel; tf2onnx adds one that is no constant along the last axis in any case.

    `keras.ops.add` makes it of any operand whose sizes are 1 but for the first or the last axis behind the batch.
    """
    x, numbers = node.input
    rank, write = len(graph.get_shape(x)), Writer(graph, node)
    if node.data_format == "NCHW" and rank > 2:
        shape = write.constant(np.array([-1] + [1] * (rank - 2), np.int64))
        numbers = write.node("Reshape", [numbers, shape])
    write.result("Add", [x, numbers])


def is_own_bias(node: Any) -> bool:
    """Tell whether a node may become the bias of the convolution before it, as one of rows or columns may not.

    Before `Conv2D` TensorFlow takes any for one of channels, and so do we: its graphs are what `predict` runs.
    """
    convolution = node.inputs[0] if node.type == "BiasAdd" else None
    if convolution is None or convolution.type != "Conv2DBackpropInput":
        return True
    return bool(convolution.data_format == node.data_format)


def transposed_convolution(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """`ConvTranspose` padded to the sizes that TensorFlow wants, or, where they are open, cut to them.

    tf2onnx writes negative pads where strides are larger than the kernel, and takes channels for rows.
    """
    wanted, kernel, x = node.input[:3]
    biases, rank = node.input[3:], len(graph.get_shape(x))
    last = node.data_format.endswith("C")
    axes = list(range(1, rank - 1) if last else range(2, rank))
    strides, dilations = (_along(axes, node.get_attr(name)) for name in ("strides", "dilations"))
    sizes, given = ([graph.get_shape(one)[axis] for axis in axes] for one in (node.output[0], x))
    window = list(graph.get_shape(kernel)[:-2])
    reach = [dilation * (width - 1) + 1 for dilation, width in zip(dilations, window, strict=True)]
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "kernel_shape": window}
    is_known = min(*sizes, *given) >= 0
    if is_known:
        whole = [step * (size - 1) + width for step, size, width in zip(strides, given, reach, strict=True)]
        surplus = np.subtract(whole, sizes)
        cut = np.maximum(surplus, 0)
        attributes["pads"] = [*(cut // 2).tolist(), *(cut - cut // 2).tolist()]
        attributes["output_padding"] = np.maximum(-surplus, 0).tolist()
    else:
        attributes["output_padding"] = [step - 1 for step in strides]  # the most that TensorFlow can want

    write = Writer(graph, node)
    kernel = write.node("Transpose", [kernel], perm=[rank - 1, rank - 2, *range(rank - 2)])
    first = write.node("Transpose", [x], perm=[0, rank - 1, *axes]) if last else x
    made = write.node("ConvTranspose", [first, kernel, *biases], **attributes)
    if not is_known:
        made = _cut(write, made, [first, wanted], strides, reach, axes)
    if last:
        write.result("Transpose", [made], perm=[0, *range(2, rank), 1])
    else:
        write.result("Identity", [made])


def _cut(write: Writer, made: str, given: Sequence[str], strides: list[int], reach: list[int], axes: list[int]) -> str:
    """Return the part of what a transposed convolution made that is wanted, the smaller half of the rest before it."""
    from onnx import TensorProto

    def numbers(*values: int) -> str:
        return write.constant(np.array(values, np.int64))

    x, wanted = given
    spatial = [2 + place for place in range(len(axes))]
    sizes = write.node("Gather", [write.node("Shape", [x]), numbers(*spatial)])
    ends = write.node("Gather", [write.node("Cast", [wanted], to=TensorProto.INT64), numbers(*axes)])
    steps = write.node("Mul", [write.node("Sub", [sizes, numbers(1)]), numbers(*strides)])
    surplus = write.node("Sub", [write.node("Add", [steps, numbers(*reach)]), ends])
    before = write.node("Div", [write.node("Max", [surplus, numbers(0)]), numbers(2)])
    return write.node("Slice", [made, before, write.node("Add", [before, ends]), numbers(*spatial)])


def _along(axes: Sequence[int], attribute: Any) -> list[int]:
    return [1] * len(axes) if attribute is None else [attribute.ints[axis] for axis in axes]
