"""The types of all tensors of a graph."""

from __future__ import annotations


def tensor_types(onnx: bytes) -> dict[str, str]:
    """Return the type of each tensor of a graph's top level, as numpy's name.

    Args:
        onnx: a serialized `onnx.ModelProto`.
    """
    import onnx as onnx_package

    proto = onnx_package.shape_inference.infer_shapes(onnx_package.load_from_string(onnx))
    graph = proto.graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return {name: onnx_package.helper.tensor_dtype_to_np_dtype(kind).name for name, kind in types.items() if kind}
