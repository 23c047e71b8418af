"""Keras → TensorFlow graph: one trace of a model's inference, as a function of its weights and its inputs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import ExportError, refuse
from ..specs import Structure, TensorSpec, children, describe, flatten, pack
from .check import written
from .layers import as_onnx_operators
from .signature import check_keys

# The layers of a model, and the class of TensorFlow's functions, are changed for as long as it is traced.
_one_at_a_time = threading.RLock()


@dataclass(frozen=True)
class Trace:
    """A model's inference as a TensorFlow function.

    Attributes:
        function: a `ConcreteFunction` from flat weights, named `weight_0`, `weight_1`, …, and flat inputs, named
            `input_0`, …, to flat outputs.
        weights: how many weights it takes: all variables of the model, in its own order.
        inputs: how many inputs.
        output_structure: the nesting of the outputs.
        outputs: their flat specs.
        whole: whether it reads variables by these arguments alone.
    """

    function: Any
    weights: int
    inputs: int
    output_structure: Structure
    outputs: tuple[TensorSpec, ...]
    whole: bool


def trace(model: Any, structure: Structure, inputs: Sequence[TensorSpec]) -> Trace:
    """Trace a model's inference once.

    The weights are arguments, not constants: neither TensorFlow nor tf2onnx has to carry, copy or fold them, and how
    each constant of the final graph follows from them stays known.

    Args:
        model: a built `keras.Model`.
        structure: the nesting of its inputs.
        inputs: their flat specs.

    Raises:
        ExportError: if the model fails while it is traced, or writes to a variable.
    """
    import keras
    import tensorflow as tf

    seen: dict[str, Any] = {}
    variables = model.variables
    # Layers draw random numbers that they do not use at inference; what uses them is refused as a node.
    seeds = {id(source.state) for layer in model._flatten_layers() for source in layer._seed_generators}
    keywords = {"training": False} if model._call_has_training_arg else {}

    def flat_call(*given: Any) -> list[Any]:
        weights, arguments = given[: len(variables)], given[len(variables) :]
        with (
            keras.StatelessScope(state_mapping=list(zip(variables, weights, strict=True))) as scope,
            as_onnx_operators(model),
            _functions_traced_afresh(),
        ):
            outputs = model(pack(structure, arguments), **keywords)
        pairs = zip(variables, weights, strict=True)
        seen["written"] = [
            one.path for one, given in pairs if scope.get_current_value(one) is not given and id(one) not in seeds
        ]
        seen["structure"] = describe(outputs, exactly=True)
        leaves = flatten(outputs)
        if odd := [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, tf.Tensor)]:
            raise TypeError(f"its outputs must be dense tensors, and there is a {odd[0]}")
        # An identity each: an output that is an input, or that occurs twice, gets a name of its own.
        return [tf.identity(leaf) for leaf in leaves]

    specs = [tf.TensorSpec(one.shape, one.dtype, name=f"weight_{i}") for i, one in enumerate(variables)]
    specs += [tf.TensorSpec(spec.shape, spec.dtype, name=f"input_{i}") for i, spec in enumerate(inputs)]
    try:
        with _one_at_a_time:
            function = tf.function(flat_call, input_signature=specs, autograph=False).get_concrete_function()
    except Exception as error:  # a model's own code runs here and may raise anything
        raise ExportError(f"The model '{model.name}' could not be traced: {error}") from error
    if seen["written"]:
        refuse(written(model, seen["written"]))
    check_keys(seen["structure"], "outputs")
    names = output_names(model, seen["structure"], len(function.outputs))
    outputs = tuple(
        TensorSpec(name, _shape(tensor), tensor.dtype.name)
        for name, tensor in zip(names, function.outputs, strict=True)
    )
    whole = not any(captured.dtype == tf.resource for captured in function.captured_inputs)
    return Trace(function, len(variables), len(inputs), seen["structure"], outputs, whole)


@contextmanager
def _functions_traced_afresh() -> Iterator[None]:
    """Let this thread's calls of a `tf.function` inside a model be traced anew, while the block runs.

    Its own trace would read the weights of this graph, and answer the next `predict` with them.
    """
    import tensorflow as tf

    kind, thread = type(tf.function(lambda: None)), threading.get_ident()
    own_call = kind.__call__

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        here = threading.get_ident() == thread
        return own_call(tf.function(function.python_function) if here else function, *args, **kwargs)

    kind.__call__ = call
    try:
        yield
    finally:
        kind.__call__ = own_call


def output_names(model: Any, structure: Structure, count: int) -> list[str]:
    """Return a distinct name for each output: the user's dict keys, else the Keras layers', else numbered."""
    inside = [] if isinstance(structure, int) else children(structure)
    if len(inside) == count and all(isinstance(key, str) for key, _ in inside):
        names = sorted(key for key, _ in inside)
    else:
        names = [str(name) for name in getattr(model, "output_names", None) or ()]
    if len(names) == count == len(set(names)):
        return names
    return [f"output_{i}" for i in range(count)] if count > 1 else ["output"]


def _shape(tensor: Any) -> tuple[int | None, ...]:
    if tensor.shape.rank is None:
        raise ExportError("An output of the model has no fixed number of axes, which no engine can give.")
    return tuple(tensor.shape.as_list())
