"""Batches for engines that take numpy arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..backends.base import Array, HostEngine
from .plan import Batch
from .results import Results


class HostRunner:
    """Runs a `HostEngine` batch by batch. Safe to call from many threads.

    Args:
        engine: a loaded engine. `close` closes it too.
    """

    def __init__(self, engine: HostEngine) -> None:
        self.input_names = engine.input_names
        self.output_names = engine.output_names
        self._engine = engine

    def run(self, feeds: Mapping[str, Array], batches: Iterable[Batch], order: Sequence[int], results: Results) -> None:
        """Run batches of rows.

        Args:
            feeds: all rows of each input.
            batches: which rows run together.
            order: places in `output_names` of the outputs that are wanted.
            results: takes them.
        """
        for batch in batches:
            outputs = self._engine.run({name: _rows_of(array, batch) for name, array in feeds.items()})
            results.put(batch, [outputs[place] for place in order], owned=True)

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()


def _rows_of(array: Array, batch: Batch) -> Array:
    """Return the rows of a batch, padded by the last one: real rows cannot make the padding overflow."""
    rows = array[batch.start : batch.stop]
    missing = batch.size - len(rows)
    return rows if missing <= 0 else np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
