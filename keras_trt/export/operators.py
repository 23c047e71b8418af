"""TensorFlow operators for which tf2onnx has no handler, or no good one, written in operators that ONNX has."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from . import convolutions
from .einsum import einsum
from .fourier import Fourier
from .layers import MARKER
from .writer import Writer


def handlers() -> dict[str, Any]:
    """Return tf2onnx handlers by TensorFlow operator."""
    ours = {
        "BatchMatMulV3": _quantized_product,
        "BiasAdd": convolutions.bias,
        "Bitcast": _sign_bit,
        "Bucketize": _bucketize,
        "Conv2DBackpropInput": convolutions.transposed_convolution,
        "Conv3DBackpropInputV2": convolutions.transposed_convolution,
        "DenseBincount": _bincount,
        "Einsum": einsum,
        "Erfc": _erfc,
        "Expm1": _expm1,
        "FloorDiv": _floor_division,
        "FloorMod": _floor_division,
        "LeftShift": _shift,
        "Log1p": _log1p,
        "MirrorPad": _pad,
        "OneHot": _one_hot,
        "Pad": _pad,
        "PadV2": _pad,
        "PyFunc": _marker,
        "ReverseV2": _reverse,
        "RightShift": _shift,
        "Select": _select,
        "SelectV2": _select,
        "TensorListFromTensor": _list_of_steps,
        "TopKV2": _top_k,
        **Fourier().handlers(),
    }
    return {operator: (handler, []) for operator, handler in ours.items()}


def _bucketize(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """Count the boundaries that x is not below, as in `Discretization`: NaN is above all of them, as in TensorFlow."""
    from onnx import TensorProto

    x, boundaries = node.input[0], np.array(node.get_attr_value("boundaries"), np.float32)
    write = Writer(graph, node)
    last = write.constant(np.array([-1], np.int64))
    column = write.node("Unsqueeze", [write.node("Cast", [x], to=TensorProto.FLOAT), last])
    reached = write.node("Not", [write.node("Less", [column, write.constant(boundaries)])])
    write.result("ReduceSum", [write.node("Cast", [reached], to=TensorProto.INT32), last], keepdims=0)


def _bincount(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """Count each number of a row, or tell whether it occurs: the `multi_hot` and `count` of `CategoryEncoding`."""
    from onnx import TensorProto

    x, _size, weights = node.input
    shape, weights_shape, count = graph.get_shape(x), graph.get_shape(weights), _fixed_size(node.inputs[1])
    if shape is None or weights_shape is None or 0 not in weights_shape or count is None:
        return  # `check` refuses what stays
    numbers, binary, dtype = graph.get_dtype(x), node.get_attr_value("binary_output"), graph.get_dtype(node.output[0])
    write = Writer(graph, node)
    last = write.constant(np.array([-1], np.int64))
    kind = np.int64 if numbers == TensorProto.INT64 else np.int32
    found = write.node("Equal", [write.node("Unsqueeze", [x, last]), write.constant(np.arange(count, dtype=kind))])
    # Summed, and compared, as floats: TensorRT has that for every type.
    row = write.constant(np.array([len(shape) - 1], np.int64))
    counts = write.node("ReduceSum", [write.node("Cast", [found], to=TensorProto.FLOAT), row], keepdims=0)
    if binary:
        counts = write.node("Greater", [counts, write.constant(np.zeros((), np.float32))])
    write.result("Cast", [counts], to=dtype)


def _sign_bit(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """The sign bit of floats, which `keras.ops.argmax` tells negative zeros by; no other bits can be had in ONNX."""
    from onnx import TensorProto

    x, users = node.input[0], graph.find_output_consumers(node.output[0])
    mask = np.iinfo(np.int32).min
    masks = [one for user in users for one in user.inputs if one.is_const()]
    only_sign = all(user.type == "BitwiseAnd" for user in users) and len(masks) == len(users)
    if graph.get_dtype(x) != TensorProto.FLOAT or not only_sign:
        return  # `check` refuses what stays
    if any(np.any(one.get_tensor_value(as_list=False) != mask) for one in masks):
        return
    write = Writer(graph, node)
    zero = write.constant(np.zeros((), np.float32))
    # A zero has the sign of the infinity that it divides to.
    signed = write.node("Where", [write.node("Equal", [x, zero]), write.node("Reciprocal", [x]), x])
    write.result("Cast", [write.node("Less", [signed, zero])], to=TensorProto.INT32)
    for user in users:
        user.type = "Mul"  # 0 or 1 times the mask


def _quantized_product(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """A product of 8-bit integers, as of `model.quantize("int8")`, in whole floats, with the kernel dequantized.

    Keras quantizes activations by the largest of each row, and TensorRT only by scales that are known when it builds:
    so the integers are kept, which gives Keras's answers, and the sums are of floats.
    """
    from onnx import TensorProto

    operands = [_whole_floats(graph, one) for one in node.input[:2]]
    if any(graph.get_dtype(one) != TensorProto.INT8 for one in node.input[:2]):
        return  # `check` refuses what stays
    turned = [bool(node.get_attr_value(f"adj_{side}", False)) for side in "xy"]
    ranks = [len(graph.get_shape(one) or ()) for one in node.input[:2]]
    dtype = graph.get_dtype(node.output[0])
    write = Writer(graph, node)
    sides = []
    for (source, kernel), turn, rank in zip(operands, turned, ranks, strict=True):
        value = write.node("DequantizeLinear", [source, write.constant(np.float32(1))]) if kernel else source
        order = [*range(rank - 2), rank - 1, rank - 2]
        sides.append(write.node("Transpose", [value], perm=order) if turn else value)
    write.result("Cast", [write.node("MatMul", sides)], to=dtype)


def _whole_floats(graph: Any, name: str) -> tuple[str, bool]:
    """Return the floats that integers were rounded from; or the integers themselves, to be dequantized."""
    from onnx import TensorProto

    node = graph.get_node_by_output(name)
    if node is not None and node.type == "Cast" and graph.get_dtype(node.input[0]) == TensorProto.FLOAT:
        return str(node.input[0]), False  # rounded and clipped by Keras's quantizer
    return name, True


def _fixed_size(node: Any) -> int | None:
    """Return a number that a node gives for sure: a constant, also as the least and the largest that is allowed."""
    if node.is_const():
        return int(node.get_tensor_value(as_list=False).item())
    if node.type != "Min":
        return None
    (largest,) = [one for one in node.inputs if one.is_const()] or [None]
    bounded = [one for one in node.inputs if one.type == "Max"]
    if largest is None or not bounded:
        return None
    limit = _fixed_size(largest)
    return limit if limit in [_fixed_size(one) for one in bounded[0].inputs if one.is_const()] else None


def _erfc(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """erfc(x) = 1 - erf(x), and erfc(-x) = 1 + erf(x), the exact GELU's: the form that TensorRT fuses."""
    positive = _without_minus(graph, node.inputs[0])
    x = node.input[0] if positive is None else positive
    write = Writer(graph, node)
    write.result("Sub" if positive is None else "Add", [write.one(), write.node("Erf", [x])])


def _without_minus(graph: Any, node: Any) -> str | None:
    """Return `x` where a node is `-x`, and `x * y` where it is `-x * y`; else `None`."""
    if node.type == "Neg":
        return str(node.input[0])
    if node.type != "Mul" or not any(one.type == "Neg" for one in node.inputs):
        return None
    place = 0 if node.inputs[0].type == "Neg" else 1
    operands = list(node.input)
    operands[place] = node.inputs[place].input[0]
    shapes, dtypes = [graph.get_shape(node.output[0])], [graph.get_dtype(node.output[0])]
    return str(graph.make_node("Mul", operands, shapes=shapes, dtypes=dtypes).output[0])


def _expm1(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """expm1(x) = exp(x) - 1, and near 0, where that loses digits, 2 t / (1 - t) with t = tanh(x / 2)."""
    x, write = node.input[0], Writer(graph, node)
    half = write.constant(np.float32(0.5))
    t = write.node("Tanh", [write.node("Mul", [x, half])])
    near = write.node("Div", [write.node("Add", [t, t]), write.node("Sub", [write.one(), t])])
    small = write.node("Less", [write.node("Abs", [x]), half])
    write.result("Where", [small, near, write.node("Sub", [write.node("Exp", [x]), write.one()])])


def _log1p(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """log1p(x) = log(u) + (x - (u - 1)) / u with u = 1 + x: near 0, what u has lost of x decides.

    From W. Kahan's analysis of log1p, as in N. Higham, Accuracy and Stability of Numerical Algorithms, section 1.14.1.
    """
    x, write = node.input[0], Writer(graph, node)
    half, zero = write.constant(np.float32(0.5)), write.constant(np.float32(0))
    u = write.node("Add", [write.one(), x])
    lost = write.node("Div", [write.node("Sub", [x, write.node("Sub", [u, write.one()])]), u])
    small = write.node("Less", [write.node("Abs", [x]), half])
    write.result("Add", [write.node("Log", [u]), write.node("Where", [small, lost, zero])])


def _floor_division(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """Division rounded down, and its remainder: ONNX divides integers towards zero."""
    from tf2onnx import utils

    x, y = node.input
    remainder, dtype = node.type == "FloorMod", graph.get_dtype(node.output[0])
    write, kind = Writer(graph, node), np.dtype(utils.map_onnx_to_numpy_type(dtype))
    quotient = write.node("Div", [x, y])
    if kind.kind == "f":
        quotient = write.node("Floor", [quotient])
        if remainder:
            write.result("Sub", [x, write.node("Mul", [quotient, y])])
        else:
            write.result("Identity", [quotient])
        return
    rest, zero = write.node("Sub", [x, write.node("Mul", [quotient, y])]), write.constant(np.zeros((), kind))
    other_sign = write.node("Xor", [write.node("Less", [rest, zero]), write.node("Less", [y, zero])])
    inexact = write.node("Not", [write.node("Equal", [rest, zero])])
    below = write.node("Cast", [write.node("And", [inexact, other_sign])], to=dtype)
    if remainder:
        write.result("Add", [rest, write.node("Mul", [below, y])])
    else:
        write.result("Sub", [quotient, below])


def _shift(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """A shift of signed integers, as a product with a power of two, or a division by it that is rounded down.

    ONNX shifts unsigned integers alone, which TensorRT has not. As in TensorFlow, nothing is shifted by less than 0
    or by all bits.
    """
    from onnx import TensorProto
    from tf2onnx import utils
    from tf2onnx.onnx_opset.math import BitShift

    dtype = graph.get_dtype(node.output[0])
    kind = np.dtype(utils.map_onnx_to_numpy_type(dtype))
    if kind.kind == "u":
        BitShift.version_11(graph, node)
        return
    (x, count), left, bits = node.input, node.type == "LeftShift", 8 * kind.itemsize
    wide, to = (np.int64, TensorProto.INT64) if bits == 64 else (np.int32, TensorProto.INT32)
    write = Writer(graph, node)
    zero, two = write.constant(np.zeros((), wide)), write.constant(np.full((), 2, wide))
    # The last is the sign bit alone, as numbers wrap around.
    powers = write.constant((np.uint64(1) << np.arange(bits, dtype=np.uint64)).astype(wide))
    x, count = (write.node("Cast", [one], to=to) for one in (x, count))
    count = write.node("Min", [write.node("Max", [count, zero]), write.constant(np.full((), bits - 1, wide))])
    if left:
        x = write.node("Mul", [x, write.node("Gather", [powers, count])])
    else:
        half = write.node("Div", [count, two])
        for part in (half, write.node("Sub", [count, half])):  # no part is the sign bit
            power = write.node("Gather", [powers, part])
            quotient = write.node("Div", [x, power])
            rest = write.node("Sub", [x, write.node("Mul", [quotient, power])])
            below = write.node("Cast", [write.node("Less", [rest, zero])], to=to)
            x = write.node("Sub", [quotient, below])
    write.result("Cast", [x], to=dtype)


def _one_hot(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """A comparison with each class; ONNX's `OneHot` takes negative numbers as counted from the end."""
    from onnx import TensorProto

    x, _depth, on, off = node.input
    shape, axis = graph.get_shape(x), int(node.get_attr_value("axis", -1))
    count = _fixed_size(node.inputs[1])
    if shape is None or count is None:
        return  # `check` refuses what stays
    axis = len(shape) if axis < 0 else axis
    write = Writer(graph, node)
    classes = np.arange(count).reshape([count] + [1] * (len(shape) - axis))
    column = write.node("Unsqueeze", [x, write.constant(np.array([axis], np.int64))])
    wide = write.node("Cast", [column], to=TensorProto.INT64)
    write.result("Where", [write.node("Equal", [wide, write.constant(classes)]), on, off])


def _pad(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """A pad of integers as integers; tf2onnx casts most types to floats, but neither the output nor what is filled in.

    Bytes stay bytes, as moves do that `byte_inputs` makes moves of floats.
    """
    from onnx import TensorProto
    from tf2onnx.onnx_opset.nn import Pad

    output, kind = node.output[0], graph.get_dtype(node.input[0])
    small = (TensorProto.BOOL, TensorProto.INT8, TensorProto.INT16, TensorProto.UINT16)
    wide = TensorProto.INT32 if kind in small else kind  # not all engines pad these
    if wide != kind:
        for name in (node.input[0], *node.input[2:]):
            graph.set_dtype(graph.insert_new_node_on_input(node, "Cast", name, to=wide).output[0], wide)
        back = graph.insert_new_node_on_output("Cast", output, to=kind).output[0]
        graph.set_dtype(back, kind)
        graph.copy_shape(output, back)
    node.type = "Pad"
    graph.set_dtype(output, TensorProto.INT32)  # one of those that tf2onnx adds no casts for
    Pad.version_11(graph, node)
    graph.set_dtype(output, wide)


def _marker(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """The ONNX operator that `layers.onnx_operator` put a marker for; any other Python function stays what it is."""
    token = node.get_attr_str("token")
    if not token.startswith(MARKER):
        return
    said = json.loads(token.removeprefix(MARKER))
    given = iter(node.input)
    inputs = [next(given) if present else "" for present in said["present"]]
    while inputs and not inputs[-1]:
        inputs.pop()
    Writer(graph, node).result(said["operator"], inputs, **said["attributes"])


def _reverse(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """A slice with negative steps; tf2onnx makes a `ReverseSequence` between transposes of it."""
    x = node.input[0]
    rank = len(graph.get_shape(x))
    axes = [int(axis) % rank for axis in node.inputs[1].get_tensor_value(as_list=False).flatten()]
    write = Writer(graph, node)
    # From the last element to the one before the first, which only a number below all indices can name.
    starts, ends, steps = (
        write.constant(np.full(len(axes), value, np.int64)) for value in (-1, np.iinfo(np.int32).min, -1)
    )
    write.result("Slice", [x, starts, ends, write.constant(np.array(axes, np.int64)), steps])


def _select(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """A choice; tf2onnx multiplies both sides by 0 and 1 and adds them, so that a NaN or infinity not chosen shows."""
    from onnx import TensorProto

    condition, x, y = node.input
    known, wanted = graph.get_shape(condition), graph.get_shape(node.output[0])
    write = Writer(graph, node)
    if node.type == "Select" and known is not None and wanted is not None and len(known) == 1 < len(wanted):
        # The older operator chooses whole rows.
        column = write.constant(np.array([-1] + [1] * (len(wanted) - 1), np.int64))
        condition = write.node("Reshape", [condition, column])
    if graph.get_dtype(x) == TensorProto.BOOL:  # ONNX Runtime chooses no booleans
        rest = write.node("And", [write.node("Not", [condition]), y])
        write.result("Or", [write.node("And", [condition, x]), rest])
    else:
        write.result("Where", [condition, x, y])


def _list_of_steps(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """The tensor that a loop reads its steps from; tf2onnx leaves the shape of a step behind as a second input."""
    if not any(one.is_while() for one in graph.find_output_consumers(node.output[0])):
        return  # no form in ONNX
    node.type = "Identity"
    graph.replace_inputs(node, [node.input[0]])
    graph.copy_dtype(node.input[0], node.output[0])
    graph.copy_shape(node.input[0], node.output[0])


def _top_k(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """The largest numbers in their own type; tf2onnx compares integers as floats, which have not digits enough."""
    from onnx import TensorProto

    x, count = node.input
    places, kind = node.output[1], graph.get_dtype(node.output[1])
    write = Writer(graph, node, keep=True)
    wide = write.node("Cast", [count], to=TensorProto.INT64)
    graph.replace_inputs(node, [x, write.node("Reshape", [wide, write.constant(np.array([1], np.int64))])])
    node.type = "TopK"
    cast = graph.insert_new_node_on_output("Cast", places, to=kind)
    graph.copy_shape(places, cast.output[0])
    graph.set_dtype(cast.output[0], kind)
    graph.set_dtype(places, TensorProto.INT64)
