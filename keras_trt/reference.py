"""What a Keras model itself answers: what engines are compared with."""

from __future__ import annotations

import logging
import operator
import weakref
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import numpy as np

from . import policies
from .loading import on_tensorflow
from .specs import Signature, Structure, flatten, pack

Array = np.ndarray[Any, np.dtype[Any]]

_logger = logging.getLogger("keras_trt")

#: How far a graph may be from the model, by its largest answer: fused operations are rounded otherwise.
_ROUNDING = 1e-4

#: By model, what its graphs depend on, and the graphs by their form. What is in here must not hold the model.
_kept: weakref.WeakKeyDictionary[Any, tuple[list[Any], dict[Any, Any]]] = weakref.WeakKeyDictionary()


def reference(model: Any, signature: Signature, inputs: Sequence[Array]) -> list[Array]:
    """Return the model's own outputs, computed in full float32, in the types that Keras's `predict` gives.

    Args:
        model: a `keras.Model`.
        signature: its inputs and outputs.
        inputs: flat inputs.
    """
    with policies.full_float32(model):
        return _outputs(model, signature, inputs)


def under_its_policy(model: Any, signature: Signature, inputs: Sequence[Array]) -> list[Array]:
    """Return what `reference` does, but computed in the types of the model's own dtype policies."""
    with policies.in_full(model):
        return _outputs(model, signature, inputs)


def _outputs(model: Any, signature: Signature, inputs: Sequence[Array]) -> list[Array]:
    call = partial(_call, model, signature.input_structure)
    outputs = (_in_a_graph(call) if _is_other_in_a_graph(model) else call)(*map(_tensor, inputs))
    return _arrays(outputs, signature)


class Reference:
    """`reference` for many batches, by a graph of the model where that answers as the model does.

    A model that is called runs Python in each layer, and keeps a training beside it from running; a graph is one call.
    It reads the weights as they are, and is kept as long as the model lives and nothing but their values changes, so
    that other weights need no tracing. Each `Reference` asks the model itself for all rows of its first batch, and
    takes no graph that answers otherwise: its code may take another way in a graph, which does not know how many rows
    there are, or have changed in a manner that no hash shows. A new graph is asked for a single row too.

    Args:
        model: a `keras.Model`.
        structure: its structure key. Defaults to `None`: no graph is kept.
    """

    def __init__(self, model: Any, structure: str | None = None) -> None:
        self._model, self._structure = model, structure
        self._graphs: dict[Any, Any] = {}  # that this object has tried; `None` where there is none
        self._right_in_a_graph = _is_other_in_a_graph(model)
        self._without_tf32 = policies.graphs_without_tf32(model)

    @property
    def is_other_in_a_graph(self) -> bool:
        """Whether a graph that was tried, for what was asked so far, answers otherwise than the model."""
        return None in self._graphs.values()

    def __call__(self, signature: Signature, inputs: Sequence[Array]) -> list[Array]:
        """Return what `reference` does."""
        if not on_tensorflow():
            return reference(self._model, signature, inputs)
        structure = signature.input_structure
        with self._without_tf32():
            tensors = [_tensor(array) for array in inputs]
            batch = next((spec.shape[0] for spec in signature.inputs if spec.shape[0] is not None), None)
            form = repr(structure), tuple(((batch, *tensor.shape[1:]), tensor.dtype) for tensor in tensors)
            if form not in self._graphs:
                with policies.full_float32(self._model):
                    self._graphs[form] = self._graph(form, structure, tensors)
            graph = self._graphs[form]
            if graph is not None:
                return _arrays(graph(*tensors), signature)
        return reference(self._model, signature, inputs)

    def _graph(self, form: Any, structure: Structure, tensors: Sequence[Any]) -> Any:
        kept = self._kept()
        if form in kept and kept[form] is None:
            return None  # the model itself is right in any case
        graph = kept.get(form)
        if graph is None or not self._is_right(graph, structure, tensors):
            graph = _traced(self._model, structure, form[1])
            right = self._is_right(graph, structure, tensors)
            (batch, *_), _ = form[1][0]
            if right and batch is None and tensors[0].shape[0] > 1:
                with suppress(Exception):  # a model's own code: it may take no single row
                    right = self._is_right(graph, structure, [tensor[:1] for tensor in tensors])
            if not right:
                _logger.info("'%s' answers otherwise in a graph, and is asked itself", self._model.name)
                graph = None
            kept[form] = graph
        return graph

    def _is_right(self, graph: Any, structure: Structure, tensors: Sequence[Any]) -> bool:
        """Tell whether a graph answers as the model itself."""
        call = partial(_call, self._model, structure)
        if self._right_in_a_graph:
            with suppress(Exception):  # a model's own code
                if _answers(graph, tensors, call(*tensors)):
                    return True
            call = _in_a_graph(call)  # of these shapes, which takes longer than a call
        return _answers(graph, tensors, call(*tensors))

    def _kept(self) -> dict[Any, Any]:
        """Return the graphs of the model as it is but for the values of its weights."""
        if self._structure is None:
            return {}
        # Other variables of the same shapes are not those that an earlier graph reads.
        state = [self._structure, *(variable.value for variable in self._model.variables)]
        before, graphs = _kept.get(self._model, ([], {}))
        if before[:1] != state[:1] or len(before) != len(state) or not all(map(operator.is_, before[1:], state[1:])):
            graphs = {}
            _kept[self._model] = state, graphs
        return graphs


def _call(model: Any, structure: Structure, *tensors: Any) -> list[Any]:
    keywords = {"training": False} if model._call_has_training_arg else {}
    with _no_gradients():
        return flatten(model(pack(structure, tensors), **keywords))


def _traced(model: Any, structure: Structure, form: Sequence[Any]) -> Any:
    """Return a graph of a model, or `None` where TensorFlow cannot trace it."""
    import tensorflow as tf

    held = weakref.ref(model)  # the graph must not keep it alive

    def call(*tensors: Any) -> list[Any]:
        return _call(held(), structure, *tensors)

    try:
        return _in_a_graph(call).get_concrete_function(*(tf.TensorSpec(*one) for one in form))
    except Exception as error:  # a model's own code
        _logger.debug("'%s' cannot be traced", model.name, exc_info=error)
        return None


def _answers(graph: Any, inputs: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Tell whether a graph answers as expected."""
    try:
        found = graph(*inputs)
    except Exception:  # a model's own code; or there is no graph
        return False
    return all(_alike(np.asarray(one), np.asarray(other)) for one, other in zip(expected, found, strict=True))


def _alike(expected: Array, found: Array) -> bool:
    if expected.shape != found.shape or expected.dtype != found.dtype or expected.dtype.kind not in "fc":
        return np.array_equal(expected, found)
    if not expected.size:
        return True
    largest = float(np.abs(expected, where=np.isfinite(expected), out=np.zeros_like(expected)).max())
    return np.allclose(found, expected, rtol=0, atol=_ROUNDING * largest, equal_nan=True)


def _arrays(outputs: Sequence[Any], signature: Signature) -> list[Array]:
    to_numpy = np.asarray if on_tensorflow() else _keras_to_numpy
    return [
        to_numpy(output).astype(spec.dtype, copy=False) for output, spec in zip(outputs, signature.outputs, strict=True)
    ]


def _is_other_in_a_graph(model: Any) -> bool:
    """Tell whether a model may answer otherwise outside of a graph, of which `predict` is one, than in it.

    `Resizing` rounds what was bytes. Where there are as many columns as channels, Keras adds a bias to the columns,
    which TensorFlow mends as it fuses a convolution with its bias.
    """
    return on_tensorflow() and any(
        getattr(layer, "data_format", None) == "channels_first"
        or any(base.__module__.startswith("keras.src.layers.preprocessing.") for base in type(layer).__mro__)
        for layer in model._flatten_layers()
    )


def _in_a_graph(call: Any) -> Any:
    import tensorflow as tf

    return tf.function(call, autograph=False, reduce_retracing=True)


def _no_gradients() -> Any:
    import keras

    if keras.config.backend() != "torch":
        return nullcontext()
    import torch

    return torch.no_grad()


def _tensor(array: Array) -> Any:
    if on_tensorflow():
        import tensorflow as tf

        return tf.convert_to_tensor(array)
    import keras

    return keras.ops.convert_to_tensor(array)


def _keras_to_numpy(tensor: Any) -> Any:
    import keras

    return keras.ops.convert_to_numpy(tensor)
