"""The order of the passes, and what they leave."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from ...errors import refuse
from ..check import too_large
from ..logs import captured_log
from . import fold, images, layout, repair, simplify, weights

# What captures a log changes it for all threads.
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Optimized:
    """A graph with its weights inside.

    Attributes:
        proto: the `onnx.ModelProto`.
        recipe: how its initializers follow from the weights.
    """

    proto: Any
    recipe: weights.Recipe


def optimize(proto: Any, values: Sequence[Any], *, whole: bool = True) -> Optimized:
    """Simplify a graph and put its weights in.

    Args:
        proto: an `onnx.ModelProto` whose inputs are `weight_0`, `weight_1`, … and the model's own.
        values: the weights.
        whole: whether they are all of a model's variables that the graph has values of.

    Raises:
        ExportError: if the graph takes more than one protobuf can.
    """
    model = ir.from_proto(proto)
    graph = model.graph
    outputs = [str(value.name) for value in graph.outputs]
    given = [one for one in graph.inputs if str(one.name).startswith("weight_")]
    repair.outputs_of_branches(graph)
    _tidy(model)
    _fold(model)
    repair.constant_branches(graph)
    repair.scales_of_resizes(graph)
    repair.nearest_of_resizes(graph)
    repair.groups_of_convolutions(graph)
    repair.tables_of_bytes(graph)
    _tidy(model)
    with _one_at_a_time, captured_log("onnx_ir"):  # where it fails, sizes stay open, and `check` says what is wrong
        common.ShapeInferencePass(data_prop=True)(model)
    simplify.sizes(graph)
    _fold(model)
    simplify.shapes(graph)
    simplify.products(graph)
    layout.sink_transposes(graph, weights.fixed_values(graph, given))
    simplify.rows(graph)
    _tidy(model)
    fold.scales_into_convolutions(graph, weights.fixed_values(graph, given))
    images.pads_into_windows(graph)
    images.means(graph)
    _tidy(model)
    _fold(model)
    recipe, computed, direct = _put_weights_in(model, given, values)
    _tidy(model)
    repair.outputs_of_branches(graph)
    repair.own_outputs(graph, outputs)
    common.NameFixPass()(model)
    # Weights that are used in two forms, such as a table and its transpose, are in the graph twice.
    refuse(too_large(sum(value.const_value.nbytes for value in graph.initializers.values())))
    # Names are final now.
    recipe = replace(
        recipe,
        computed=tuple(str(value.name) for value in computed),
        direct={str(value.name): number for value, number in direct.items()},
        whole=whole,
    )
    return Optimized(ir.to_proto(model), recipe)


def _tidy(model: Any) -> None:
    simplify.identities(model.graph)
    for one in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True),
        common.RemoveUnusedNodesPass(),
        common.CommonSubexpressionEliminationPass(),
        common.TopologicalSortPass(),
        common.NameFixPass(),
    ):
        one(model)


def _fold(model: Any) -> None:
    """Compute what depends on constants alone."""
    onnx, constants = weights.take_out(model, [])
    if constants:
        _fill(constants, weights.evaluate(onnx, {}))
        common.RemoveUnusedNodesPass()(model)


def _put_weights_in(
    model: Any, given: Sequence[Any], values: Sequence[Any]
) -> tuple[weights.Recipe, list[Any], dict[Any, int]]:
    """Return the recipe without names of initializers; those that it computes, and those that are a weight itself."""
    graph = model.graph
    onnx, computed = weights.take_out(model, given)
    common.RemoveUnusedNodesPass()(model)
    numbers = {one: int(str(one.name).removeprefix("weight_")) for one in given}
    direct = {one: number for one, number in numbers.items() if one.uses() or one.is_graph_output()}
    for one in given:
        graph.inputs.remove(one)
    _fill(list(direct), [np.asarray(values[number]) for number in direct.values()])
    for one in direct:
        graph.register_initializer(one)
    recipe = weights.Recipe(onnx, _inputs(onnx), tuple(str(one.name) for one in computed), {}, whole=True)
    _fill(computed, list(recipe.run(values).values()))
    return recipe, computed, direct


def _inputs(onnx: bytes) -> tuple[int, ...]:
    if not onnx:
        return ()
    import onnx as onnx_package

    inputs = onnx_package.load_from_string(onnx).graph.input
    return tuple(int(value.name.removeprefix("weight_")) for value in inputs)


def _fill(initializers: Sequence[Any], arrays: Sequence[Any]) -> None:
    for value, array in zip(initializers, arrays, strict=True):
        value.const_value = ir.tensor(array, name=value.name)
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
