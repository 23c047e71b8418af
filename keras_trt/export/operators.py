"""TensorFlow operators for which tf2onnx has no handler, written in operators that ONNX has."""

from __future__ import annotations

from typing import Any

import numpy as np


def handlers() -> dict[str, Any]:
    """Return tf2onnx handlers by TensorFlow operator."""
    return {"Bucketize": (_bucketize, []), "Erfc": (_erfc, []), "Expm1": (_expm1, [])}


def _bucketize(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """Count the boundaries that x is not below, as in `Discretization`: NaN is above all of them, as in TensorFlow."""
    from onnx import TensorProto
    from tf2onnx import utils

    shapes, dtypes = [graph.get_shape(node.output[0])], [graph.get_dtype(node.output[0])]
    boundaries = np.array(node.get_attr_value("boundaries"), np.float32)
    x, outputs, name = node.input[0], node.output, node.name
    graph.remove_node(node.name)

    def step(operator: str, inputs: list[str], **more: Any) -> str:
        made = graph.make_node(operator, inputs, name=utils.make_name(name), **more)
        return str(made.output[0])

    def constant(value: Any) -> str:
        return str(graph.make_const(utils.make_name(f"{name}/constant"), value).output[0])

    last = constant(np.array([-1], np.int64))
    column = step("Unsqueeze", [step("Cast", [x], attr={"to": TensorProto.FLOAT}), last])
    reached = step("Not", [step("Less", [column, constant(boundaries)])])
    counts = step("Cast", [reached], attr={"to": TensorProto.INT32})
    graph.make_node(
        "ReduceSum", [counts, last], attr={"keepdims": 0}, outputs=outputs, name=name, shapes=shapes, dtypes=dtypes
    )


def _erfc(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """erfc(x) = 1 - erf(x), as in the exact GELU."""
    _replace(graph, node, "Erf", "Sub", constant_first=True)


def _expm1(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """expm1(x) = exp(x) - 1. Near 0 its relative error grows as 1e-7 / x; what it is added to in ELUs hides that."""
    _replace(graph, node, "Exp", "Sub", constant_first=False)


def _replace(graph: Any, node: Any, inner: str, outer: str, *, constant_first: bool) -> None:
    """Replace `node(x)` by `outer(1, inner(x))`, or `outer(inner(x), 1)`."""
    from tf2onnx import utils

    shapes, dtypes = [graph.get_shape(node.output[0])], [graph.get_dtype(node.output[0])]
    one = graph.make_const(utils.make_name(f"{node.name}/one"), np.ones((), utils.map_onnx_to_numpy_type(dtypes[0])))
    x, outputs, name = node.input[0], node.output, node.name
    graph.remove_node(node.name)
    middle = graph.make_node(inner, [x], name=utils.make_name(name), shapes=shapes, dtypes=dtypes)
    operands = [one.output[0], middle.output[0]] if constant_first else [middle.output[0], one.output[0]]
    graph.make_node(outer, operands, outputs=outputs, name=name, shapes=shapes, dtypes=dtypes)
