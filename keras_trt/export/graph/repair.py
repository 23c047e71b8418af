"""What tf2onnx writes that means something else than TensorFlow, or nothing at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .simplify import constant, known_sizes, new_constant, replace


def scales_of_resizes(graph: Any) -> None:
    """Let each resize give the sizes that it is meant to give.

    ONNX rounds size times scale down, and 6 times the float32 next to 5 / 6 is below 5.
    """
    for node in graph.all_nodes():
        if node.op_type != "Resize" or len(node.inputs) < 3:
            continue
        sizes, scales = _sizes(node.inputs[0]), constant(node.inputs[2])
        if sizes is None or scales is None or len(scales) != len(sizes):
            continue
        better = np.array([_scale(size, scale) for size, scale in zip(sizes, scales, strict=True)], np.float32)
        if not np.array_equal(better, scales):
            node.replace_input_with(2, new_constant(node.graph, better))
            node.outputs[0].shape = None  # it was told by the old ones


def nearest_of_resizes(graph: Any) -> None:
    """Say TensorFlow's nearest neighbour by the mode that TensorRT has: floor(x + 1/2) is rounding with ties up."""
    for node in graph.all_nodes():
        if node.op_type != "Resize" or "coordinate_transformation_mode" not in node.attributes:
            continue
        if node.attributes["coordinate_transformation_mode"].as_string() == "tf_half_pixel_for_nn":
            node.attributes["coordinate_transformation_mode"] = ir.AttrString(
                "coordinate_transformation_mode", "half_pixel"
            )
            node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "round_prefer_ceil")


def groups_of_convolutions(graph: Any) -> None:
    """Give each convolution the groups that its kernel tells of: tf2onnx leaves them out in three dimensions."""
    for node in graph.all_nodes():
        if node.op_type != "Conv":
            continue
        sizes, kernel = _sizes(node.inputs[0]), _sizes(node.inputs[1])
        if sizes is None or kernel is None or not sizes[1] or not kernel[1]:
            continue
        node.attributes["group"] = ir.AttrInt64("group", sizes[1] // kernel[1])


def tables_of_bytes(graph: Any) -> None:
    """Dequantize 8-bit tables before rows are taken from them: TensorRT takes 8-bit weights before nothing else."""
    for node in list(graph.all_nodes()):
        if node.op_type != "Gather" or node.inputs[0].dtype != ir.DataType.INT8:
            continue
        table, output = node.inputs[0], node.outputs[0]
        if output.is_graph_output():
            continue
        casts = [usage.node for usage in output.uses()]
        if any(one.op_type != "Cast" or one.attributes["to"].as_int() != ir.DataType.FLOAT for one in casts):
            continue
        one = new_constant(node.graph, np.array(1, np.float32))
        floats = ir.node("DequantizeLinear", [table, one], name=f"{node.name}/dequantize")
        floats.outputs[0].type, floats.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), table.shape
        node.graph.insert_before(node, floats)
        node.replace_input_with(0, floats.outputs[0])
        output.type = ir.TensorType(ir.DataType.FLOAT)
        for cast in casts:
            replace(cast.outputs[0], output)


def _sizes(value: Any) -> list[int | None] | None:
    """Return the sizes of a value, also of a transpose that nobody has told its sizes."""
    node = value.producer()
    if known_sizes(value) is None and node is not None and node.op_type == "Transpose":
        before = known_sizes(node.inputs[0])
        return None if before is None else [before[axis] for axis in node.attributes["perm"].as_ints()]
    return known_sizes(value)


def _scale(size: int | None, scale: np.float32) -> np.float32:
    if size is None:
        return scale
    wanted = round(float(size) * float(scale))
    # In double precision: who multiplies in single precision rounds to 5 here.
    while 0 < wanted - size * float(scale) < 1e-3:
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale


def constant_branches(graph: Any) -> None:
    """Put the branch of each `If` whose condition is a constant in the place of the `If`."""
    for node in list(graph.all_nodes()):
        condition = constant(node.inputs[0]) if node.op_type == "If" else None
        if condition is None:
            continue
        branch = node.attributes["then_branch" if bool(condition.item()) else "else_branch"].as_graph()
        results, nodes = list(branch.outputs), list(branch)
        initializers = list(branch.initializers.values())
        branch.outputs.clear()
        for value in initializers:
            moved = new_constant(node.graph, value.const_value.numpy())
            value.replace_all_uses_with(moved)
            results = [moved if one is value else one for one in results]
        branch.remove(nodes)
        node.graph.insert_before(node, nodes)
        for output, result in zip(node.outputs, results, strict=True):
            replace(output, result)
        node.graph.remove(node, safe=True)


def outputs_of_branches(graph: Any) -> None:
    """Give each branch and body outputs of its own: passes let them name values of the graph around it."""
    for node in list(graph.all_nodes()):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                own_outputs(attribute.as_graph(), [None] * len(attribute.as_graph().outputs))


def own_outputs(graph: Any, names: Sequence[str | None]) -> None:
    """Let each output be a value of its own that a node of the graph computes.

    Args:
        graph: an `onnx_ir.Graph`.
        names: of the outputs; `None` where it does not matter.
    """
    inside, seen = set(graph), set()
    for position, name in enumerate(names):
        value = graph.outputs[position]
        if value in seen or value.producer() not in inside:
            same = ir.node("Identity", [value], name=f"{name or value.name}/same/{position}")
            same.outputs[0].type, same.outputs[0].shape = value.type, value.shape
            graph.append(same)
            value = graph.outputs[position] = same.outputs[0]
        seen.add(value)
        if name is not None:
            value.name = name
