"""What the batches of one call give, put together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backends.base import Array
from ..cuda import DeviceArray
from ..errors import InputError, VerificationError
from . import copying
from .plan import Batch


class RowsDependError(VerificationError):
    """An output has not one row for each row of its batch, so that its batches cannot be regrouped."""


class Results:
    """The outputs for all rows of a call. Batches may be put from several threads.

    Args:
        rows: how many there are.
        dtypes: of the outputs.
        progress: called with the number of rows done, after each batch.
        out: arrays of all rows, on the host or on a GPU, that take the outputs. Defaults to `None`: new ones.
        rows_independent: whether each output must have one row for each of its batch. Defaults to `False`.
    """

    def __init__(
        self,
        rows: int,
        dtypes: Sequence[np.dtype[Any]],
        progress: Callable[[int], None] | None = None,
        out: Sequence[Array | DeviceArray] | None = None,
        *,
        rows_independent: bool = False,
    ) -> None:
        self._out, self._rows_independent = out, rows_independent
        self.arrays: list[Any] = list(out or ())
        self._rows, self._dtypes, self._progress = rows, dtypes, progress
        self._done = 0
        self._lock = threading.Lock()

    def put(self, batch: Batch, outputs: Sequence[Array], *, owned: bool = False) -> None:
        """Take the outputs of a batch. Those of a batch that holds all rows may have any shape.

        Args:
            batch: where its rows belong.
            outputs: arrays of `batch.size` rows.
            owned: whether nobody else will write to them.

        Raises:
            RowsDependError: if rows are independent, and these have not so many, or differ in shape from others.
            InputError: if `out` has not their shape.
        """
        if self._rows_independent:
            for output in outputs:
                if output.shape[:1] != (batch.size,):
                    raise RowsDependError(f"Outputs of shapes {[one.shape for one in outputs]} for {batch.size} rows")
        if batch.size == self._rows and not self.arrays:
            pairs = zip(outputs, self._dtypes, strict=True)
            self.arrays = [
                output.astype(dtype, copy=False) if owned else _copied(output, dtype) for output, dtype in pairs
            ]
        else:
            self._make_room(outputs)
            count = batch.stop - batch.start
            for array, output in zip(self.arrays, outputs, strict=True):
                if output.shape != (batch.size, *array.shape[1:]):
                    if self._out is not None:
                        raise _no_room(output, array)
                    raise RowsDependError(f"Outputs of shapes {output.shape} and {array.shape} of two batches")
                if not isinstance(array, DeviceArray):  # the slot has written to those
                    copying.copy(array[batch.start : batch.stop], output[:count])
        if self._progress is not None:
            with self._lock:
                self._done += batch.stop - batch.start
                self._progress(self._done)

    def targets(self, batch: Batch, names: Sequence[str]) -> dict[str, DeviceArray]:
        """Return where on a GPU the rows of a batch belong, by the names of the outputs."""
        if self._out is None:
            return {}
        pairs = zip(names, self.arrays, strict=False)
        return {name: array[batch.start : batch.stop] for name, array in pairs if isinstance(array, DeviceArray)}

    def _make_room(self, outputs: Sequence[Array]) -> None:
        with self._lock:
            if not self.arrays:
                self.arrays = [
                    np.empty((self._rows, *output.shape[1:]), dtype)
                    for output, dtype in zip(outputs, self._dtypes, strict=True)
                ]


def onwards(progress: Callable[[int], None]) -> Callable[[int], None]:
    """Return what reports how many rows are done; those that are run again are not reported again."""
    reported = 0

    def report(done: int) -> None:
        nonlocal reported
        if done > reported:
            reported = done
            progress(done)

    return report


def _copied(output: Array, dtype: np.dtype[Any]) -> Array:
    array = np.empty(output.shape, dtype)
    copying.copy(array, output)
    return array


def _no_room(output: Array, target: Array | DeviceArray) -> InputError:
    return InputError(
        f"This batch has an output of shape {output.shape}. Received: `out` of shape {target.shape}.",
        expected=output.shape,
        received=target.shape,
    )


def deliver(outputs: Sequence[Array], out: Sequence[Array | DeviceArray]) -> list[Array | DeviceArray]:
    """Copy outputs to where the caller wants them, and return that.

    Raises:
        InputError: if one has not the output's shape.
    """
    for output, target in zip(outputs, out, strict=True):
        if output.shape != target.shape:
            raise _no_room(output, target)
        if isinstance(target, DeviceArray):
            target.assign(output)
        else:
            copying.copy(target, output)
    return list(out)


def apart(array: Array | DeviceArray, others: Sequence[Array]) -> Array | DeviceArray:
    """Return an array, or a copy of it where it may share memory with others."""
    if isinstance(array, DeviceArray) or not any(np.may_share_memory(array, other) for other in others):
        return array
    return array.copy()
