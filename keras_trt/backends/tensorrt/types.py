"""The tensor types of a network: ordered where TensorRT would choose them, and proved to be as asked.

TensorRT 10, 11 and RTX take a network's types from the graph. 8.6 chooses them by time and has to be told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...errors import EngineLoadError, PrecisionError
from ...options import Precision

_NUMPY = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}

# A graph's types that a network must have. Sizes and indices are not among them: parsers choose their integers.
_PROVED = ("bfloat16", "float16", "float32", "float8_e4m3fn", "int8")
# How the inspector writes the types that a builder is told to use.
_WRITTEN = {"fp16": ("fp16", "half"), "int8": ("int8",)}

# Where the time goes. What is in half between them is 8.6's to choose: it fuses that with what is around it, and where
# it must obey there too, it has no form for whole blocks of networks (ConvNeXt), or slow ones.
_PRODUCTS = (
    "CONVOLUTION",
    "DECONVOLUTION",
    "EINSUM",
    "FULLY_CONNECTED",
    "MATRIX_MULTIPLY",
    "RNN_V2",
)
# Layers that move or make data, or steer control flow: 8.6 refuses an order for some of them, and has no form that
# obeys it for others (Identity: TensorRT#2761; Shuffle: #2407). A cast's type is its meaning. A normalization takes its
# statistics in float32 by itself; under an order Myelin multiplies what is normalized in float32 by a scale in half,
# and finds no type for that.
_NOT_ORDERED = (
    "ASSERTION",
    "CAST",
    "CONCATENATION",
    "CONDITION",
    "CONDITIONAL_INPUT",
    "CONDITIONAL_OUTPUT",
    "CONSTANT",
    "DEQUANTIZE",
    "FILL",
    "GATHER",
    "IDENTITY",
    "ITERATOR",
    "LOOP_OUTPUT",
    "NORMALIZATION",
    "QUANTIZE",
    "RECURRENCE",
    "SHAPE",
    "SHUFFLE",
    "SLICE",
    "TRIP_LIMIT",
)
# The widest window of a depthwise convolution that 8.6 is told to compute in half. One of 7 x 7 takes it 169 µs of an
# H200 for 32 x 56 x 56 x 96, and 70 for 32 x 14 x 14 x 384; in float32 124 and 39. One of 5 x 5 takes 54 for the first.
_WIDEST = 5
# The inspector's names of layers that compute nothing, and of what Myelin has compiled, whose inside it does not show.
_MOVES = ("cast", "constant", "noop", "reformat", "shape", "shuffle", "signal", "slice", "wait")
_OPAQUE = ("foreignnode", "myelin")


def numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the numpy type of a TensorRT data type.

    Raises:
        EngineLoadError: for types that numpy does not have.
    """
    if dtype.name not in _NUMPY or dtype.name in ("BF16", "FP8"):
        raise EngineLoadError(f"An input or output of the engine has the type {dtype.name}, which numpy does not have.")
    return np.dtype(_NUMPY[dtype.name])


def ordered(types: Mapping[str, str], onnx: bytes) -> dict[str, str]:
    """Return those of a graph's types that 8.6 has to obey, left out what it may compute faster in float32.

    Args:
        types: numpy type names by tensor name.
        onnx: the typed graph.
    """
    import onnx as onnx_package

    free = set()
    for node in onnx_package.load_from_string(onnx).graph.node:
        if node.op_type != "Conv":
            continue
        has = {one.name: onnx_package.helper.get_attribute_value(one) for one in node.attribute}
        if has.get("group", 1) > 1 and max(has.get("kernel_shape", [0])) > _WIDEST:
            free.update(node.output)
    return {name: kind for name, kind in types.items() if name not in free or kind != "float16"}


def order_types(trt: Any, network: Any, types: Mapping[str, str]) -> int:
    """Tell a weakly typed network, layer by layer, to have the types of the typed graph.

    All that is in float32 there must be; of what is in half, products and convolutions.

    Args:
        trt: the TensorRT module.
        network: a parsed network without strong typing.
        types: numpy type names by tensor name, of the typed ONNX graph.

    Returns:
        How many layers were told to compute in half precision.
    """
    wanted = {"float16": trt.DataType.HALF, "float32": trt.DataType.FLOAT}
    kinds = trt.LayerType.__members__
    exempt = {kind for name, kind in kinds.items() if name in _NOT_ORDERED}
    products = {kind for name, kind in kinds.items() if name in _PRODUCTS}
    halves = 0
    for layer in _layers(network):
        if layer.type in exempt or _computes_shapes(layer):
            continue
        for index in range(layer.num_outputs):
            tensor = layer.get_output(index)
            dtype = wanted.get(types.get(tensor.name, ""))
            if dtype is None or tensor.is_shape_tensor or (dtype == trt.DataType.HALF and layer.type not in products):
                continue
            if hasattr(layer, "precision") and hasattr(layer, "set_output_type"):
                layer.precision = dtype
                layer.set_output_type(index, dtype)
                halves += dtype == trt.DataType.HALF
    return halves


def prove_network_types(network: Any, types: Mapping[str, str]) -> None:
    """Prove, before a strongly typed build, that the parser kept every float type of the typed graph.

    Raises:
        PrecisionError: names the tensors whose types differ.
    """
    wrong = []
    for layer in _layers(network):
        for index in range(layer.num_outputs):
            tensor = layer.get_output(index)
            asked, got = types.get(tensor.name), _NUMPY.get(tensor.dtype.name, tensor.dtype.name)
            if asked in _PROVED and got != asked:
                wrong.append(f"{tensor.name}: {asked} asked, {got} parsed")
    if wrong:
        raise PrecisionError("TensorRT's parser changed the types of the graph:\n" + "\n".join(wrong[:20]))


def prove_engine_types(report: str, precision: Precision, *, obeyed: bool) -> None:
    """Prove, by what the engine inspector says, that layers which were told to compute in a lower precision do.

    Layers that only move data prove nothing. What is told may all be in layers whose inside the inspector does not
    show; then the proof is that the builder had to obey: it fails where it cannot.

    Args:
        report: the inspector's JSON for the engine.
        precision: the lower precision, `"fp16"` or `"int8"`.
        obeyed: whether the engine was built under `OBEY_PRECISION_CONSTRAINTS`.

    Raises:
        PrecisionError: if no layer that computes is in that precision.
    """
    computing, opaque = 0, 0
    for entry in _entries(report):
        kind, formats = _kind(entry), " ".join(strings_of(entry)).lower()
        if any(word in kind for word in _OPAQUE):
            opaque += 1
        elif not any(word in kind for word in _MOVES):
            computing += 1
            if any(word in formats for word in _WRITTEN[precision]):
                return
    if opaque and obeyed:
        return
    if opaque and computing == 0:
        raise PrecisionError(
            f"{precision} was asked for, and TensorRT does not show the inside of the {opaque} layers that compute: "
            "whether any is in it is not known."
        )
    raise PrecisionError(
        f"{precision} was asked for, and none of the {computing} layers of the engine that compute is in it."
    )


def _entries(report: str) -> list[Any]:
    """Return the inspector's layers. Its JSON holds raw control characters in 8.6 (TensorRT#2779)."""
    try:
        return list(json.loads(report, strict=False).get("Layers", []))
    except ValueError as error:
        raise PrecisionError(f"The engine inspector's report cannot be read ({error}): {report[:200]!r}") from error


def _kind(entry: Any) -> str:
    """Return type and name of a layer, in lower case."""
    if isinstance(entry, dict):
        return f"{entry.get('LayerType', '')} {entry.get('Name', '')}".lower()
    return str(entry).lower()


def _computes_shapes(layer: Any) -> bool:
    tensor = layer.get_input(0) if layer.num_inputs else None
    return tensor is not None and bool(tensor.is_shape_tensor)


def _layers(network: Any) -> Iterator[Any]:
    return (network.get_layer(index) for index in range(network.num_layers))


def strings_of(node: Any) -> Iterator[str]:
    """Yield the formats in the inspector's JSON, whose keys differ between versions, but no layer's name."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, list):
        for child in node:
            yield from strings_of(child)
    elif isinstance(node, dict):
        for key, child in node.items():
            if key not in ("Name", "Metadata"):
                yield from strings_of(child)
