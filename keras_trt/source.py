"""The Keras model behind an engine: its reference answers, and what of it an engine cannot honour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import policies
from .specs import Signature, flatten, pack

Array = np.ndarray[Any, np.dtype[Any]]


def check_is_keras(model: Any) -> None:
    """Refuse what is not a Keras 3 model, without importing Keras for it.

    Raises:
        TypeError: says what was received and what is taken.
    """
    for kind in type(model).__mro__:
        module, name = kind.__module__, kind.__name__
        if name == "Model" and module.startswith("keras."):
            return
        if name == "Model" and module.startswith(("tf_keras.", "tensorflow.python.keras.")):
            raise TypeError(
                f"keras_trt takes models of Keras 3. Received a model of {module.split('.')[0]} "
                f"({type(model).__name__}): save it as .keras or .h5 and load it with keras.models.load_model."
            )
    raise TypeError(
        f"keras_trt takes a keras.Model. Received: {model!r} of type "
        f"{type(model).__module__}.{type(model).__qualname__}"
    )


def what_only_keras_can(model: Any) -> str | None:
    """Return what a model does at `predict` that an engine could not, or `None`.

    An engine is the forward pass alone, with no memory between calls.
    """
    import keras

    for method in ("predict", "predict_step", "predict_on_batch", "make_predict_function"):
        if method in vars(model) or getattr(type(model), method) is not getattr(keras.Model, method):
            return f"'{model.name}' overrides `{method}`, which an engine does not run"
    for layer in model._flatten_layers():
        if getattr(layer, "stateful", False):
            return f"the layer '{layer.path or layer.name}' is stateful, and an engine keeps no state between batches"
    return None


def reference(model: Any, signature: Signature, inputs: Sequence[Array]) -> list[Array]:
    """Return the model's own outputs, computed in full float32, in the types that Keras's `predict` gives.

    Args:
        model: a `keras.Model`.
        signature: its inputs and outputs.
        inputs: flat inputs.
    """
    keywords = {"training": False} if model._call_has_training_arg else {}

    def call(*tensors: Any) -> list[Any]:
        return flatten(model(pack(signature.input_structure, tensors), **keywords))

    with policies.full_float32(model):
        outputs = (_in_a_graph(call) if _preprocesses(model) else call)(*map(_tensor, inputs))
    return [
        np.asarray(output).astype(spec.dtype, copy=False)
        for output, spec in zip(outputs, signature.outputs, strict=True)
    ]


def _preprocesses(model: Any) -> bool:
    """Tell whether a layer answers otherwise outside of a graph than in one: there `Resizing` rounds what was bytes."""
    return any(
        base.__module__.startswith("keras.src.layers.preprocessing.")
        for layer in model._flatten_layers()
        for base in type(layer).__mro__
    )


def _in_a_graph(call: Any) -> Any:
    import tensorflow as tf

    return tf.function(call, autograph=False, reduce_retracing=True)


def integer_limit(model: Any) -> int | None:
    """Return the size of the smallest table that a layer looks integers up in, or `None` where there is none."""
    sizes = [
        size
        for layer in model._flatten_layers()
        for size in (getattr(layer, "input_dim", None), getattr(layer, "num_tokens", None))
        if isinstance(size, int) and size > 0
    ]
    return min(sizes, default=None)


def _tensor(array: Array) -> Any:
    import tensorflow as tf

    return tf.convert_to_tensor(array)
