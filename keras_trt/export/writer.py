"""How a handler of tf2onnx writes ONNX nodes in the place of one of TensorFlow's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class Writer:
    """Writes the nodes that stand for one node of TensorFlow.

    Args:
        graph: tf2onnx's graph.
        node: the node.
        keep: whether it stays. Else it is removed, and `result` gives what it gave.
    """

    def __init__(self, graph: Any, node: Any, *, keep: bool = False) -> None:
        self._graph, self._name, self._outputs = graph, node.name, list(node.output)
        self._shapes = [graph.get_shape(one) for one in node.output]
        self._dtypes = [graph.get_dtype(one) for one in node.output]
        if not keep:
            graph.remove_node(node.name)

    def constant(self, value: Any) -> str:
        """Return the name of a new constant."""
        from tf2onnx import utils

        return str(self._graph.make_const(utils.make_name(f"{self._name}/constant"), np.asarray(value)).output[0])

    def one(self) -> str:
        """Return the name of a 1 of the type of the result."""
        from tf2onnx import utils

        return self.constant(np.ones((), utils.map_onnx_to_numpy_type(self._dtypes[0])))

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Write a node with one output and return the name of that."""
        from tf2onnx import utils

        made = self._graph.make_node(operator, list(inputs), attr=attributes, name=utils.make_name(self._name))
        return str(made.output[0])

    def result(self, operator: str, inputs: Sequence[str], **attributes: Any) -> None:
        """Write the node that gives what the removed one gave, under its names."""
        self._graph.make_node(
            operator,
            list(inputs),
            attr=attributes,
            name=self._name,
            outputs=self._outputs,
            shapes=self._shapes,
            dtypes=self._dtypes,
        )
