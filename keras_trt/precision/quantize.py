"""Explicit quantization: pairs of QuantizeLinear and DequantizeLinear where TensorRT fuses them into 8-bit kernels."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import PrecisionError
from .lower import finished, lower
from .ranges import largest, values_by_batch

Array = np.ndarray[Any, np.dtype[Any]]
Method = Literal["entropy", "percentile", "minmax"]

_logger = logging.getLogger("keras_trt")

#: Scales below these are lost in the type, and so are the numbers that need them.
_SMALLEST_SCALES = {"float16": 1e-6, "float32": 1e-30}
_LARGEST = {"int8": 127.0, "fp8": 448.0}


@dataclass(frozen=True)
class Quantization:
    """How a graph is quantized.

    Attributes:
        beside: the precision of what is not quantized.
        thresholds: by node and place of an input, the largest magnitude that it can have; others saturate.
    """

    beside: Literal["fp16", "fp32"]
    thresholds: Mapping[str, Mapping[int, float]]


def calibrate(onnx: bytes, feeds: Mapping[str, Array], method: Method) -> dict[str, dict[int, float]]:
    """Return the thresholds of all inputs that are worth quantizing, by node and place.

    These are the data of convolutions and matrix products with constant weights, and the shortcut that is added to a
    convolution: quantized like it, the sum is fused with it. ONNX Runtime's histograms give the thresholds.

    Args:
        onnx: a serialized float32 `onnx.ModelProto`.
        feeds: rows for its inputs, which must be like those that it will run on.
        method: how to weigh numbers that saturate against the fineness of all others.

    Raises:
        PrecisionError: if there is NaN or infinity where numbers are to be quantized.
    """
    import onnx as onnx_package

    places = dict(_places(onnx_package.load_from_string(onnx).graph))
    wanted = {tensor for tensors in places.values() for tensor in tensors.values()}
    if not wanted:
        return {}
    limits = largest(onnx, feeds, wanted)
    for node, tensors in places.items():
        if not all(np.isfinite(limits[name]) for name in tensors.values()):
            raise PrecisionError(f"with the calibration data, '{node}' reads NaN or infinity")
    if method != "minmax":
        limits = _weighed(onnx, feeds, method, limits)
    return {
        node: {place: limits[name] for place, name in tensors.items()}
        for node, tensors in places.items()
        if all(limits[name] for name in tensors.values())  # of a tensor that was always 0 no range is known
    }


def _weighed(
    onnx: bytes, feeds: Mapping[str, Array], method: Literal["entropy", "percentile"], reached: Mapping[str, float]
) -> dict[str, float]:
    from onnxruntime.quantization import calibrate as calibrators

    # They print what they do. Standard output is the whole process's, so it is their `print` that is replaced.
    vars(calibrators)["print"] = _log
    collector = calibrators.HistogramCollector(
        method, symmetric=True, num_bins=2048, num_quantized_bins=128, percentile=99.999, scenario="same"
    )
    # The range is known first: of rows that grow, the bins of the first ones would be far too many for the last.
    collector.collect({name: np.array([0.0, value], "float32") for name, value in reached.items()})
    for counts, *_ in collector.get_histogram_dict().values():
        counts[...] = 0
    for values in values_by_batch(onnx, feeds, set(reached)):
        collector.collect(values)
    return {name: float(np.max(np.abs(found[:2]))) for name, found in collector.compute_collection_result().items()}


def even_thresholds(onnx: bytes) -> dict[str, dict[int, float]]:
    """Return a threshold of 1 for all that `calibrate` would find one for, to see whether a graph is taken."""
    import onnx as onnx_package

    places = _places(onnx_package.load_from_string(onnx).graph)
    return {node: dict.fromkeys(inputs, 1.0) for node, inputs in places}


def quantized(onnx: bytes, kind: Literal["int8", "fp8"], how: Quantization, keep: Collection[str] = ()) -> bytes:
    """Return a graph with its products and convolutions in 8 bits.

    Weights stay floats in front of a pair of their own, per channel for int8: TensorRT folds the pair.

    Args:
        onnx: a serialized float32 `onnx.ModelProto`.
        kind: symmetric whole numbers, or `FLOAT8E4M3FN`.
        how: thresholds, and the precision of the rest.
        keep: names of nodes that compute in float32.
    """
    import onnx as onnx_package
    import onnx_ir as ir

    if how.beside == "fp16":
        onnx = lower(onnx, "fp16", keep, opset=19)  # the first with float16 around QuantizeLinear
    proto = onnx_package.load_from_string(onnx)
    if kind == "fp8" and proto.opset_import[0].version < 19:
        proto = onnx_package.version_converter.convert_version(proto, 19)
    proto = onnx_package.shape_inference.infer_shapes(proto)
    model = ir.from_proto(proto)
    _Pairs(model, kind).insert({name: how.thresholds[name] for name in how.thresholds if name not in keep})
    return finished(model)


def _log(*words: object) -> None:
    _logger.debug("%s", " ".join(map(str, words)))


def _places(graph: Any) -> Iterator[tuple[str, dict[int, str]]]:
    """Yield the nodes of a graph to quantize: name, and by place the tensors that they read."""
    constants = {one.name: len(one.dims) for one in graph.initializer}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    convolutions = set()
    for node in graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in constants and node.input[0] not in constants:
            if node.op_type == "Conv":
                convolutions.add(node.output[0])
            elif constants[node.input[1]] != 2:
                continue
            yield node.name, {0: node.input[0]}
        elif node.op_type == "Add" and not any(name in constants for name in node.input):
            ends = [name in convolutions and readers[name] == 1 for name in node.input]
            if any(ends):
                shortcut = 1 if ends[0] else 0
                yield node.name, {shortcut: node.input[shortcut]}


class _Pairs:
    """Puts pairs of QuantizeLinear and DequantizeLinear into a graph."""

    def __init__(self, model: Any, kind: Literal["int8", "fp8"]) -> None:
        import onnx_ir as ir

        self._ir = ir
        self._graph = model.graph
        self._largest = _LARGEST[kind]
        self._per_channel = kind == "int8"
        self._zero = ir.DataType.INT8 if kind == "int8" else ir.DataType.FLOAT8E4M3FN
        self._made: dict[tuple[Any, float], Any] = {}

    def insert(self, thresholds: Mapping[str, Mapping[int, float]]) -> None:
        for node in list(self._graph):
            for place, threshold in thresholds.get(str(node.name), {}).items():
                value = node.inputs[place]
                if (value, threshold) not in self._made:
                    self._made[value, threshold] = self._pair(value, np.array(threshold), None)
                node.replace_input_with(place, self._made[value, threshold])
                if node.op_type != "Add":
                    node.replace_input_with(1, self._weights(node))

    def _weights(self, node: Any) -> Any:
        weights = node.inputs[1]
        array = np.abs(weights.const_value.numpy().astype(np.float64))
        transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int()
        axis = 0 if node.op_type == "Conv" or transposed else 1
        if not self._per_channel:
            return self._pair(weights, array.max(initial=0.0), None)
        return self._pair(weights, array.max(axis=tuple(i for i in range(array.ndim) if i != axis), initial=0.0), axis)

    def _pair(self, value: Any, limit: Any, axis: int | None) -> Any:
        """Return a value after a pair that rounds it to 8 bits of which `limit` is the largest."""
        name = f"{value.name}/{self._zero.name.lower()}"
        while f"{name}/scale" in self._graph.initializers:  # the same weights under another axis or threshold
            name += "_"
        dtype = value.dtype.numpy()
        scales = np.maximum(np.asarray(limit) / self._largest, _SMALLEST_SCALES[dtype.name])
        scales = np.where(np.asarray(limit) > 0, scales, 1.0).astype(dtype)  # of zeros alone any will do
        scale = self._constant(f"{name}/scale", scales, value.dtype)
        zero = self._constant(f"{name}/zero", np.zeros(scales.shape, self._zero.numpy()), self._zero)
        attributes = {} if axis is None else {"axis": axis}
        down = self._ir.node("QuantizeLinear", [value, scale, zero], attributes, name=f"{name}/quantize")
        up = self._ir.node("DequantizeLinear", [down.outputs[0], scale, zero], attributes, name=f"{name}/dequantize")
        for node, result, dtype in ((down, name, self._zero), (up, f"{name}/dequantized", value.dtype)):
            node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = result, dtype, value.shape
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, [down, up])
        else:
            self._graph.insert_before(self._graph[0], [down, up])
        return up.outputs[0]

    def _constant(self, name: str, array: Any, dtype: Any) -> Any:
        value = self._ir.Value(
            name=name,
            shape=self._ir.Shape(array.shape),
            type=self._ir.TensorType(dtype),
            const_value=self._ir.tensor(array, dtype=dtype, name=name),
        )
        self._graph.register_initializer(value)
        return value
