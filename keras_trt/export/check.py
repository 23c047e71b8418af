"""Refuse a graph that is not valid ONNX with exactly the model's inputs, and name the Keras layer to blame."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from .._subgraphs import subgraphs
from ..errors import ExportError

#: The newest opset that every TensorRT from 8.6 on imports, and that tf2onnx writes.
OPSET = 17


def check_stateless(function: Any, model: Any) -> None:
    """Refuse a model that writes to variables when it infers: an engine keeps nothing from one batch to the next.

    Args:
        function: the traced inference, a TensorFlow `ConcreteFunction`.
        model: the Keras model that it was made from.

    Raises:
        ExportError: names the layer that writes.
    """
    graph = function.graph.as_graph_def()
    for node in (*graph.node, *(node for definition in graph.library.function for node in definition.node_def)):
        if re.match(r"Assign|ResourceScatter|ResourceStrided", node.op):
            raise write_refused(model, node.name)


def write_refused(model: Any, name: str) -> ExportError:
    """Return the error for a write to a variable.

    Args:
        model: the Keras model.
        name: of the variable or of the graph node that writes.
    """
    where = layer_of(model, name)
    return ExportError(
        f"In {_in(where)} something writes to a variable when it infers ('{name}'), and an engine keeps nothing from "
        "one batch to the next.",
        layer=where,
    )


def check_nodes(proto: Any, model: Any) -> None:
    """Refuse a node that is not standard ONNX.

    Args:
        proto: the `onnx.ModelProto` that tf2onnx returned.
        model: the Keras model that it was made from.

    Raises:
        ExportError: names the layer.
    """
    import onnx

    for node in _nodes(proto.graph):
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, OPSET):
            where = layer_of(model, node.name)
            raise ExportError(
                f"The operation '{node.op_type}' of {_in(where)} has no form in ONNX (graph node '{node.name}').",
                layer=where,
            )


def check_graph(proto: Any, model: Any, inputs: int, log: Sequence[str]) -> None:
    """Refuse what no ONNX reader would take.

    Args:
        proto: the `onnx.ModelProto` that tf2onnx returned.
        model: the Keras model that it was made from.
        inputs: how many inputs the model has; they are named `input_0`, `input_1`, ….
        log: what tf2onnx logged.

    Raises:
        ExportError: for an input that the model does not have, and for whatever `onnx.checker` refuses.
    """
    import onnx

    expected = {f"input_{i}" for i in range(inputs)}
    for name in (value.name for value in proto.graph.input):
        if name not in expected:
            where = layer_of(model, name)
            raise ExportError(
                f"A constant of {_in(where)} became an input of the graph ('{name}'): the graph would ask for data "
                "that the model does not take.",
                layer=where,
            )
    if missing := expected - {value.name for value in proto.graph.input}:
        raise ExportError(
            f"The model does not use its input{'s' * (len(missing) > 1)} {', '.join(sorted(missing))} "
            "(in the order in which Keras flattens the inputs), so the graph has no place for the data. "
            "Make a model without it, for example keras.Model(used_inputs, outputs)."
        )
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        said = f" tf2onnx said: {'; '.join(log)}" if log else ""
        raise ExportError(f"The graph that tf2onnx made is not valid ONNX: {error}.{said}") from error


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


def _in(layer: str | None) -> str:
    return f"layer '{layer}'" if layer else "the model itself"


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for subgraph in subgraphs(node):
            yield from _nodes(subgraph)
