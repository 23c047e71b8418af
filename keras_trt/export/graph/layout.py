"""NHWC ↔ NCHW: transposes are moved towards the outputs until they meet their inverse, and both fall away.

Keras computes in NHWC and ONNX in NCHW, so tf2onnx puts each convolution between two transposes. A node that does the
same in any order of axes is applied before the transpose instead of behind it; what it adds or multiplies with is
transposed instead, which is for free where that follows from weights alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .simplify import constant, insert, known_sizes, new_constant, replace

Order = tuple[int, ...]

# fmt: off
_ELEMENTWISE = frozenset((
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "Cast", "Ceil", "Celu", "Clip",
    "Cos", "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Greater", "GreaterOrEqual", "HardSigmoid",
    "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish",
    "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid",
    "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Where",
    "Xor",
))
_REDUCE = frozenset((
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
))
# fmt: on
_ONE_AXIS = frozenset(("Softmax", "LogSoftmax", "Hardmax", "Concat", "Split", "ArgMax", "ArgMin"))


def sink_transposes(graph: Any, fixed: Collection[Any]) -> None:
    """Move each transpose behind the nodes that read it, and merge those that meet.

    Args:
        graph: a sorted `onnx_ir.Graph`.
        fixed: values that follow from weights and constants alone.
    """
    fixed = set(fixed)
    for node in list(graph):
        rule = _rule(node)
        if rule is not None:
            rule(node, fixed)


def _rule(node: Any) -> Callable[[Any, set[Any]], None] | None:
    if node.op_type in _ELEMENTWISE:
        return _elementwise
    if node.op_type in _REDUCE:
        return _reduce
    if node.op_type in _ONE_AXIS:
        return _one_axis
    return {"Transpose": _merge, "Pad": _pad, "Slice": _slice, "Shape": _shape, "Reshape": _reshape}.get(node.op_type)


def _moved(value: Any) -> tuple[Any, Order] | None:
    """Return what a transpose gives the value from, and its order of axes; `None` for any other value."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Transpose":
        return None
    order = _order(node)
    return None if order is None else (node.inputs[0], order)


def _order(node: Any) -> Order | None:
    """Return the order of axes of a transpose; without an attribute it turns them around, if their number is known."""
    if "perm" in node.attributes:
        return tuple(node.attributes["perm"].as_ints())
    sizes = known_sizes(node.inputs[0])
    return None if sizes is None else tuple(reversed(range(len(sizes))))


def _inverse(order: Sequence[int]) -> Order:
    return tuple(int(axis) for axis in np.argsort(order))


def _without(order: Order, axes: Collection[int]) -> Order:
    """Return the order of the axes that are left when those at the places `axes` are gone."""
    rest = [one for place, one in enumerate(order) if place not in axes]
    return tuple(sorted(rest).index(one) for one in rest)


def _merge(node: Any, _fixed: set[Any]) -> None:
    found, order, source = _moved(node.inputs[0]), _order(node), node.inputs[0]
    if order is None:
        return
    if found is not None:
        source, first = found
        order = tuple(first[axis] for axis in order)
    made = source.producer()
    target = constant(made.inputs[1]) if made is not None and made.op_type == "Reshape" else None
    if order == tuple(range(len(order))):
        replace(node.outputs[0], source)
    elif target is not None and 0 not in target and _moves_nothing(source, order):
        shape = new_constant(node.graph, target[list(order)])
        output = node.outputs[0]
        replace(output, insert(node, "Reshape", [made.inputs[0], shape], {}, output, output.shape))
    elif found is not None:
        node.replace_input_with(0, source)
        node.attributes["perm"] = ir.AttrInt64s("perm", order)


def _elementwise(node: Any, fixed: set[Any]) -> None:
    inputs = [value for value in node.inputs if value is not None]
    orders = {found[1] for found in map(_moved, inputs) if found is not None}
    sizes = known_sizes(node.outputs[0])
    if len(orders) != 1 or all(value in fixed for value in inputs):
        return
    (order,) = orders
    if sizes is None or len(sizes) != len(order) or not all(_is_cheap(value, order, fixed) for value in inputs):
        return
    _rebuild(node, [None if value is None else _before(node, value, order, fixed) for value in node.inputs], order)


def _is_cheap(value: Any, order: Order, fixed: set[Any]) -> bool:
    """Tell whether an operand can be had in the order before the transpose at next to no cost."""
    if _moved(value) is not None:
        return True
    sizes = known_sizes(value)
    if sizes is None or len(sizes) > len(order):
        return False
    if value in fixed:
        return None not in sizes
    # A vector per image, as of a squeeze-and-excitation block, is as good as free to transpose.
    return len(sizes) in (0, len(order)) and sum(size != 1 for size in sizes[1:]) <= 1


def _before(node: Any, value: Any, order: Order, fixed: set[Any]) -> Any:
    """Return an operand of `node` in the order before the transpose."""
    found = _moved(value)
    if found is not None:
        return found[0]
    sizes = known_sizes(value) or []
    if all(size == 1 for size in sizes):
        return value
    wide = value
    if len(sizes) < len(order):
        shape = [1] * (len(order) - len(sizes)) + sizes
        target = new_constant(node.graph, np.array(shape, np.int64))
        wide = insert(node, "Reshape", [value, target], {}, value, ir.Shape(shape))
    back = _inverse(order)
    result = insert(node, "Transpose", [wide], {"perm": back}, value, _permuted(wide.shape, back))
    if value in fixed:
        fixed.update((wide, result))
    return result


def _reduce(node: Any, _fixed: set[Any]) -> None:
    found = _moved(node.inputs[0])
    if found is None:
        return
    source, order = found
    attribute = node.attributes.get("axes")
    from_input = len(node.inputs) > 1 and node.inputs[1] is not None
    given = constant(node.inputs[1]) if from_input else attribute.as_ints() if attribute is not None else None
    if given is None or len(given) == 0:
        return  # not known; or all of them, or none
    axes = [int(axis) % len(order) for axis in given]
    moved = sorted(order[axis] for axis in axes)
    keep = node.attributes.get("keepdims")
    after = order if keep is None or keep.as_int() else _without(order, axes)
    operands = [source]
    if from_input:
        operands.append(new_constant(node.graph, np.array(moved, np.int64)))
    else:
        node.attributes["axes"] = ir.AttrInt64s("axes", moved)
    _rebuild(node, operands, after)


def _one_axis(node: Any, fixed: set[Any]) -> None:
    data = list(node.inputs) if node.op_type == "Concat" else [node.inputs[0]]
    found = [_moved(value) for value in data]
    orders = {one[1] for one in found if one is not None}
    if len(orders) != 1:
        return
    (order,) = orders
    if any(one is None and value not in fixed for one, value in zip(found, data, strict=True)):
        return
    sources = []
    for one, value in zip(found, data, strict=True):
        if one is not None:
            sources.append(one[0])
            continue
        back = _inverse(order)
        moved = insert(node, "Transpose", [value], {"perm": back}, value, _permuted(value.shape, back))
        fixed.add(moved)
        sources.append(moved)
    default = 0 if node.op_type in ("Split", "ArgMax", "ArgMin") else -1
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else default
    axis %= len(order)
    node.attributes["axis"] = ir.AttrInt64("axis", order[axis])
    after = order
    if "keepdims" in node.attributes and not node.attributes["keepdims"].as_int():
        after = _without(order, [axis])
    _rebuild(node, [*sources, *node.inputs[len(data) :]], after)


def _pad(node: Any, _fixed: set[Any]) -> None:
    found, pads = _moved(node.inputs[0]), constant(node.inputs[1])
    if found is None or pads is None:
        return
    source, order = found
    back, rank = _inverse(order), len(order)
    moved = np.array([*(pads[axis] for axis in back), *(pads[rank + axis] for axis in back)], np.int64)
    _rebuild(node, [source, new_constant(node.graph, moved), *node.inputs[2:]], order)


def _slice(node: Any, _fixed: set[Any]) -> None:
    found = _moved(node.inputs[0])
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    if found is None or axes is None:
        return
    source, order = found
    moved = np.array([order[int(axis) % len(order)] for axis in axes], np.int64)
    _rebuild(node, [source, *node.inputs[1:3], new_constant(node.graph, moved), *node.inputs[4:]], order)


def _shape(node: Any, _fixed: set[Any]) -> None:
    """The shape of what is transposed, in another order; else a transpose would stay for its sake."""
    found = _moved(node.inputs[0])
    if found is None or node.attributes:
        return
    source, order = found
    output = node.outputs[0]
    whole = insert(node, "Shape", [source], {}, output, output.shape)
    places = new_constant(node.graph, np.array(order, np.int64))
    picked = insert(node, "Gather", [whole, places], {}, output, output.shape)
    replace(node.outputs[0], picked)


def _reshape(node: Any, _fixed: set[Any]) -> None:
    """A transpose that moves nothing but axes of size 1 is a reshape itself."""
    found, shape = _moved(node.inputs[0]), constant(node.inputs[1])
    if found is None or shape is None or 0 in shape:
        return
    if _moves_nothing(*found):
        node.replace_input_with(0, found[0])


def _moves_nothing(source: Any, order: Order) -> bool:
    """Tell whether a transpose leaves the order of all elements as it is, as it moves axes of size 1 alone."""
    sizes = known_sizes(source)
    moved = [axis for axis in order if sizes is None or sizes[axis] != 1]
    return moved == sorted(moved)


def _rebuild(node: Any, inputs: Sequence[Any], order: Order) -> None:
    """Let a node read `inputs` instead, and give its outputs through a transpose."""
    for position, value in enumerate(inputs):
        if node.inputs[position] is not value:
            node.replace_input_with(position, value)
    if order == tuple(range(len(order))):
        return
    for output in list(node.outputs):
        after = ir.node("Transpose", [output], {"perm": order}, name=f"{node.name}/transpose")
        moved = after.outputs[0]
        moved.type, moved.shape = output.type, output.shape
        users = [usage for usage in output.uses() if usage.node is not after]
        node.graph.insert_after(node, after)
        name, output.name = output.name, f"{output.name}__before"
        moved.name = name
        for user, position in users:
            user.replace_input_with(position, moved)
        for position, value in enumerate(node.graph.outputs):
            if value is output:
                node.graph.outputs[position] = moved
        output.shape = _permuted(output.shape, _inverse(order))


def _permuted(shape: Any, order: Order) -> Any:
    return None if shape is None else ir.Shape([shape[axis] for axis in order])
