"""Rows → the engine's batches, by what a batch of each size costs."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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


class BatchPlan:
    """How rows are cut into batches.

    Args:
        smallest: smallest batch that the engine takes.
        largest: largest one.
        costs: seconds that a batch takes, by its size. Empty where nothing was measured: batches are then as large as
            can be, and padded only up to the smallest.
    """

    def __init__(self, smallest: int, largest: int, costs: Mapping[int, float] | None = None) -> None:
        self.smallest, self.largest = smallest, largest
        allowed = {size: cost for size, cost in (costs or {}).items() if smallest <= size <= largest}
        self._costs = tuple(sorted(allowed.items()))
        self._seconds: dict[int, float | None] = {}

    def cut(self, rows: int) -> Iterator[Batch]:
        """Yield batches that hold all rows, in order."""
        start = 0
        for size in self._sizes(rows):
            stop = min(start + size, rows)
            yield Batch(start, stop, size)
            start = stop

    def seconds(self, size: int) -> float | None:
        """Return what a batch of the size takes at most, or `None` where nothing was measured."""
        if size not in self._seconds:
            self._seconds[size] = next((cost for known, cost in self._costs if known >= size), None)
        return self._seconds[size]

    def _sizes(self, rows: int) -> Iterator[int]:
        if not self._costs:
            while rows > 0:
                yield max(min(rows, self.largest), self.smallest)
                rows -= self.largest
            return
        best, _ = min(self._costs, key=lambda pair: pair[1] / pair[0])
        # The best size fills all but the end; what is the cheapest end does not depend on how much came before.
        while rows > 2 * self._costs[-1][0]:
            yield best
            rows -= best
        yield from _cheapest(rows, self._costs)


@functools.lru_cache(4096)
def _cheapest(rows: int, costs: tuple[tuple[int, float], ...]) -> tuple[int, ...]:
    """Return the sizes of the batches that run `rows` rows at the least cost, the largest first."""
    least: list[tuple[float, int]] = [(0.0, 0)]
    for count in range(1, rows + 1):
        least.append(min((least[max(count - size, 0)][0] + cost, size) for size, cost in costs))
    sizes = []
    while rows > 0:
        sizes.append(least[rows][1])
        rows -= sizes[-1]
    return tuple(sorted(sizes, reverse=True))
