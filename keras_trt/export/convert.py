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
        A `tf.function` from flat inputs to a dict of flat outputs named `output_0`, `output_1`, …; the nesting
        of the outputs; their flat specs.

    Raises:
        ExportError: if the model fails while it is traced.
    """
    import tensorflow as tf

    seen: dict[str, Any] = {}
    keywords = {"training": False} if model._call_has_training_arg else {}

    def flat_call(*leaves: Any) -> dict[str, Any]:
        outputs = model(pack(structure, leaves), **keywords)
        seen["structure"] = describe(outputs)
        # An identity each: an output that is an input, or that occurs twice, gets a name of its own.
        return {f"output_{i}": tf.identity(leaf) for i, leaf in enumerate(flatten(outputs))}

    specs = [tf.TensorSpec(spec.shape, spec.dtype, name=f"input_{i}") for i, spec in enumerate(inputs)]
    function = tf.function(flat_call, input_signature=specs, autograph=False)
    try:
        concrete = function.get_concrete_function()
    except Exception as error:  # a model's own code runs here and may raise anything
        raise ExportError(f"The model '{model.name}' could not be traced: {error}") from error
    flat = [concrete.structured_outputs[f"output_{i}"] for i in range(len(concrete.structured_outputs))]
    names = output_names(model, seen["structure"], len(flat))
    outputs = tuple(
        TensorSpec(name, _shape(tensor), tensor.dtype.name) for name, tensor in zip(names, flat, strict=True)
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
        function: a `tf.function` with an input signature.

    Returns:
        The `onnx.ModelProto`, and what tf2onnx logged at warning level and above.

    Raises:
        ExportError: if tf2onnx fails.
        MissingDependencyError: if tf2onnx is not installed.
    """
    tf2onnx = require("tf2onnx", package="tf2onnx", extra="tensorflow", purpose="Exporting a Keras model")

    with _one_at_a_time, _captured_log("tf2onnx") as messages:
        try:
            proto, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature, opset=OPSET)
        except Exception as error:  # tf2onnx raises anything from KeyError to its own types
            raise ExportError(f"tf2onnx could not convert the model: {type(error).__name__}: {error}") from error
    return proto, messages


@contextmanager
def _captured_log(name: str) -> Iterator[list[str]]:
    """Collect a library's warnings instead of printing them: what matters in them becomes our error."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    collector = Collector(level=logging.WARNING)
    logger = logging.getLogger(name)
    loggers = [
        logger,
        *(logging.getLogger(child) for child in logging.root.manager.loggerDict if child.startswith(f"{name}.")),
    ]
    before = [(one, one.propagate, list(one.handlers)) for one in loggers]
    for one in loggers:
        one.propagate, one.handlers = one is not logger, []
    logger.handlers = [collector]
    try:
        yield messages
    finally:
        for one, propagate, handlers in before:
            one.propagate, one.handlers = propagate, handlers


def _shape(tensor: Any) -> tuple[int | None, ...]:
    if tensor.shape.rank is None:
        raise ExportError("An output of the model has no fixed number of axes, which no engine can give.")
    return tuple(tensor.shape.as_list())
