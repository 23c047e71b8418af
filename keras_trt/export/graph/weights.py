"""What of a graph follows from its weights, or from constants, alone: computed once, not at each inference."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")


@dataclass(frozen=True)
class Recipe:
    """How the constants of a graph follow from a model's weights.

    Attributes:
        onnx: a serialized `onnx.ModelProto` from the weights that are used, named `weight_0`, `weight_1`, … in the
            order of the model's variables, to initializers; empty where there is nothing to compute.
        weights: which weights it takes.
        computed: the initializers that are its outputs, by name.
        direct: initializers that are a weight as it is, by name.
        whole: whether no value of a variable got into the graph in another way than as a weight.
    """

    onnx: bytes
    weights: tuple[int, ...]
    computed: tuple[str, ...]
    direct: Mapping[str, int]
    whole: bool

    @property
    def names(self) -> frozenset[str]:
        """The initializers that follow from weights."""
        return frozenset(self.computed) | frozenset(self.direct)

    def covers(self, changed: Iterable[int]) -> bool:
        """Tell whether all that follows from some weights is known.

        A weight that nothing follows from may still be in the graph: the mean of a `Normalization` is a tensor that
        was made of it.

        Args:
            changed: places of weights in the order of the model's variables.
        """
        return self.whole and set(changed) <= {*self.weights, *self.direct.values()}

    def renamed(self, names: Mapping[str, str]) -> Recipe:
        """Return the recipe for a graph whose initializers bear other names.

        Args:
            names: the new ones by the old ones.
        """
        computed = tuple(names.get(name, name) for name in self.computed)
        return replace(self, computed=computed, direct={names.get(key, key): i for key, i in self.direct.items()})

    def run(self, weights: Sequence[Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Return all initializers that depend on weights, by name.

        Args:
            weights: a value for each variable of the model, in its order.
        """
        given = {f"weight_{i}": np.asarray(weights[i]) for i in self.weights}
        computed = evaluate(self.onnx, given) if self.onnx else []
        return dict(zip(self.computed, computed, strict=True)) | {
            name: np.asarray(weights[i]) for name, i in self.direct.items()
        }


def fixed_values(graph: Any, given: Collection[Any]) -> set[Any]:
    """Return the values of a graph that depend on nothing but initializers and `given`.

    Args:
        graph: an `onnx_ir.Graph`, sorted.
        given: inputs of it.
    """
    fixed = {*graph.initializers.values(), *given}
    for node in graph:
        # Quantized weights stay quantized: the builder decides what to make of them.
        if node.op_type in (*_RANDOM, "DequantizeLinear") or not _is_plain(node):
            continue
        if all(value is None or value in fixed for value in node.inputs):
            fixed.update(node.outputs)
    return fixed


def take_out(model: Any, given: Sequence[Any]) -> tuple[bytes, list[Any]]:
    """Cut the nodes that depend on nothing but initializers and `given` out of a model.

    The values at the cut become initializers of the model without data yet.

    Args:
        model: an `onnx_ir.Model`; its graph is changed.
        given: inputs of its graph.

    Returns:
        A serialized `onnx.ModelProto` that computes the values at the cut, and these initializers; nothing of both
        where there is nothing to compute.
    """
    import onnx_ir as ir

    graph = model.graph
    fixed = fixed_values(graph, given)
    nodes = [node for node in graph if any(value in fixed for value in node.outputs)]
    inside = set(nodes)
    cut = [
        value
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(user not in inside for user, _ in value.uses())
    ]
    if not cut:
        return b"", []
    part = ir.convenience.extract(graph, inputs=[*given], outputs=cut)
    proto = ir.to_proto(ir.Model(part, ir_version=model.ir_version))
    return bytes(proto.SerializeToString()), [_detach(graph, value) for value in cut]


def evaluate(onnx: bytes, given: Mapping[str, Any]) -> list[np.ndarray[Any, Any]]:
    """Run a graph with ONNX Runtime and return its outputs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # each node runs but once
    session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    kinds = {value.name: value.type for value in session.get_inputs()}
    # The states of seeds, which nothing follows from, have narrower types on other backends than TensorFlow.
    long = [name for name, kind in kinds.items() if kind == "tensor(int64)"]
    taken = {name: value.astype(np.int64) if name in long else value for name, value in given.items() if name in kinds}
    return list(session.run(None, taken))


def _detach(graph: Any, value: Any) -> Any:
    """Make an initializer of a value that nodes compute; the nodes stay, without users."""
    import onnx_ir as ir

    initializer = ir.Value(name=value.name, shape=value.shape, type=value.type)
    value.name = None
    value.replace_all_uses_with(initializer, replace_graph_outputs=True)
    graph.initializers[initializer.name] = initializer
    return initializer


def _is_plain(node: Any) -> bool:
    """Tell whether a node is standard ONNX without graphs inside: others are left for `check` to judge."""
    import onnx

    plain = node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type)
    return plain and not any(attribute.type.name in ("GRAPH", "GRAPHS") for attribute in node.attributes.values())
