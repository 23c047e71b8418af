"""Keras layers that are traced as something better than what they consist of.

Most have an operator in ONNX. TensorFlow has no such operators, so a marker stands for each in its graph: a `PyFunc`
that is never run, whose token says what it means. tf2onnx turns it into the ONNX node (`operators`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..layer_calls import replaced, without_cudnn

MARKER = "keras_trt:"


@contextmanager
def as_onnx_operators(model: Any) -> Iterator[None]:
    """Let the layers of a model that have a better form for ONNX be called as that, while the block runs.

    A layer is only replaced where the other form computes exactly the same: for classes of Keras itself, not of their
    subclasses, and only with attributes that the operator has.
    """
    from . import recurrent

    calls = (
        (layer, name, call)
        for layer in model._flatten_layers()
        for name, call in (
            ("inner_loop", recurrent.inner_loop(layer) or without_cudnn(layer)),
            ("call", _layer_normalization(layer) or _time_distributed(layer)),
        )
    )
    with replaced(calls):
        yield


def onnx_operator(
    operator: str,
    inputs: Sequence[Any],
    attributes: Mapping[str, Any],
    outputs: Sequence[tuple[Any, Sequence[int | None]]],
) -> list[Any]:
    """Put an ONNX operator into the TensorFlow graph that is being traced.

    Args:
        operator: its ONNX name.
        inputs: tensors; `None` for an optional input that is left out.
        attributes: of the ONNX node: numbers, strings and lists of them.
        outputs: type and shape of each output.

    Returns:
        The outputs, as tensors.
    """
    import tensorflow as tf

    present = [one is not None for one in inputs]
    token = MARKER + json.dumps({"operator": operator, "present": present, "attributes": dict(attributes)})
    results = tf.raw_ops.PyFunc(
        input=[one for one in inputs if one is not None], token=token, Tout=[dtype for dtype, _ in outputs]
    )
    return [tf.ensure_shape(one, shape) for one, (_, shape) in zip(results, outputs, strict=True)]


def _layer_normalization(layer: Any) -> Callable[[Any], Any] | None:
    """Return a call of a layer normalization over its last axes as ONNX's operator, which TensorRT fuses whole."""
    import keras
    import tensorflow as tf

    if type(layer) is not keras.layers.LayerNormalization or getattr(layer, "rms_scaling", False):
        return None

    def call(inputs: Any) -> Any:
        axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
        rank = inputs.shape.rank
        first = min(axis % rank for axis in axes)
        x = tf.convert_to_tensor(inputs)
        sizes = x.shape[first:]
        # Keras lays the weights out in the order of `axis`, ONNX in that of the input.
        if [axis % rank for axis in axes] != list(range(first, rank)) or None in sizes or x.dtype != tf.float32:
            return type(layer).call(layer, inputs)
        scale = tf.ones(sizes) if layer.gamma is None else tf.convert_to_tensor(layer.gamma)
        bias = None if layer.beta is None else tf.convert_to_tensor(layer.beta)
        attributes = {"axis": first - rank, "epsilon": float(layer.epsilon)}
        (output,) = onnx_operator("LayerNormalization", [x, scale, bias], attributes, [(x.dtype, x.shape)])
        return output

    return call


def _time_distributed(layer: Any) -> Callable[..., Any] | None:
    """Return a call of a `TimeDistributed` that takes all steps of all rows as one batch.

    Keras writes its layer down once for each step, and, where their number is open, runs as many as the batch has rows.
    """
    import keras
    import tensorflow as tf

    if type(layer) is not keras.layers.TimeDistributed:
        return None
    # A layer of someone else's may look at its batch as a whole.
    if not all(type(one).__module__.startswith("keras.") for one in layer.layer._flatten_layers()):
        return None

    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        given: dict[str, Any] = {}
        if layer.layer._call_has_training_arg:
            given["training"] = training
        if layer.layer._call_has_mask_arg and mask is not None:
            given["mask"] = _merge_steps(tf.convert_to_tensor(mask))
        x = tf.convert_to_tensor(inputs)
        rows = x.shape[0] if x.shape[1] is None else -1
        places = [tf.shape(x)[0] if rows is None else rows, -1 if x.shape[1] is None else x.shape[1]]
        every = layer.layer.call(_merge_steps(x), **given)
        return keras.tree.map_structure(lambda one: tf.reshape(one, [*places, *_inner_sizes(one, 1)]), every)

    return call


def _merge_steps(x: Any) -> Any:
    """Return a tensor with its first two axes as one."""
    import tensorflow as tf

    sizes = _inner_sizes(x, 2)
    rows = -1 if all(isinstance(size, int) for size in sizes) else tf.shape(x)[0] * tf.shape(x)[1]
    return tf.reshape(x, [rows, *sizes])


def _inner_sizes(x: Any, first: int) -> list[Any]:
    """Return the sizes of the axes from `first` on, of which those that are open as tensors."""
    import tensorflow as tf

    return [tf.shape(x)[axis] if size is None else size for axis, size in enumerate(x.shape) if axis >= first]
