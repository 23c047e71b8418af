"""Keras → TensorFlow graph → ONNX, by tf2onnx."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .._require import require
from ..errors import ExportError
from ..specs import Structure, TensorSpec, describe, flatten, pack
from .freeze import freeze
from .operators import handlers
from .signature import check_keys

#: The newest opset that every TensorRT from 8.6 on imports, and that tf2onnx writes.
OPSET = 17

# tf2onnx keeps what it knows of the graph at hand in module globals.
_one_at_a_time = threading.Lock()


def trace(
    model: Any, structure: Structure, inputs: Sequence[TensorSpec]
) -> tuple[Any, Structure, tuple[TensorSpec, ...]]:
    """Trace a model's inference once.

    Args:
        model: a built `keras.Model`.
        structure: the nesting of its inputs.
        inputs: their flat specs.

    Returns:
        A TensorFlow `ConcreteFunction` from flat inputs, named `input_0`, `input_1`, …, to flat outputs; the nesting
        of the outputs; their flat specs.

    Raises:
        ExportError: if the model fails while it is traced.
    """
    import tensorflow as tf

    seen: dict[str, Structure] = {}
    keywords = {"training": False} if model._call_has_training_arg else {}

    def flat_call(*given: Any) -> list[Any]:
        outputs = model(pack(structure, given), **keywords)
        seen["structure"] = describe(outputs)
        leaves = flatten(outputs)
        if odd := [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, tf.Tensor)]:
            raise TypeError(f"its outputs must be dense tensors, and there is a {odd[0]}")
        # An identity each: an output that is an input, or that occurs twice, gets a name of its own.
        return [tf.identity(leaf) for leaf in leaves]

    specs = [tf.TensorSpec(spec.shape, spec.dtype, name=f"input_{i}") for i, spec in enumerate(inputs)]
    try:
        function = tf.function(flat_call, input_signature=specs, autograph=False).get_concrete_function()
    except Exception as error:  # a model's own code runs here and may raise anything
        raise ExportError(f"The model '{model.name}' could not be traced: {error}") from error
    check_keys(seen["structure"], "outputs")
    names = output_names(model, seen["structure"], len(function.outputs))
    outputs = tuple(
        TensorSpec(name, _shape(tensor), tensor.dtype.name)
        for name, tensor in zip(names, function.outputs, strict=True)
    )
    return function, seen["structure"], outputs


def output_names(model: Any, structure: Structure, count: int) -> list[str]:
    """Return a distinct name for each output: the user's dict keys, else the Keras layers', else numbered."""
    if isinstance(structure, dict) and "dict" in structure and len(structure["dict"]) == count:
        names = [str(key) for key in structure["dict"]]
    else:
        names = [str(name) for name in getattr(model, "output_names", None) or ()]
    if len(names) == count == len(set(names)):
        return names
    return [f"output_{i}" for i in range(count)] if count > 1 else ["output"]


def convert(function: Any) -> tuple[Any, list[str]]:
    """Convert a traced function to ONNX.

    Args:
        function: a TensorFlow `ConcreteFunction`, as `trace` returns it.

    Returns:
        The `onnx.ModelProto`, its inputs named `input_0`, … and its outputs `output_0`, …; and what tf2onnx and
        TensorFlow logged at warning level and above.

    Raises:
        ExportError: if TensorFlow or tf2onnx fails.
        MissingDependencyError: if tf2onnx is not installed.
    """
    require("tf2onnx", package="tf2onnx", extra="tensorflow", purpose="Exporting a Keras model")
    import tensorflow as tf
    from tf2onnx import optimizer, tf_loader, tfonnx

    with _one_at_a_time, _captured_log("tf2onnx", "tensorflow") as messages, tf.device("/CPU:0"):
        try:
            frozen, outputs = freeze(function)
            # Not `function.inputs`: those hold the tensors that layers captured too (the mean of a `Normalization`).
            inputs = [f"input_{i}:0" for i in range(len(function.structured_input_signature[0]))]
            with tf.Graph().as_default():
                frozen = tf_loader.tf_optimize(inputs, outputs, frozen)
            with tf.Graph().as_default() as graph:
                tf.import_graph_def(frozen, name="")
                converted = tfonnx.process_tf_graph(
                    graph,
                    continue_on_error=True,  # `check` names the layer of each node that is left
                    opset=OPSET,
                    custom_op_handlers=handlers(),
                    input_names=inputs,
                    output_names=outputs,
                    tensors_to_rename={name: f"output_{i}" for i, name in enumerate(outputs)}
                    | {name: name.removesuffix(":0") for name in inputs},
                )
            # Without its own safety net, which copies the whole graph with all weights before each of many passes.
            proto = optimizer.optimize_graph(converted, catch_errors=False).make_model("keras_trt")
        except Exception as error:  # TensorFlow and tf2onnx raise anything from KeyError to types of their own
            raise ExportError(f"tf2onnx could not convert the model: {type(error).__name__}: {error}") from error
    return proto, messages


@contextmanager
def _captured_log(*names: str) -> Iterator[list[str]]:
    """Collect what libraries warn of instead of printing it: what matters in it becomes our error."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    collector = Collector(level=logging.WARNING)
    under = tuple(f"{name}." for name in names)
    children = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith(under)]
    tops = [logging.getLogger(name) for name in names]
    before = [(one, one.propagate, list(one.handlers)) for one in (*tops, *children)]
    for one in tops:
        one.propagate, one.handlers = False, [collector]
    for one in children:
        one.propagate, one.handlers = True, []
    try:
        yield messages
    finally:
        for one, propagate, handlers_before in before:
            one.propagate, one.handlers = propagate, handlers_before


def _shape(tensor: Any) -> tuple[int | None, ...]:
    if tensor.shape.rank is None:
        raise ExportError("An output of the model has no fixed number of axes, which no engine can give.")
    return tuple(tensor.shape.as_list())
