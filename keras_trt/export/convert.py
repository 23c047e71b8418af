"""TensorFlow graph → ONNX, by tf2onnx, with the weights as inputs of the graph."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from .._require import require
from ..errors import ExportError
from .check import OPSET
from .convolutions import is_own_bias
from .freeze import freeze
from .logs import captured_log
from .operators import handlers
from .trace import Trace

# tf2onnx's own search for recurrent layers breaks graphs whose weights are not constants; `recurrent` has found them.
_UNWANTED = (
    "rewriter_lstm_tf2",
    "rewrite_gru_tf2",
    "rewrite_single_direction_lstm",
    "rewrite_bi_direction_lstm",
    "rewrite_single_direction_gru",
    "rewrite_bi_direction_gru",
    "rewrite_custom_rnn_cell",
    # Nothing of this is in a graph of inference; each of them searches all of it.
    "rewrite_dropout",
    "rewrite_layer_normalization",
    "rewrite_random_normal",
    "rewrite_random_uniform",
    "rewrite_random_uniform_fold_const",
)
# Makes the bias of a convolution of any that is added to what it gives.
_BIASES = "rewrite_biasadd_with_conv2d"

# tf2onnx keeps what it knows of the graph at hand in module globals.
_one_at_a_time = threading.Lock()


def convert(traced: Trace) -> tuple[Any, list[str]]:
    """Convert a traced function to ONNX.

    Args:
        traced: what `trace` returns.

    Returns:
        The `onnx.ModelProto`, its inputs named `weight_0`, … and `input_0`, …, its outputs `output_0`, …; and what
        tf2onnx and TensorFlow logged at warning level and above.

    Raises:
        ExportError: if TensorFlow or tf2onnx fails.
        MissingDependencyError: if tf2onnx is not installed.
    """
    require("tf2onnx", package="tf2onnx", extra="tensorflow", purpose="Exporting a Keras model")
    import tensorflow as tf
    from tf2onnx import tf_loader, tfonnx, utils

    # Not `function.inputs`: those hold the tensors that layers captured too (the mean of a `Normalization`).
    names = [f"weight_{i}" for i in range(traced.weights)] + [f"input_{i}" for i in range(traced.inputs)]
    inputs = [f"{name}:0" for name in names]
    with _one_at_a_time, captured_log("tf2onnx", "tensorflow") as messages, tf.device("/CPU:0"):
        utils.INTERNAL_NAME = 1  # so that one model gives one graph, to the bit, however many were converted before
        try:
            with _for_a_cpu():
                frozen, outputs = freeze(traced.function)
                with tf.Graph().as_default():
                    frozen = tf_loader.tf_optimize(inputs, outputs, frozen)
            with tf.Graph().as_default() as graph, _better(tfonnx):
                tf.import_graph_def(frozen, name="")
                converted = tfonnx.process_tf_graph(
                    graph,
                    continue_on_error=True,  # `check` names the layer of each node that is left
                    opset=OPSET,
                    custom_op_handlers=handlers(),
                    input_names=inputs,
                    output_names=outputs,
                    tensors_to_rename={name: f"output_{i}" for i, name in enumerate(outputs)}
                    | dict(zip(inputs, names, strict=True)),
                )
            proto = converted.make_model("keras_trt")
            _tell_shapes(converted, proto)
        except Exception as error:  # TensorFlow and tf2onnx raise anything from KeyError to types of their own
            raise ExportError(f"tf2onnx could not convert the model: {type(error).__name__}: {error}") from error
    return proto, messages


@contextmanager
def _for_a_cpu() -> Iterator[None]:
    """Let TensorFlow's optimizer of graphs, Grappler, plan for one CPU while the block runs.

    Left to itself it asks the host for its GPUs. That fails where there is a driver and TensorFlow's wheel without the
    CUDA libraries that it was built with ("Error loading CUDA libraries"), as `pip install tensorflow` leaves it.
    """
    from tensorflow.core.protobuf.device_properties_pb2 import DeviceProperties, NamedDevice
    from tensorflow.python.grappler import cluster

    cpu = NamedDevice(name="/CPU:0", properties=DeviceProperties(type="CPU", num_cores=1))
    before = cluster.Cluster
    cluster.Cluster = partial(before, devices=[cpu])
    try:
        yield
    finally:
        cluster.Cluster = before


@contextmanager
def _better(module: Any) -> Iterator[None]:
    """Let rewriters of tf2onnx do nothing, or nothing wrong, while the block runs: it has no argument for that."""
    before = {name: getattr(module, name) for name in (*_UNWANTED, _BIASES)}

    def biases(graph: Any, nodes: Any) -> Any:
        before[_BIASES](graph, list(filter(is_own_bias, nodes)))
        return graph.get_nodes()

    try:
        for name in _UNWANTED:
            setattr(module, name, lambda _graph, nodes: nodes)
        setattr(module, _BIASES, biases)
        yield
    finally:
        for name, rewriter in before.items():
            setattr(module, name, rewriter)


def _tell_shapes(converted: Any, proto: Any) -> None:
    """Write down what TensorFlow knows of the shapes, which tf2onnx leaves out."""
    from onnx import helper

    told = {value.name for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)}
    for node in proto.graph.node:
        for name in node.output:
            shape, dtype = converted.get_shape(name), converted.get_dtype(name)
            if name and name not in told and shape is not None and dtype:
                sizes = [size if size >= 0 else None for size in shape]
                proto.graph.value_info.append(helper.make_tensor_value_info(name, dtype, sizes))
