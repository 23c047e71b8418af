"""Pads and means of images, in the form that TensorRT has kernels for.

Its parser writes a `Pad` as a slice of computed sizes: a copy of all that is padded. By NVIDIA's list of fusions, it
makes a pooling of a mean over rows and columns that keeps these axes, and of no other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from .simplify import constant, known_sizes, new_constant, only_user, replace


def pads_into_windows(graph: Any) -> None:
    """Let convolutions, and the largest of windows, pad by themselves what is padded with zeros for them."""
    for node in list(graph.all_nodes()):
        if node.op_type not in ("Conv", "MaxPool") or len(node.outputs) > 1:
            continue
        pad = node.inputs[0].producer()
        pads = None if pad is None or pad.op_type != "Pad" else _zeros_around(pad)
        if pads is None or _text(node, "auto_pad", "NOTSET") != "NOTSET":
            continue
        own = node.attributes["pads"].as_ints() if "pads" in node.attributes else [0] * len(pads)
        pads = [one + other for one, other in zip(own, pads, strict=True)]
        if node.op_type == "MaxPool" and not (_is_never_negative(pad.inputs[0]) and _see_all(node, pads)):
            continue
        node.attributes["pads"] = ir.AttrInt64s("pads", pads)
        node.replace_input_with(0, pad.inputs[0])


def _zeros_around(pad: Any) -> list[int] | None:
    """Return the zeros in front of and behind each axis of images; `None` where a `Pad` does something else."""
    pads, value = constant(pad.inputs[1]), pad.inputs[2] if len(pad.inputs) > 2 else None
    if pads is None or _text(pad, "mode", "constant") != "constant" or len(pad.inputs) > 3:
        return None
    filled = np.zeros(()) if value is None else constant(value)
    before, after = pads.reshape(2, -1).tolist()
    if filled is None or filled.any() or any(before[:2] + after[:2]) or min(before + after) < 0:
        return None
    return [*before[2:], *after[2:]]


def _is_never_negative(value: Any) -> bool:
    """Tell whether a zero beside the numbers of a value is never the largest, as the pads of a `MaxPool` are not."""
    node = value.producer()
    if node is not None and node.op_type == "Clip":
        given = [constant(one) for one in node.inputs[1:] if one is not None]  # the least alone, or the most too
        least = node.inputs[1] if len(node.inputs) > 1 else None
        return least is not None and all(one is not None and bool(one >= 0) for one in given)
    return node is not None and node.op_type in ("Relu", "Sigmoid")


def _see_all(node: Any, pads: list[int]) -> bool:
    """Tell whether each window of a `MaxPool` has a number in it that is no pad."""
    if "ceil_mode" in node.attributes and node.attributes["ceil_mode"].as_int():
        return False
    if "dilations" in node.attributes and set(node.attributes["dilations"].as_ints()) != {1}:
        return False
    window = node.attributes["kernel_shape"].as_ints()
    return all(pad < width for pad, width in zip(pads, [*window, *window], strict=True))


def means(graph: Any) -> None:
    """Let each mean over rows and columns keep these axes, as a `GlobalAveragePool`; a reshape takes them away."""
    for node in list(graph.all_nodes()):
        if node.op_type != "ReduceMean" or not {"axes", "keepdims"} <= set(node.attributes):
            continue
        x, output = node.inputs[0], node.outputs[0]
        sizes, axes = known_sizes(x), node.attributes["axes"].as_ints()
        if node.attributes["keepdims"].as_int() or x.dtype != ir.DataType.FLOAT or sizes is None or len(sizes) != 4:
            continue
        channels = sizes[1]
        if channels is None or sorted(axis % 4 for axis in axes) != [2, 3]:
            continue
        pool = ir.node("GlobalAveragePool", [x], name=f"{node.name}/pool")
        pooled, user = pool.outputs[0], only_user(output)
        pooled.type, pooled.shape = output.type, ir.Shape([*x.shape[:2], 1, 1])
        node.graph.insert_before(node, pool)
        target = constant(user.inputs[1]) if user is not None and user.op_type == "Reshape" else None
        if target is not None and list(target) == [-1, channels, 1, 1]:  # of a squeeze-and-excitation block
            replace(user.outputs[0], pooled)
            continue
        shape = new_constant(node.graph, np.array([-1, channels], np.int64))
        flat = ir.node("Reshape", [pooled, shape], name=f"{node.name}/flat")
        flat.outputs[0].type, flat.outputs[0].shape = output.type, output.shape
        node.graph.insert_before(node, flat)
        replace(output, flat.outputs[0])


def _text(node: Any, name: str, default: str) -> str:
    return str(node.attributes[name].as_string()) if name in node.attributes else default
