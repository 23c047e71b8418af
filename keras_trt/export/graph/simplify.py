"""Shapes that need not be computed at run time, and products that need no reshapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

_OF_SHAPES = ("Shape", "Cast", "Concat", "Gather", "Identity", "ReduceProd", "Slice", "Squeeze", "Unsqueeze")


def shapes(graph: Any) -> None:
    """Give each reshape a constant shape where at most one size is open; what computed the shape falls away."""
    for node in graph.all_nodes():
        if node.op_type != "Reshape" or constant(node.inputs[1]) is not None:
            continue
        told, computed = known_sizes(node.outputs[0]), numbers(node.inputs[1])
        if computed is not None:
            computed = [None if one == -1 else one for one in computed]  # a reshape's word for an open size
        if told is not None and computed is not None:
            sizes = [one if one is not None else other for one, other in zip(told, computed, strict=True)]
        else:
            sizes = told or computed or []
        if not sizes or sum(size is None for size in sizes) > 1 or 0 in sizes:
            continue
        target = new_constant(node.graph, np.array([-1 if size is None else size for size in sizes], np.int64))
        node.replace_input_with(1, target)


def sizes(graph: Any) -> None:
    """Make constants of what is computed from the known sizes of tensors of open shapes, such as their channels."""
    for node in list(graph.all_nodes()):
        if node.op_type not in ("Shape", "Slice", "Gather", "Squeeze", "Unsqueeze", "ReduceProd"):
            continue
        output = node.outputs[0]
        found, shape = numbers(output), known_sizes(output)
        if found is None or None in found or shape is None or None in shape or output.dtype is None:
            continue
        if not output.dtype.is_integer() or output.is_graph_output():
            continue
        array = np.array(found, output.dtype.numpy()).reshape([size or 0 for size in shape])
        output.replace_all_uses_with(new_constant(node.graph, array))


def numbers(value: Any) -> list[int | None] | None:
    """Return the numbers that a computed shape holds, `None` for each that is not known before the run.

    Returns:
        `None` where not even their count is known.
    """
    array = constant(value)
    if array is not None:
        return [int(one) for one in array.reshape(-1)] if array.ndim <= 1 and array.size <= 16 else None
    node = value.producer()
    # A list of whole numbers, or one: what else is computed here would be followed through the whole model.
    listed = value.dtype is not None and value.dtype.is_integer() and len(known_sizes(value) or ()) <= 1
    if node is None or not listed or node.op_type not in _OF_SHAPES:
        return None
    if node.op_type == "Shape" and not node.attributes:
        return known_sizes(node.inputs[0])
    parts = [numbers(one) if one is not None else None for one in node.inputs]
    first = parts[0]
    if node.op_type == "Concat":
        return None if None in parts else [one for part in parts for one in part or ()]
    if first is None:
        return None
    if node.op_type in ("Cast", "Squeeze", "Unsqueeze", "Identity"):
        return first
    places = parts[1] if len(parts) > 1 else None
    if node.op_type == "Gather" and places is not None and None not in places:
        return [first[int(place or 0)] for place in places]
    if node.op_type == "Slice" and len(parts) >= 4 and parts[3] == [0]:
        start, stop, step = (part[0] if part else None for part in (parts[1], parts[2], [*parts, [1]][4]))
        return None if None in (start, stop, step) else first[slice(start, stop, step)]
    if node.op_type == "ReduceProd":
        return [None if None in first else int(np.prod([int(one or 0) for one in first]))]
    return None


def products(graph: Any) -> None:
    """Make one `MatMul` of reshape to two axes, `MatMul`, reshape back: TensorFlow's form of a dense layer.

    ONNX's `MatMul` takes any number of axes on the left.
    """
    for node in list(graph.all_nodes()):
        if node.op_type != "MatMul":
            continue
        before, after = node.inputs[0].producer(), only_user(node.outputs[0])
        if before is None or after is None or (before.op_type, after.op_type) != ("Reshape", "Reshape"):
            continue
        if after.inputs[0] is not node.outputs[0]:
            continue
        x, kernel, output = before.inputs[0], node.inputs[1], after.outputs[0]
        sizes, flat, kernel_sizes = known_sizes(x), constant(before.inputs[1]), known_sizes(kernel)
        if sizes is None or flat is None or kernel_sizes is None or len(kernel_sizes) != 2 or len(sizes) < 2:
            continue
        if list(flat) != [-1, sizes[-1]] or kernel_sizes[0] != sizes[-1]:
            continue
        if not _restores(after.inputs[1], x, sizes, kernel_sizes[1]):
            continue
        product = ir.node("MatMul", [x, kernel], name=f"{node.name}/product")
        product.outputs[0].type, product.outputs[0].shape = output.type, output.shape
        node.graph.insert_before(after, product)
        replace(output, product.outputs[0])


def rows(graph: Any) -> None:
    """Give the product with a matrix two axes, all but the last of what has more than three made one.

    TensorRT 8.6 (Myelin) takes every axis but the last two for a batch, and multiplies each row of an image by itself:
    a block of ConvNeXtTiny for 32 images of 7 x 7 takes 361 µs of an H200, and 72 so. As 32 matrices of 49 rows it
    takes 91. Three axes stay, as attention is written on them: BERT's layers take as long with 8 to 128 rows to each.
    """
    for node in list(graph.all_nodes()):
        if node.op_type != "MatMul":
            continue
        (x, kernel), output = node.inputs, node.outputs[0]
        sizes, kernel_sizes = known_sizes(x), known_sizes(kernel)
        if sizes is None or kernel_sizes is None or len(sizes) <= 3 or len(kernel_sizes) != 2:
            continue
        wide, high = kernel_sizes[1], sizes[-1]
        if sizes[:-1].count(None) > 1 or wide is None or high is None or 0 in sizes:
            continue
        shape = [-1 if size is None else size for size in (*sizes[:-1], wide)]
        two, many = (new_constant(node.graph, np.array(one, np.int64)) for one in ([-1, high], shape))
        flat = insert(node, "Reshape", [x, two], {}, x, ir.Shape([None, high]))
        product = insert(node, "MatMul", [flat, kernel], {}, output, ir.Shape([None, wide]))
        back = insert(node, "Reshape", [product, many], {}, output, output.shape)
        replace(output, back)


def _restores(shape: Any, x: Any, sizes: list[int | None], columns: int | None) -> bool:
    """Tell whether `shape` is that of `x` with another last size."""
    target = constant(shape)
    wanted = [-1 if size is None else size for size in [*sizes[:-1], columns]]
    if target is not None:
        # With one open size, equal known sizes leave no choice for it.
        return list(target) == wanted and wanted.count(-1) <= 1
    parts = _source(shape)
    if parts is None or parts.op_type != "Concat" or len(parts.inputs) != 2:
        return False
    gather, last = _source(parts.inputs[0]), constant(parts.inputs[1])
    if gather is None or gather.op_type != "Gather" or last is None or list(last) != [columns]:
        return False
    whole, axes = _source(gather.inputs[0]), constant(gather.inputs[1])
    return (
        whole is not None
        and whole.op_type == "Shape"
        and whole.inputs[0] is x
        and axes is not None
        and list(axes) == list(range(len(sizes) - 1))
    )


def constant(value: Any) -> np.ndarray[Any, Any] | None:
    """Return the content of a value that is an initializer with data, else `None`."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    array: np.ndarray[Any, Any] = value.const_value.numpy()
    return array


def known_sizes(value: Any) -> list[int | None] | None:
    """Return the sizes of a value, `None` for each that is open; `None` where not even their number is known."""
    if value.shape is None:
        return None
    return [size if isinstance(size, int) else None for size in value.shape]


def new_constant(graph: Any, array: np.ndarray[Any, Any]) -> Any:
    """Return a new initializer of a graph."""
    number = len(graph.initializers)
    while (name := f"keras_trt_constant_{number}") in graph.initializers:
        number += 1
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=name),
    )
    graph.register_initializer(value)
    return value


def insert(before: Any, operator: str, inputs: Sequence[Any], attributes: Any, like: Any, shape: Any) -> Any:
    """Put a node in front of another and return its output, of the type of `like`."""
    node = ir.node(operator, list(inputs), attributes, name=f"{before.name}/{operator.lower()}")
    node.outputs[0].type, node.outputs[0].shape = like.type, shape
    before.graph.insert_before(before, node)
    return node.outputs[0]


def replace(old: Any, new: Any) -> None:
    """Put a value in the place of another. An output of a graph keeps its name, by an identity.

    Args:
        old: an output of a node.
        new: any value that this node can see.
    """
    if not old.is_graph_output():
        old.replace_all_uses_with(new)
        return
    node = old.producer()
    same = ir.node("Identity", [new], name=f"{node.name}/same")
    node.graph.insert_after(node, same)
    same.outputs[0].type, same.outputs[0].shape = old.type, old.shape
    name, old.name = old.name, None
    same.outputs[0].name = name
    old.replace_all_uses_with(same.outputs[0], replace_graph_outputs=True)


def identities(graph: Any) -> None:
    """Remove the nodes that change nothing, but for those that give an output which something else makes.

    An output of a branch or a loop's body must be made in it: it may be a value of the graph around it elsewhere.
    """
    for node in list(graph.all_nodes()):
        if node.op_type != "Identity":
            continue
        source, output = node.inputs[0], node.outputs[0]
        if output.is_graph_output():
            made = source.producer()
            if made is None or made.graph is not node.graph or source.is_graph_output():
                continue
            source.name, output.name = output.name, None
        if source.shape is None:
            source.shape = output.shape
        if source.type is None:
            source.type = output.type
        output.replace_all_uses_with(source, replace_graph_outputs=True)
        node.graph.remove(node, safe=True)


def only_user(value: Any) -> Any:
    """Return the one node that reads a value, where it is in the same graph; else `None`."""
    users = value.uses()
    if len(users) != 1 or value.is_graph_output() or users[0].node.graph is not value.producer().graph:
        return None
    return users[0].node


def _source(value: Any) -> Any:
    """Return the node that computes a value, casts left out: those of shapes lose nothing."""
    node = value.producer()
    while node is not None and node.op_type == "Cast":
        node = node.inputs[0].producer()
    return node
