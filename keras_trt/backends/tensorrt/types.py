"""The tensor types of a network: ordered where TensorRT would choose them, and proved to be as asked.

TensorRT 11 and RTX take a network's types from the graph. 8.6 chooses them by time and has to be told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...errors import EngineLoadError, PrecisionError

_NUMPY = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


def numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the numpy type of a TensorRT data type.

    Raises:
        EngineLoadError: for types that numpy does not have.
    """
    if dtype.name not in _NUMPY:
        raise EngineLoadError(f"An input or output of the engine has the type {dtype.name}, which numpy does not have.")
    return np.dtype(_NUMPY[dtype.name])


def order_types(trt: Any, network: Any, types: Mapping[str, str]) -> None:
    """Tell a weakly typed network, layer by layer, to have the types of the typed graph.

    Args:
        trt: the TensorRT module.
        network: a parsed network without strong typing.
        types: numpy type names by tensor name, of the typed ONNX graph.
    """
    wanted = {"float16": trt.DataType.HALF, "float32": trt.DataType.FLOAT}
    # These only move or make data; a cast's type is its meaning and cannot be ordered otherwise.
    exempt = {trt.LayerType.CAST, trt.LayerType.CONSTANT, trt.LayerType.SHAPE, trt.LayerType.SHUFFLE}
    for layer in _layers(network):
        if layer.type in exempt:
            continue
        for index in range(layer.num_outputs):
            tensor = layer.get_output(index)
            dtype = wanted.get(types.get(tensor.name, ""))
            if dtype is None or tensor.is_shape_tensor:
                continue
            if hasattr(layer, "precision") and hasattr(layer, "set_output_type"):
                layer.precision = dtype
                layer.set_output_type(index, dtype)


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
            if asked in ("float16", "float32") and got != asked:
                wrong.append(f"{tensor.name}: {asked} asked, {got} parsed")
    if wrong:
        raise PrecisionError("TensorRT's parser changed the types of the graph:\n" + "\n".join(wrong[:20]))


def prove_engine_types(trt: Any, engine: Any, types: Mapping[str, str]) -> None:
    """Prove, by the engine inspector, that half precision was used where the typed graph asks for it.

    TensorRT fuses layers and renames tensors, so one layer in half precision is the proof: a builder that
    ignores the order makes none.

    Raises:
        PrecisionError: if the graph has half tensors and the engine has no layer in half precision.
    """
    if "float16" not in types.values():
        return
    inspector = engine.create_engine_inspector()
    if inspector is None:
        raise PrecisionError("TensorRT made no engine inspector, so the precision of the engine cannot be proved.")
    entries = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON)).get("Layers", [])
    if not any("FP16" in text or "Half" in text for entry in entries for text in _strings(entry)):
        raise PrecisionError(
            "fp16 was asked for, and no layer of the engine that TensorRT built is in half precision. Use "
            "precision='tf32', or report the model: its fp16 engine would be a float32 engine under another name."
        )


def _layers(network: Any) -> Iterator[Any]:
    return (network.get_layer(index) for index in range(network.num_layers))


def _strings(node: Any) -> Iterator[str]:
    """Yield the formats in the inspector's JSON, whose keys differ between versions, but no layer's name."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, list):
        for child in node:
            yield from _strings(child)
    elif isinstance(node, dict):
        for key, child in node.items():
            if key not in ("Name", "Metadata"):
                yield from _strings(child)
