"""What cannot be on a GPU stays in front of it: a model is cut behind layers that take strings or look values up.

The *head* is what must run on the CPU and all that leads to it; TensorFlow runs it as one traced function. The *tail*
is a Keras model of everything else: it is what is exported, verified and cached, so that vocabularies are in no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ExportError, InputError
from ..export.signature import input_signature
from ..fingerprint.libraries import is_library_class
from ..inputs import Array
from ..loading import on_tensorflow
from ..specs import Signature, TensorSpec
from .cut import Piece, cut, graph_of, refuse_lookups, tables

__all__ = ["Head", "split"]


class Head:
    """The part of a model that TensorFlow runs on the CPU, in front of the engine. May be called from many threads.

    It is a snapshot, as the engine is: a vocabulary that is set later does not reach it.

    Args:
        model: the whole Keras model.
        piece: its two parts.

    Attributes:
        model: the whole Keras model.
        tail: the Keras model from what the head gives, and those inputs that do not need it, to the outputs.
        signature: the inputs of the whole model.
        layers: what runs on the CPU, by name.
        rows_independent: whether the head gives the same for a row whatever its batch. Not so where its outputs are
            as long as the longest row, and not known of layers that are not Keras's own.
    """

    def __init__(self, model: Any, piece: Piece) -> None:
        self.model = model
        self.tail = piece.tail
        self.signature: Signature = input_signature(model, strings=True)
        self.layers = tuple(dict.fromkeys(call.name for call in piece.calls if call.on_cpu))
        self.rows_independent = all(None not in tensor.shape[1:] for tensor in piece.cuts) and all(
            _keeps_rows_apart(call.operation) for call in piece.calls
        )
        self._function, self._passes, self._takes = piece.function, piece.passes, piece.takes
        self._specs = [self.signature.inputs[place] for place in self._takes]
        self._tables = [table for layer in piece.head._flatten_layers() for table in tables(layer)]  # kept alive

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """Return the flat inputs of the tail for flat inputs of the whole model.

        Raises:
            InputError: for an array that holds something else than strings, and for values that a layer refuses.
        """
        import tensorflow as tf

        with tf.device("/CPU:0"):
            tensors = [_tensor(inputs[place], spec) for place, spec in zip(self._takes, self._specs, strict=True)]
            try:
                outputs = self._function(*tensors)
            except tf.errors.InvalidArgumentError as error:  # such as a word that a table without a place for it lacks
                raise InputError(f"A layer of '{self.model.name}' refuses the data: {error.message}") from error
        return [*(inputs[place] for place in self._passes), *(np.asarray(output) for output in outputs)]

    def whole(self, signature: Signature) -> Signature:
        """Return the signature of the whole model, whose outputs are those of `signature`, the tail's."""
        return replace(self.signature, outputs=signature.outputs, output_structure=signature.output_structure)


def split(model: Any) -> Head | None:
    """Return the head of a model, or `None` for a model that an engine can run as a whole, as most are.

    Args:
        model: a built `keras.Model`.

    Raises:
        ExportError: if a layer must run on the CPU and is not at the head, if the model is no graph of layers that can
            be cut, if something else than dense numbers crosses the cut, or if nothing is left for an engine. Names
            the layer.
    """
    if not on_tensorflow():
        import keras

        refuse_lookups(
            model,
            f"in front of the engine, which TensorFlow does, and Keras runs on {keras.config.backend()!r}. Save the "
            "model, and accelerate the file with KERAS_BACKEND=tensorflow; or make a model that begins behind that "
            "layer.",
        )
        return None
    graph = graph_of(model)
    if graph is None:
        refuse_lookups(
            model,
            f"and '{model.name}' is a class with a `call` of its own, which cannot be cut behind it. Make a Functional "
            "model, keras.Model(inputs, model_without_it(layer(inputs))).",
        )
        return None
    piece = cut(graph, model.name)
    if piece is None:
        return None
    if piece.tail is None:
        names = ", ".join(repr(call.name) for call in piece.calls if call.on_cpu)
        raise ExportError(f"Nothing of '{model.name}' is left for an engine: its outputs come from {names} themselves.")
    return Head(model, piece)


def _keeps_rows_apart(operation: Any) -> bool:
    import keras

    if graph_of(operation) is not None:
        return all(map(_keeps_rows_apart, operation.layers))
    known = isinstance(operation, keras.Layer) and is_library_class(type(operation))
    return known and not isinstance(operation, keras.layers.Lambda)


def _tensor(array: Array, spec: TensorSpec) -> Any:
    import tensorflow as tf

    try:
        return tf.convert_to_tensor(array, spec.dtype)
    except (TypeError, ValueError) as error:  # an array of objects that are not all strings
        raise InputError(
            f"Input '{spec.name}' takes {spec.dtype}. Received: an array of {array.dtype} with something else in it "
            f"({error}).",
            input_name=spec.name,
            expected=spec.dtype,
            received=str(array.dtype),
        ) from error
