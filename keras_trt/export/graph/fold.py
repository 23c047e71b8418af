"""Batch normalization into the convolution before it, in the weights: nothing is left of it to run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .simplify import known_sizes, new_constant, only_user, replace


def scales_into_convolutions(graph: Any, fixed: Collection[Any]) -> None:
    """Fold what multiplies, and is added to, each channel of a convolution into its kernel and bias.

    Args:
        graph: a sorted `onnx_ir.Graph`, after `layout.sink_transposes`: channels are axis 1.
        fixed: values that follow from weights and constants alone; what is made of them is added.
    """
    fixed = set(fixed)
    for node in list(graph):
        if node.op_type == "Conv" and node.inputs[1] in fixed:
            while _fold_one(node, fixed):
                pass


def _fold_one(node: Any, fixed: set[Any]) -> bool:
    output, user = node.outputs[0], only_user(node.outputs[0])
    if user is None or user.op_type not in ("Mul", "Add") or len(user.inputs) != 2:
        return False
    vector = user.inputs[1] if user.inputs[0] is output else user.inputs[0]
    kernel, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    sizes, kernel_sizes = known_sizes(vector), known_sizes(kernel)
    if vector not in fixed or sizes is None or kernel_sizes is None or (bias is not None and bias not in fixed):
        return False
    graph, rank, channels = node.graph, len(kernel_sizes), kernel_sizes[0]
    if channels is None or [1] * (rank - len(sizes)) + sizes != [1, channels] + [1] * (rank - 2):
        return False

    def made(operator: str, inputs: list[Any], shape: Sequence[int | None]) -> Any:
        new = ir.node(operator, inputs, name=f"{user.name}/{operator.lower()}")
        new.outputs[0].type, new.outputs[0].shape = output.type, ir.Shape(shape)
        graph.insert_before(node, new)
        fixed.add(new.outputs[0])
        return new.outputs[0]

    def reshaped(shape: Sequence[int]) -> Any:
        return made("Reshape", [vector, new_constant(graph, np.array(shape, np.int64))], shape)

    flat = reshaped([channels])
    if user.op_type == "Mul":
        kernel = made("Mul", [kernel, reshaped([channels] + [1] * (rank - 1))], kernel_sizes)
        bias = None if bias is None else made("Mul", [bias, flat], [channels])
    else:
        bias = flat if bias is None else made("Add", [bias, flat], [channels])
    node.replace_input_with(1, kernel)
    if bias is not None:
        node.resize_inputs(3)
        node.replace_input_with(2, bias)
    replace(user.outputs[0], output)
    graph.remove(user, safe=True)
    return True
