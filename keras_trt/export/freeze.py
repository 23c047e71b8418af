"""A traced function → a graph of constants and plain operators, which tf2onnx can convert."""

from __future__ import annotations

from typing import Any

# Attributes by which a call of a function asks to be compiled by XLA, and so not to be inlined.
_XLA = ("_XlaMustCompile", "_noinline")


def freeze(function: Any) -> tuple[Any, list[str]]:
    """Put the values of variables and captured tensors into a function's graph.

    A call that Keras has compiled with XLA (grouped convolutions, on a CPU) would stay a call; as a plain one it is
    inlined later.

    Args:
        function: a TensorFlow `ConcreteFunction`.

    Returns:
        The `GraphDef`, and the names of its outputs.
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
    from tf2onnx import tf_loader

    plain = function.graph.as_graph_def(add_shapes=True)
    if not function.captured_inputs and not plain.library.function:
        return plain, [output.name for output in function.outputs]  # nothing to put in, nothing to inline
    frozen = convert_variables_to_constants_v2(function, lower_control_flow=False, aggressive_inlining=True)
    graph = tf_loader.fix_freezing_errors_part2(frozen.graph.as_graph_def(add_shapes=True))
    for node in graph.node:
        if node.op in ("PartitionedCall", "StatefulPartitionedCall"):
            _let_inline(node.attr)
    for definition in graph.library.function:
        _let_inline(definition.attr)
    return graph, [output.name for output in frozen.outputs]


def _let_inline(attributes: Any) -> None:
    for name in _XLA:
        if name in attributes:
            del attributes[name]
