"""The graphs inside a node: the branches of an `If`, the body of a `Loop` or a `Scan`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def subgraphs(node: Any) -> Iterator[Any]:
    """Yield each `onnx.GraphProto` that the attributes of an `onnx.NodeProto` hold."""
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g


def all_nodes(graphs: Iterable[Any]) -> Iterator[Any]:
    """Yield the nodes of some `onnx.GraphProto`s, those of the graphs inside them included."""
    for graph in graphs:
        for node in graph.node:
            yield node
            yield from all_nodes(subgraphs(node))
