"""How large the numbers in a graph become."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from .._subgraphs import all_nodes, subgraphs
from .lower import lower
from .types import tensor_types

Array = np.ndarray[Any, np.dtype[Any]]

#: Half of float16's largest number: other rows than those that were looked at may have larger ones.
_LARGEST = 65504 / 2


def overflowing(onnx: bytes, feeds: Mapping[str, Array]) -> frozenset[str]:
    """Return the names of the nodes that would be in float16 and read or make numbers that are too large for it.

    Of a loop or a branch that does, these are all the nodes inside: what they make cannot be seen.

    Args:
        onnx: a serialized float32 `onnx.ModelProto`.
        feeds: rows for its inputs; the graph is run on them by ONNX Runtime.
    """
    import onnx as onnx_package

    graph = onnx_package.load_from_string(onnx).graph
    half = {name for name, kind in tensor_types(lower(onnx, "fp16")).items() if kind == "float16"}
    names = {output.name for output in graph.output}
    # An output of the graph is cast to float32 under its own name.
    candidates = [node for node in graph.node if any(one in half or one in names for one in node.output)]
    reached = largest(onnx, feeds)
    large = {name for name, value in reached.items() if value > _LARGEST}
    found = {node.name for node in candidates if large.intersection((*node.input, *node.output))}
    for node in graph.node:
        if large.intersection((*node.input, *node.output)):
            found.update(inner.name for inner in all_nodes(subgraphs(node)))
    return frozenset(found)


def largest(onnx: bytes, feeds: Mapping[str, Array]) -> dict[str, float]:
    """Return the largest magnitude of each float32 tensor that a node of a graph's top level makes.

    Args:
        onnx: a serialized float32 `onnx.ModelProto`.
        feeds: rows for its inputs.
    """
    import onnx as onnx_package
    import onnxruntime

    proto = onnx_package.load_from_string(onnx)
    types = tensor_types(onnx)
    made = [name for node in proto.graph.node for name in node.output if types.get(name) == "float32"]
    read = [value.name for value in proto.graph.input if types.get(value.name) == "float32"]
    outputs = []
    for i, name in enumerate([*read, *made]):  # as numbers, not as tensors: those would all be kept in memory
        proto.graph.node.add(op_type="Abs", input=[name], output=[f"magnitude_{i}"], name=f"magnitude_{i}")
        proto.graph.node.add(
            op_type="ReduceMax", input=[f"magnitude_{i}"], output=[f"largest_{i}"], name=f"largest_{i}"
        ).attribute.append(onnx_package.helper.make_attribute("keepdims", 0))
        outputs.append(onnx_package.helper.make_tensor_value_info(f"largest_{i}", onnx_package.TensorProto.FLOAT, []))
    del proto.graph.output[:]
    proto.graph.output.extend(outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})
    return {name: float(value) for name, value in zip([*read, *made], found, strict=True)}


def values_of(onnx: bytes, feeds: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array]:
    """Return float tensors inside a graph, as ONNX Runtime computes them.

    Args:
        onnx: a serialized `onnx.ModelProto`.
        feeds: rows for its inputs.
        wanted: names of tensors; those of other types are left out.
    """
    import onnx as onnx_package
    import onnxruntime

    proto = onnx_package.load_from_string(onnx)
    types = tensor_types(onnx)
    names = [name for name in wanted if types.get(name) in ("float32", "float16")]
    del proto.graph.output[:]
    for name in names:
        kind = onnx_package.helper.np_dtype_to_tensor_dtype(np.dtype(types[name]))
        proto.graph.output.append(onnx_package.helper.make_tensor_value_info(name, kind, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {value.name: feeds[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(None, given), strict=True))
