"""The ways to hand data over to `predict`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .models import kept, keras, rows_of, tf


class Batches(keras.utils.PyDataset):
    """Batches of inputs and targets by their number."""

    def __init__(self, x: Any, size: int, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.x, self.size = x, size

    def __len__(self) -> int:
        return -(-rows_of(self.x) // self.size)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        batch = kept(self.x, slice(index * self.size, (index + 1) * self.size))
        return _as_tuples(batch), np.zeros(rows_of(batch))


def _as_tuples(x: Any) -> Any:
    """tf.data stacks lists, so that there they are tuples."""
    if isinstance(x, dict):
        return {key: _as_tuples(child) for key, child in x.items()}
    return tuple(map(_as_tuples, x)) if isinstance(x, list | tuple) else x


def _generator(x: Any, size: int) -> Iterator[Any]:
    for start in range(0, rows_of(x), size):
        yield (_as_tuples(kept(x, slice(start, start + size))),)


def _slices(*parts: Any) -> Any:
    return tf.data.Dataset.from_tensor_slices(parts)


#: Each takes arrays and a batch size, and returns what is given to `predict`.
FORMS: dict[str, Callable[[Any, int], Any]] = {
    "tensors": lambda x, _: keras.tree.map_structure(tf.constant, x),
    "dataset of x": lambda x, size: _slices(_as_tuples(x)).batch(size),
    "dataset of x, y": lambda x, size: _slices(_as_tuples(x), np.zeros(rows_of(x))).batch(size),
    "generator": lambda x, size: _generator(x, size),
    "PyDataset": lambda x, size: Batches(x, size),
    "PyDataset with 2 workers": lambda x, size: Batches(x, size, workers=2),
}
