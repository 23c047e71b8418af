"""The order of the passes, and what they leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from . import fold, layout, repair, simplify, weights


@dataclass(frozen=True)
class Optimized:
    """A graph with its weights inside.

    Attributes:
        proto: the `onnx.ModelProto`.
        recipe: how its initializers follow from the weights.
        transposes: names of the transposes that are left.
    """

    proto: Any
    recipe: weights.Recipe
    transposes: tuple[str, ...]


def optimize(proto: Any, values: Sequence[Any]) -> Optimized:
    """Simplify a graph and put its weights in.

    Args:
        proto: an `onnx.ModelProto` whose inputs are `weight_0`, `weight_1`, … and the model's own.
        values: the weights.
    """
    model = ir.from_proto(proto)
    graph = model.graph
    outputs = [str(value.name) for value in graph.outputs]
    given = [one for one in graph.inputs if str(one.name).startswith("weight_")]
    _tidy(model)
    _fold(model)
    repair.constant_branches(graph)
    repair.scales_of_resizes(graph)
    repair.nearest_of_resizes(graph)
    repair.groups_of_convolutions(graph)
    repair.tables_of_bytes(graph)
    _tidy(model)
    common.ShapeInferencePass(data_prop=True)(model)
    simplify.sizes(graph)
    _fold(model)
    simplify.shapes(graph)
    simplify.products(graph)
    layout.sink_transposes(graph, weights.fixed_values(graph, given))
    _tidy(model)
    fold.scales_into_convolutions(graph, weights.fixed_values(graph, given))
    _tidy(model)
    _fold(model)
    recipe = _put_weights_in(model, given, values)
    _tidy(model)
    repair.outputs_of_branches(graph)
    repair.own_outputs(graph, outputs)
    common.NameFixPass()(model)
    transposes = tuple(str(node.name) for node in graph.all_nodes() if node.op_type == "Transpose")
    return Optimized(ir.to_proto(model), recipe, transposes)


def _tidy(model: Any) -> None:
    for one in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.CommonSubexpressionEliminationPass(),
        common.TopologicalSortPass(),
        common.NameFixPass(),
    ):
        one(model)


def _fold(model: Any) -> None:
    """Compute what depends on constants alone."""
    taken = weights.take_out(model, [])
    if taken is not None:
        _fill(model.graph, weights.evaluate(taken, {}))
        common.RemoveUnusedNodesPass()(model)


def _put_weights_in(model: Any, given: Sequence[Any], values: Sequence[Any]) -> weights.Recipe:
    graph = model.graph
    taken = weights.take_out(model, given)
    common.RemoveUnusedNodesPass()(model)
    numbers = {one: int(str(one.name).removeprefix("weight_")) for one in given}
    direct = {str(one.name): number for one, number in numbers.items() if one.uses() or one.is_graph_output()}
    onnx = taken or b""
    recipe = weights.Recipe(onnx, _inputs(onnx), direct)
    for one in given:
        graph.inputs.remove(one)
        if str(one.name) in direct:
            one.const_value = ir.tensor(values[numbers[one]])
            graph.register_initializer(one)
    _fill(graph, recipe.run(values))
    return recipe


def _inputs(onnx: bytes) -> tuple[int, ...]:
    if not onnx:
        return ()
    import onnx as onnx_package

    inputs = onnx_package.load_from_string(onnx).graph.input
    return tuple(int(value.name.removeprefix("weight_")) for value in inputs)


def _fill(graph: Any, arrays: dict[str, Any]) -> None:
    for name, array in arrays.items():
        value = graph.initializers[name]
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
