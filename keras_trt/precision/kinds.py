"""Which nodes of a graph compute in half precision, and which in float32 so that the answers stay right."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

#: Where the time goes: these start computing in half, whatever the type of what they read.
_ANCHORS = frozenset(("Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"))

#: Places of what is added to a product: an operator, and which of its inputs.
_BIASES = frozenset((("Conv", 2), ("ConvTranspose", 2), ("Gemm", 2)))
#: What makes much of a small number, or of whether it is 0.
_AMPLIFYING = frozenset((
    "Div", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "Log", "LpNormalization",
    "MeanVarianceNormalization", "Pow", "Reciprocal", "Sqrt",
))  # fmt: skip

# fmt: off
#: What adds up many numbers, or whose results or needed exactness leave the range of float16 for ordinary arguments.
#: LayerNormalization takes its statistics in float32 by itself (`stash_type`), but Myelin of TensorRT 8.6 cannot
#: multiply what it has normalized in float32 by a scale in half, and finds no implementation of the whole network.
_FULL = frozenset((
    "CumSum", "Exp", "GlobalAveragePool", "GlobalLpPool", "GridSample", "GroupNormalization", "InstanceNormalization",
    "LayerNormalization", "Log", "LogSoftmax", "LpNormalization", "MeanVarianceNormalization", "NonMaxSuppression",
    "Pow", "Range", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd",
    "ReduceSum", "ReduceSumSquare", "RoiAlign", "Softmax", "TopK",
))
#: What may lead up to such a node and then belongs to it: the square under a variance, the mask before a softmax.
_LEADS_UP = frozenset((
    "Abs", "Add", "Div", "Expand", "Mul", "Neg", "Reshape", "Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze",
    "Where",
))
# fmt: on


def halves(nodes: Collection[Any], low: Any, opset: int, keep: Collection[str]) -> set[Any]:
    """Return the nodes that compute in half precision.

    - A node stays in float32 where its operator has no form in half at this opset, is one of those that need float32,
      has a constant that half cannot hold (an epsilon, a mask of -1e9), or is named in `keep`. A bias may be too small
      for half, if nothing up to the next products makes much of it: it is off by no more than the sum in half is.
    - Between such nodes and the graph's inputs all stays in float32 up to the first product or convolution: inputs may
      have any scale, and what comes out of a float32 node is rounded only where it is needed in half.
    - Arithmetic that only float32 nodes read is float32 too.

    Args:
        nodes: sorted `onnx_ir` nodes, those of subgraphs included, with the types of their values.
        low: the `onnx_ir.DataType` of half precision.
        opset: of the graph.
        keep: names of nodes.
    """
    fixed = _fixed(nodes)
    free, found = set(), set()
    for node in nodes:
        slots = list(low_slots(node, low, opset))
        constants = [(place, value) for place, value in slots if value.const_value is not None]
        if (
            output_in_half(node, low, opset)
            and node.op_type not in _FULL
            and node.name not in keep
            and not _refused_by_tensorrt(node, low)
            and all(_may_be_half(node, place, value, low) for place, value in constants)
        ):
            found.add(node)
            if node.op_type not in _ANCHORS:
                free.add(node)
    changed = True
    while changed:
        settled = {
            node
            for node in free
            if _only_full_inputs(node, low, opset, found, fixed) or _only_full_readers(node, low, opset, found)
        }
        changed = bool(settled)
        found -= settled
        free -= settled
    return found


def output_in_half(node: Any, low: Any, opset: int) -> bool:
    """Tell whether a node's float32 output can be of a half type by the operator's definition.

    That of a loop or a branch cannot: what it is of is said by the graphs inside, whose borders are float32.
    """
    schema = _schema(node, opset)
    if schema is None or not node.outputs or not is_float(node.outputs[0]) or _has_graphs(node):
        return False
    variable = schema.outputs[0].type_str
    by_inputs = any(formal.type_str == variable for formal in schema.inputs)  # and not by an attribute, as of Cast
    return by_inputs and node.op_type != "CastLike" and _allowed(schema, variable, low)


def low_slots(node: Any, low: Any, opset: int) -> Iterator[tuple[int, Any]]:
    """Yield place and value of each float32 input that has, by definition, the type of the first output."""
    schema = _schema(node, opset)
    if schema is None or not _allowed(schema, schema.outputs[0].type_str, low):
        return
    for i, value in enumerate(node.inputs):
        formal = schema.inputs[min(i, len(schema.inputs) - 1)]
        if value is not None and is_float(value) and formal.type_str == schema.outputs[0].type_str:
            yield i, value


def low_outputs(node: Any, opset: int) -> Iterator[Any]:
    """Yield the float32 outputs that have, by definition, the type of the first."""
    schema = _schema(node, opset)
    for i, value in enumerate(node.outputs):
        formal = schema.outputs[min(i, len(schema.outputs) - 1)]
        if is_float(value) and formal.type_str == schema.outputs[0].type_str:
            yield value


def is_float(value: Any) -> bool:
    """Tell whether a value is of float32."""
    import onnx_ir as ir

    return bool(value.dtype == ir.DataType.FLOAT)


def _has_graphs(node: Any) -> bool:
    return any(attribute.type.name in ("GRAPH", "GRAPHS") for attribute in node.attributes.values())


def _schema(node: Any, opset: int) -> Any:
    import onnx

    if node.domain:
        return None
    return onnx.defs.get_schema(node.op_type, opset) if onnx.defs.has(node.op_type) else None


def _allowed(schema: Any, variable: str, low: Any) -> bool:
    wanted = f"tensor({low.name.lower()})"
    return any(one.type_param_str == variable and wanted in one.allowed_type_strs for one in schema.type_constraints)


def _refused_by_tensorrt(node: Any, low: Any) -> bool:
    """Tell whether TensorRT does not take an operator in half.

    Its parser masks sequence lengths with float32 zeros, and writes the update gate of a GRU with a float32 one that
    it turns into float16, but not into bfloat16. TensorRT-RTX 1.7 builds no deconvolution in bfloat16.
    """
    lengths = node.op_type in ("LSTM", "GRU", "RNN") and len(node.inputs) > 4 and node.inputs[4] is not None
    return lengths or (node.op_type in ("ConvTranspose", "GRU") and low.name == "BFLOAT16")


def _may_be_half(node: Any, place: int, constant: Any, low: Any) -> bool:
    array = constant.const_value.numpy()
    if _fits(array, low):
        return True
    return _is_bias(node, place, constant) and _stays_finite(array, low) and not _is_amplified(node)


def _is_bias(node: Any, place: int, constant: Any) -> bool:
    if (node.op_type, place) in _BIASES:
        return node.op_type != "Gemm" or "beta" not in node.attributes or node.attributes["beta"].as_float() == 1
    if node.op_type != "Add" or constant.const_value.size == 1:  # a single number may be an epsilon
        return False
    (other,) = (value for i, value in enumerate(node.inputs) if i != place)
    return other.producer() is not None and other.producer().op_type in _ANCHORS


def _is_amplified(node: Any) -> bool:
    """Tell whether what a node gives is read, up to the next products, by what makes much of small numbers.

    What is given back is: what becomes of it is not known.
    """
    seen, waiting = set(), list(node.outputs)
    while waiting:
        value = waiting.pop()
        if value.is_graph_output():
            return True
        for reader, _ in value.uses():
            if reader.op_type in _AMPLIFYING:
                return True
            if reader.op_type not in _ANCHORS and reader not in seen:
                seen.add(reader)
                waiting.extend(reader.outputs)
    return False


def _stays_finite(array: Any, low: Any) -> bool:
    """Tell whether no number of a constant becomes infinite in half."""
    with np.errstate(over="ignore"):  # it is what is looked for
        rounded = array.astype(low.numpy())
    return bool(np.array_equal(np.isfinite(rounded), np.isfinite(array)))


def _fits(array: Any, low: Any) -> bool:
    """Tell whether a constant is still itself in half: no number becomes infinite, nor do they vanish as a whole."""
    import ml_dtypes

    info = ml_dtypes.finfo(low.numpy())  # type: ignore[no-untyped-call]
    if _surely_fits(array, info):
        return True
    with np.errstate(over="ignore"):  # it is what is looked for
        rounded = array.astype(low.numpy())
    finite = np.isfinite(rounded)
    if not finite.all():
        if not np.array_equal(finite, np.isfinite(array)):
            return False
        array, rounded = array[finite], rounded[finite]
    exact = array.astype(np.float64)
    lost = np.linalg.norm(rounded.astype(np.float64) - exact)
    # Rounding loses half of this at most, of numbers that are not below the type's range.
    return bool(lost <= float(info.eps) * np.linalg.norm(exact))


def _surely_fits(array: Any, info: Any) -> bool:
    """Tell at a tenth of the time, of nearly all weights, that they fit.

    What is below the range is off by half of the smallest number at most, which is `eps` of the smallest normal one: no
    more than rounding loses, where the root of the mean square is above that. Twice it is asked for, as that root is
    rounded itself.
    """
    if array.size < 2:
        return False
    flat, limit = array.reshape(-1), float(info.max)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(
            -limit <= flat.min()
            and flat.max() <= limit
            and np.sqrt(np.dot(flat, flat) / flat.size) >= 2 * float(info.smallest_normal)
        )


def _fixed(nodes: Collection[Any]) -> set[Any]:
    """Return the values that depend on no input."""
    found: set[Any] = set()
    for node in nodes:
        known = all(one is None or one.const_value is not None or one in found for one in node.inputs)
        if known and not _has_graphs(node):
            found.update(node.outputs)
    return found


def _only_full_inputs(node: Any, low: Any, opset: int, found: set[Any], fixed: set[Any]) -> bool:
    moving = [value for _, value in low_slots(node, low, opset) if value.const_value is None and value not in fixed]
    return bool(moving) and not any(_is_half(value, opset, found) for value in moving)


def _is_half(value: Any, opset: int, found: set[Any]) -> bool:
    producer = value.producer()
    return producer in found and any(value is one for one in low_outputs(producer, opset))


def _only_full_readers(node: Any, low: Any, opset: int, found: set[Any]) -> bool:
    if node.op_type not in _LEADS_UP or any(value.is_graph_output() for value in node.outputs):
        return False
    # A node with an array of constants, such as a bias, is the end of the layer before, and fused with it.
    constants = [value for _, value in low_slots(node, low, opset) if value.const_value is not None]
    if any(value.const_value.size > 1 for value in constants):
        return False
    readers = [user for value in node.outputs for user, _ in value.uses()]
    return bool(readers) and not any(reader in found for reader in readers)
