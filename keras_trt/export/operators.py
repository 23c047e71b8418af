"""TensorFlow operators for which tf2onnx has no handler, written in operators that ONNX has."""

from __future__ import annotations

from typing import Any

import numpy as np


def handlers() -> dict[str, Any]:
    """Return tf2onnx handlers by TensorFlow operator."""
    return {"Erfc": (_erfc, []), "Expm1": (_expm1, [])}


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
