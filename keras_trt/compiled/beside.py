"""What a model reads beside its weights: variables of its layers that Keras does not know of, and of its functions."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from .. import fingerprint, policies
from ..errors import KerasTRTError
from ..export.signature import input_signature
from ..export.trace import trace
from ..loading import on_tensorflow


def beside(model: Any, sample: Any = None) -> list[Any]:
    """Return the variables that a model may read when it infers, and that are no weights of it. Strings are left out.

    Its code and attributes say it, which are read as for its structure key. Where they cannot be read to their end, a
    trace says it, which takes longer.

    Args:
        model: a built `keras.Model`.
        sample: a batch of inputs, for subclassed models whose inputs are not all of the model's float type.
    """
    import keras

    try:
        found = fingerprint.variables_beside(model)
    except fingerprint.Unhashable:
        found = _in_a_trace(model, sample) if on_tensorflow() else []
    if not on_tensorflow():
        found = [one for one in found if isinstance(one, keras.Variable)]
    return [one for one in found if getattr(one.dtype, "name", one.dtype) != "string"]


def of_tensorflow(variable: Any) -> Any:
    """Return the `tf.Variable` behind a variable of Keras, or one that is none of Keras itself."""
    import keras

    return variable.value if isinstance(variable, keras.Variable) else variable


def _in_a_trace(model: Any, sample: Any) -> list[Any]:
    with suppress(KerasTRTError), policies.as_it_is():  # what cannot be traced has no engine
        takes = input_signature(model, sample, strings=True)
        return list(trace(model, takes.input_structure, takes.inputs).function.graph.variables)
    return []
