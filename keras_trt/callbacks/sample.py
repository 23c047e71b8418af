"""What validation data says of a model that an engine must know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import ExportError
from ..export.signature import input_signature
from ..inputs import is_arrays
from ..options import BuildOptions


def with_types(options: BuildOptions, model: Any, x: Any) -> BuildOptions:
    """Return options with validation data as the sample, where it alone says that a model takes integers or booleans.

    A subclassed model does not say its types, and would get an engine for floats. Rows of other shapes than the
    model's are not taken, as a sample says the sizes too.

    Args:
        options: what the user asks for, whose own sample counts.
        model: a built `keras.Model`.
        x: the inputs of the validation data. A dataset is not read.
    """
    if options.sample is not None or not is_arrays(x):
        return options
    try:
        guessed, given = input_signature(model), input_signature(model, x)
    except ExportError:  # `accelerate` says what is wrong with the model
        return options
    same = [(spec.name, spec.shape) for spec in guessed.inputs] == [(spec.name, spec.shape) for spec in given.inputs]
    other = any(spec.dtype.startswith(("int", "uint", "bool")) for spec in given.inputs)
    return replace(options, sample=x) if guessed.types_guessed and same and other else options
