"""What keeps a graph from being valid ONNX with exactly the model's inputs, and the Keras layer to blame."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .._subgraphs import subgraphs
from ..findings import Finding

#: The newest opset that every TensorRT from 8.6 on imports, and that tf2onnx writes.
OPSET = 17
#: The most bytes that a protobuf can have, and so a graph with its weights in it.
LIMIT = 2**31 - 1
#: TensorFlow's operators that write to a variable.
_WRITES = re.compile(r"Assign|ResourceScatter|ResourceStrided")
#: From channels last to channels first and back, of images and volumes.
_LAYOUTS = ([0, 3, 1, 2], [0, 2, 3, 1], [0, 4, 1, 2, 3], [0, 2, 3, 4, 1])


def too_many_weights(model: Any) -> Iterator[Finding]:
    """Yield that a model's weights are more than a graph can hold, as far as their number tells: nothing is read."""
    yield from too_large(sum(math.prod(one.shape) * np.dtype(one.dtype).itemsize for one in model.variables))


def too_large(size: int) -> Iterator[Finding]:
    """Yield that weights are more than a graph can hold.

    Args:
        size: how many bytes they take in it.
    """
    if size > LIMIT:
        yield Finding(
            f"The weights take {size:,} bytes, and an ONNX graph with its weights in it takes no more than {LIMIT:,}. "
            'model.quantize("int8") makes them a quarter; or make a model of a part of this one, such as what is '
            "behind its largest table: keras.Model(table.output, model.output)."
        )


def writes(function: Any, model: Any) -> Iterator[Finding]:
    """Yield each layer that writes to variables when it infers: an engine keeps nothing from one batch to the next.

    Args:
        function: the traced inference, a TensorFlow `ConcreteFunction`.
        model: the Keras model that it was made from.
    """
    graph = function.graph.as_graph_def()
    nodes = (*graph.node, *(node for definition in graph.library.function for node in definition.node_def))
    yield from written(model, [node.name for node in nodes if _WRITES.match(node.op)])


def written(model: Any, names: Iterable[str]) -> Iterator[Finding]:
    """Yield each layer that writes to a variable.

    Args:
        model: the Keras model.
        names: of the variables, or of the graph nodes that write.
    """
    for where, name in _first_of_each(model, ((name, None) for name in names)):
        yield Finding(
            f"In {_in(where)} something writes to a variable when it infers ('{name}'), and an engine keeps nothing "
            "from one batch to the next.",
            where,
        )


def invalid(proto: Any, model: Any, inputs: int, log: Sequence[str]) -> Iterator[Finding]:
    """Yield what no ONNX reader would take of a graph of standard nodes.

    What `onnx.checker` refuses is yielded where there is nothing else: it would only say the same again.

    Args:
        proto: the `onnx.ModelProto` that tf2onnx returned.
        model: the Keras model that it was made from.
        inputs: how many inputs the model has; they are named `input_0`, `input_1`, ….
        log: what tf2onnx logged.
    """
    yield from list(_wrong_inputs(proto, model, inputs)) or _refused_by_checker(proto, log)


def transposes(proto: Any, model: Any) -> Iterator[Finding]:
    """Yield each layer with transposes between channels last and channels first in its part of the graph."""
    counts: dict[str | None, int] = {}
    for node in _nodes(proto.graph):
        if node.op_type == "Transpose" and any(list(entry.ints) in _LAYOUTS for entry in node.attribute):
            where = layer_of(model, node.name)
            counts[where] = counts.get(where, 0) + 1
    for where, count in counts.items():
        yield Finding(
            f"The graph of {_in(where)} has {count} transpose{'s' * (count > 1)} between NHWC and NCHW.",
            where,
            "kept",
            "a copy of the tensor at each, where the builder does not fuse it into its neighbours",
        )


def foreign_nodes(proto: Any, model: Any) -> Iterator[Finding]:
    """Yield each layer with nodes that are not standard ONNX.

    Args:
        proto: the `onnx.ModelProto` that tf2onnx returned.
        model: the Keras model that it was made from.
    """
    import onnx

    foreign = (
        node
        for node in _nodes(proto.graph)
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, OPSET)
    )
    operators = {node.name: node.op_type for node in foreign}
    for where, name in _first_of_each(model, operators.items()):
        why = f"The operation '{operators[name]}' of {_in(where)} has no form in ONNX (graph node '{name}')."
        if operators[name].startswith("LookupTable"):
            why += " `accelerate` lets the CPU run lookups that are at the head of a model."
        yield Finding(why, where)


def _wrong_inputs(proto: Any, model: Any, inputs: int) -> Iterator[Finding]:
    expected = {f"input_{i}" for i in range(inputs)}
    for name in (value.name for value in proto.graph.input):
        if name not in expected:
            where = layer_of(model, name)
            yield Finding(
                f"A constant of {_in(where)} became an input of the graph ('{name}'): the graph would ask for data "
                "that the model does not take.",
                where,
            )
    if missing := expected - {value.name for value in proto.graph.input}:
        yield Finding(
            f"The model does not use its input{'s' * (len(missing) > 1)} {', '.join(sorted(missing))} "
            "(in the order in which Keras flattens the inputs), so the graph has no place for the data. "
            "Make a model without it, for example keras.Model(used_inputs, outputs)."
        )


def _refused_by_checker(proto: Any, log: Sequence[str]) -> Iterator[Finding]:
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # of the checker, of the inference of shapes, or of protobuf, where nodes are too much
        said = f" tf2onnx said: {'; '.join(log)}" if log else ""
        yield Finding(f"The graph is not valid ONNX: {error}.{said}")


def layer_of(model: Any, node_name: str) -> str | None:
    """Return the path of the Keras layer that a graph node belongs to, or `None`.

    TensorFlow names nodes by nested scopes, one for each Keras layer, and makes each scope unique by a number:
    layer `dense` becomes `dense_1`, layer `dense_1` becomes `dense_1_2`.
    """
    path: list[str] = []
    current = model
    for part in node_name.split("/"):
        children = {layer.name: layer for layer in current._flatten_layers(include_self=False, recursive=False)}
        name = next((n for n in (re.sub(r"_\d+$", "", part), part) if n in children), None)
        if name is not None:
            path.append(name)
            current = children[name]
    return "/".join(path) or None


def _first_of_each(model: Any, nodes: Iterable[tuple[str, Any]]) -> Iterator[tuple[str | None, str]]:
    """Yield the first name for each layer and kind, with the layer: a finding says what, not how often."""
    seen = set()
    for name, kind in nodes:
        where = layer_of(model, name)
        if (where, kind) not in seen:
            seen.add((where, kind))
            yield where, name


def _in(layer: str | None) -> str:
    return f"layer '{layer}'" if layer else "the model itself"


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for subgraph in subgraphs(node):
            yield from _nodes(subgraph)
