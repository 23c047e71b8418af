"""Float32 → float16 graphs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from .._subgraphs import subgraphs


def to_half(onnx: bytes) -> bytes:
    """Convert a float32 graph to float16, with float32 inputs and outputs.

    ONNX Runtime's converter does the work: of the ones measured it alone made graphs that TensorRT takes from
    Resize, existing casts, masks, recurrent and control-flow nodes. It keeps in float32 what has no half form
    or loses too much in one, and clamps constants to float16's range. What it leaves undone is done here: nodes
    without a name get one, and nodes are put in an order in which each follows what it reads.

    Args:
        onnx: a serialized float32 `onnx.ModelProto`.

    Returns:
        The float16 graph, checked.
    """
    import onnx as onnx_package
    from onnxruntime.transformers.float16 import convert_float_to_float16

    proto = onnx_package.load_from_string(onnx)
    _name_nodes(proto.graph)
    del proto.graph.value_info[:]  # the converter would keep these types where it keeps float32, or not
    with warnings.catch_warnings():
        # It warns of each constant that it clamps; the verification of the engine judges whether that matters.
        warnings.filterwarnings("ignore", message="the float32 number", category=UserWarning)
        half = convert_float_to_float16(proto, keep_io_types=True, node_block_list=_with_lengths(proto.graph))
    _name_nodes(half.graph)
    _sort(half.graph)
    onnx_package.checker.check_model(half, full_check=True)
    return bytes(half.SerializeToString(deterministic=True))


def _with_lengths(graph: Any) -> list[str]:
    """Return the recurrent nodes that take sequence lengths: TensorRT's parser masks them with float32 zeros."""
    recurrent = [node for node in graph.node if node.op_type in ("LSTM", "GRU", "RNN")]
    return [node.name for node in recurrent if len(node.input) > 4 and node.input[4]]


def _name_nodes(graph: Any) -> None:
    """Name the nodes that have no name: the converter tells nodes apart by it."""
    taken = {node.name for node in graph.node}
    number = 0
    for node in graph.node:
        while not node.name:
            candidate = f"{node.op_type}__{number}"
            number += 1
            if candidate not in taken:
                node.name = candidate
                taken.add(candidate)


def _sort(graph: Any) -> None:
    """Put each node after the ones that it reads from, else as they were (Kahn's algorithm)."""
    nodes = list(graph.node)
    producer = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    waiting = [{producer[name] for name in _reads(node) if name in producer} for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for i, sources in enumerate(waiting):
        for source in sources:
            readers[source].append(i)
    ready = [i for i, sources in enumerate(waiting) if not sources]
    order = []
    while ready:
        i = ready.pop(0)
        order.append(i)
        for reader in readers[i]:
            waiting[reader].discard(i)
            if not waiting[reader]:
                ready.append(reader)
    if len(order) != len(nodes):
        raise ValueError("The graph has a cycle.")
    del graph.node[:]
    graph.node.extend(nodes[i] for i in order)


def _reads(node: Any) -> Iterable[str]:
    """Yield all names that a node reads, those that its subgraphs take from outside included."""
    yield from node.input
    for subgraph in subgraphs(node):
        for inner in subgraph.node:
            yield from _reads(inner)
        yield from (value.name for value in subgraph.output)
