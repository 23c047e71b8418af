"""Rows → the engine's batches, by what a batch of each size costs."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..specs import Cost

#: Sizes that are worth a slot and a CUDA graph of their own, beside the largest.
USUAL_SIZES = (1, 8, 32)


@dataclass(frozen=True)
class Batch:
    """A batch of an engine.

    Attributes:
        start, stop: the rows that it holds.
        size: with which size the engine runs it; what is more than its rows is padding.
    """

    start: int
    stop: int
    size: int


#: One batch is run where several, pipelined, would not take less than this share of its time: they need more slots.
WORTH = 0.9


class BatchPlan:
    """How rows are cut into batches.

    Args:
        smallest: smallest batch that the engine takes.
        largest: largest one.
        costs: what a batch takes, by its size. Empty where nothing was measured: batches are then as large as can be,
            and padded only up to the smallest.
    """

    def __init__(self, smallest: int, largest: int, costs: Mapping[int, Cost] | None = None) -> None:
        self.smallest, self.largest = smallest, largest
        allowed = {size: Cost(*cost) for size, cost in (costs or {}).items() if smallest <= size <= largest}
        self._costs = tuple(sorted(allowed.items()))
        self._seconds: dict[int, float | None] = {}
        self._whole: dict[int, bool] = {}

    def cut(self, rows: int) -> Iterator[Batch]:
        """Yield batches that hold all rows, in order."""
        start = 0
        for size in self._sizes(rows):
            stop = min(start + size, rows)
            yield Batch(start, stop, size)
            start = stop

    def is_whole(self, rows: int) -> bool:
        """Tell whether rows are best run as one batch of just that size, for which a graph is there."""
        if rows not in self._whole:
            alone = self.seconds(rows)
            fits = self.smallest <= rows <= self.largest
            self._whole[rows] = fits and (alone is None or WORTH * alone <= self._total(list(self._sizes(rows))))
        return self._whole[rows]

    def seconds(self, size: int) -> float | None:
        """Return what a batch of the size takes, between what was measured; `None` of one larger than all that."""
        if size not in self._seconds:
            sizes = [known for known, _ in self._costs]
            beyond = not sizes or size > sizes[-1]
            seconds = None if beyond else float(np.interp(size, sizes, [cost.alone for _, cost in self._costs]))
            self._seconds[size] = seconds
        return self._seconds[size]

    def _total(self, sizes: Sequence[int]) -> float:
        costs = dict(self._costs)
        return costs[sizes[0]].alone + sum(costs[size].further for size in sizes[1:])

    def _sizes(self, rows: int) -> Iterator[int]:
        if not self._costs:
            while rows > 0:
                yield max(min(rows, self.largest), self.smallest)
                rows -= self.largest
            return
        best, _ = min(self._costs, key=lambda pair: pair[1].further / pair[0])
        # The best size fills all but the end; what is the cheapest end does not depend on how much came before.
        most = 2 * self._costs[-1][0]
        many = rows > most
        while rows > most:
            yield best
            rows -= best
        if rows > 0:
            yield from _cheapest(rows, self._costs, behind_others=many)


Costs = tuple[tuple[int, Cost], ...]


@functools.lru_cache(4096)
def _cheapest(rows: int, costs: Costs, *, behind_others: bool) -> tuple[int, ...]:
    """Return the sizes of the batches that run `rows` rows at the least cost, the largest first."""
    found: list[tuple[float, tuple[int, ...]]] = []
    # Alone, one of the largest of them is the first, and takes its whole time.
    for count, (first, cost) in enumerate(costs, 1):
        sizes = [] if behind_others else [first]
        total, left = (0.0, rows) if behind_others else (cost.alone, max(rows - first, 0))
        least = _least(2 * costs[-1][0], costs[:count])
        total += least[left][0]
        while left > 0:
            sizes.append(least[left][1])
            left -= sizes[-1]
        found.append((total, tuple(sorted(sizes, reverse=True))))
    return min(found)[1]


@functools.lru_cache(64)
def _least(most: int, costs: Costs) -> list[tuple[float, int]]:
    """Return, for each number of rows, the least that batches for them cost behind others, and the size of one."""
    least = [(0.0, 0)]
    for count in range(1, most + 1):
        least.append(min((least[max(count - size, 0)][0] + cost.further, size) for size, cost in costs))
    return least
