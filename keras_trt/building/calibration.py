"""What a model is calibrated with: some hundred of the user's own rows."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np

from .. import data
from ..errors import InputError
from ..inputs import Array, is_arrays, standardize
from ..options import BuildOptions
from ..specs import Signature

#: More rows make calibration slower, and hardly change the range that numbers have.
ROWS = 512


def uncalibrated(options: BuildOptions) -> str | None:
    """Return what is said where a precision needs `calibration_data` and there is none; `None` where all is well."""
    if options.precision not in ("int8", "fp8") or options.calibration_data is not None:
        return None
    return (
        f"precision={options.precision!r} needs `calibration_data`: a few hundred rows like those that the model "
        "will see, as arrays or a dataset. Random rows would give ranges that are of no use."
    )


def calibration_rows(options: BuildOptions, takes: Signature) -> list[Array] | None:
    """Return the flat rows of `options.calibration_data`, or `None` where the precision needs none.

    Args:
        options: with arrays or anything that `predict` takes batches from.
        takes: the inputs of the model.

    Raises:
        ValueError: if there are none and the precision needs them.
        InputError: if they do not fit the model or each other, or are too few.
    """
    if options.precision not in ("int8", "fp8"):
        return None
    if (why := uncalibrated(options)) is not None:
        raise ValueError(why)
    found = _rows_of(options.calibration_data, takes)
    needed = next((spec.shape[0] for spec in takes.inputs if spec.shape[0] is not None), 1)
    if len(found[0]) < needed:
        raise InputError(
            f"`calibration_data` needs at least {needed} row{'s' * (needed > 1)}. Received: {len(found[0])}.",
            expected=needed,
            received=len(found[0]),
        )
    return found


def _rows_of(given: Any, takes: Signature) -> list[Array]:
    if is_arrays(given):
        return [np.asarray(array[:ROWS]) for array in standardize(given, takes)]
    batches, _ = data.keras_batches(given, None, None, "calibration_data")
    parts: list[list[Array]] = []
    for batch in islice(batches, ROWS):
        parts.append([np.asarray(array) for array in standardize(batch, takes)])
        if sum(len(part[0]) for part in parts) >= ROWS:
            break
    if not parts:
        raise InputError("`calibration_data` has no batch.")
    if different := next((arrays for arrays in zip(*parts, strict=True) if len({a.shape[1:] for a in arrays}) > 1), ()):
        shapes = sorted({array.shape[1:] for array in different})
        raise InputError(
            f"The batches of `calibration_data` need rows of one shape. Received: {shapes}.",
            expected="one shape",
            received=shapes,
        )
    return [np.concatenate(arrays)[:ROWS] for arrays in zip(*parts, strict=True)]
