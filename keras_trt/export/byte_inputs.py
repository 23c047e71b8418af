"""Bytes may go into an engine, and then only be turned into floats: TensorRT moves and calculates no `uint8`."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._subgraphs import subgraphs

#: Operators that only move what their first input holds (`Concat`: all of its inputs; `Pad` puts a constant around it).
_MOVES = frozenset(
    ("Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Squeeze", "Tile", "Transpose")
) | {"ReverseSequence", "Unsqueeze"}


def cast_first(proto: Any) -> None:
    """Cast `uint8` inputs to float32 as soon as they come in, where they are moved before they are cast.

    Every byte has its float, so that moving floats gives the same. A graph that calculates with bytes, or gives them
    back, is left as it is.

    Args:
        proto: an `onnx.ModelProto` in topological order, changed in place.
    """
    from onnx import TensorProto, helper

    graph = proto.graph
    inputs = [one.name for one in graph.input if one.type.tensor_type.elem_type == TensorProto.UINT8]
    moved = _moved(graph, inputs)
    if not moved or not moved.isdisjoint(one.name for one in graph.output):
        return
    floats = {name: f"{name}__float" for name in inputs}
    for node in graph.node:
        node.input[:] = [floats.get(name, name) for name in node.input]
    _fill_with_floats(graph, moved)
    for value in graph.value_info:
        if value.name in moved:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    casts = [helper.make_node("Cast", [a], [b], name=b, to=TensorProto.FLOAT) for a, b in floats.items()]
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _moved(graph: Any, inputs: list[str]) -> set[str]:
    """Return the tensors of bytes behind `inputs`, or none if something else than moving is done with bytes."""
    known, constants = set(inputs), {one.name for one in graph.initializer}
    for node in graph.node:
        if inputs and any(True for _ in subgraphs(node)):
            return set()  # what it reads inside is not followed
        if known.isdisjoint(node.input) or node.op_type in ("Cast", "Shape"):
            continue
        data = node.input if node.op_type == "Concat" else node.input[:1]
        if node.op_type not in _MOVES or not known.issuperset(data) or not constants.issuperset(_filled(node)):
            return set()
        known.update(node.output)
    return known.difference(inputs)


def _filled(node: Any) -> list[str]:
    """Return the name of what a `Pad` puts around its input, if it is told."""
    return [name for name in node.input[2:3] if name] if node.op_type == "Pad" else []


def _fill_with_floats(graph: Any, moved: set[str]) -> None:
    from onnx import numpy_helper

    constants = {one.name: one for one in graph.initializer}
    floats: dict[str, Any] = {}
    for node in graph.node:
        for name in _filled(node) if moved.issuperset(node.output) else ():
            value = numpy_helper.to_array(constants[name]).astype(np.float32)
            node.input[2] = f"{name}__float"
            floats[name] = numpy_helper.from_array(value, node.input[2])
    read = {name for node in graph.node for name in node.input}
    for name in floats.keys() - read:
        graph.initializer.remove(constants[name])
    graph.initializer.extend(floats.values())
