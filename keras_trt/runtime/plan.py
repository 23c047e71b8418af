"""Rows → the engine's batches, by what a batch of each size costs."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
#: Several calls become one batch where it takes no more than this share of theirs.
WORTH = 0.9

#: Calls that take less, in seconds, are run one after the other. Two at once take Python's interpreter lock from each
#: other at every call into CUDA, which was seen to cost 0.1 ms and more (H100, 16 cores). Longer ones gain by being run
#: beside each other: one copies while the GPU computes the other.
SHORT = 2.5e-4
#: Longer calls of so many threads, at least, are run as one batch. Each whose call was run along must be woken and then
#: gets the interpreter lock, which takes some 0.2 ms of all (H200, 32 cores). Short ones, of 0.09 ms, had 0.4 of their
#: throughput when they were run so, and of two threads each would wake the other at every call.
WORTH_WAKING = 3
#: Calls that each have a batch of their own are taken to overlap in so many ways at most: one brings in, one computes,
#: one brings out. Batches of one call overlap in more, but threads take the interpreter lock from each other.
BESIDE = 3
#: Batches that take longer, in seconds, are of one call: a turn that takes a second is taken for lost.
LONG = 0.1


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
        allowed = {size: cost for size, cost in (costs or {}).items() if smallest <= size <= largest}
        self._costs = tuple(sorted(allowed.items()))
        self._seconds: dict[tuple[int, bool], float | None] = {}
        self._whole: dict[int, bool] = {}
        self._joined: dict[tuple[int, int], bool] = {}

    def cut(self, rows: int) -> Iterator[Batch]:
        """Yield batches that hold all rows, in order."""
        start = 0
        for size in self._sizes(rows):
            stop = min(start + size, rows)
            yield Batch(start, stop, size)
            start = stop

    @functools.cached_property
    def on_gpu(self) -> BatchPlan:
        """The plan of rows that lie on the GPU: what a batch takes there is nearest to what a further one does."""
        further = {size: Cost(cost.further, cost.further) for size, cost in self._costs}
        return BatchPlan(self.smallest, self.largest, further)

    def is_whole(self, rows: int) -> bool:
        """Tell whether rows are best run as one batch of just that size, for which a graph is there."""
        if rows not in self._whole:
            alone = self.seconds(rows)
            fits = self.smallest <= rows <= self.largest
            self._whole[rows] = fits and (alone is None or WORTH * alone <= self._total(list(self._sizes(rows))))
        return self._whole[rows]

    def is_short(self, size: int) -> bool:
        """Tell whether a batch of the size is known to take so little that two at once would take longer."""
        seconds = self.seconds(size)
        return seconds is not None and seconds < SHORT

    def is_joined(self, rows: int, calls: int) -> bool:
        """Tell whether, of so many calls of so many rows each, some are best run as one batch."""
        known = self._joined.get((rows, calls))
        if known is None:
            known = not self.is_short(rows) and self.together([rows] * calls)[0] > 1
            self._joined[rows, calls] = known
        return known

    def together(self, calls: Iterable[int]) -> tuple[int, int]:
        """Return how many of some calls are best run as one batch, and in which size.

        Args:
            calls: the numbers of rows of each; none is short. The first is run in any case, and of the others those
                that come first.
        """
        count, size, rows, apart = 1, 0, 0, 0.0
        for place, more in enumerate(calls, 1):
            size, rows = size or more, rows + more
            seconds = self.seconds(more, further=True)
            fitting = next(((known, cost) for known, cost in self._costs if known >= rows), None)
            if seconds is None or fitting is None:
                break
            apart += max(seconds, (self.seconds(more) or 0.0) / BESIDE)
            if place >= WORTH_WAKING and fitting[1].alone <= min(WORTH * apart, LONG):
                count, size = place, fitting[0]
        return count, size

    def seconds(self, size: int, *, further: bool = False) -> float | None:
        """Return what a batch of the size takes, between what was measured; `None` of one larger than all that.

        Args:
            size: number of rows.
            further: whether it is one behind others.
        """
        if (size, further) not in self._seconds:
            sizes = [known for known, _ in self._costs]
            beyond = not sizes or size > sizes[-1]
            costs = [cost.further if further else cost.alone for _, cost in self._costs]
            self._seconds[size, further] = None if beyond else float(np.interp(size, sizes, costs))
        return self._seconds[size, further]

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
FloatArray = np.ndarray[Any, np.dtype[np.float64]]


@functools.lru_cache(4096)
def _cheapest(rows: int, costs: Costs, *, behind_others: bool) -> tuple[int, ...]:
    """Return the sizes of the batches that run `rows` rows at the least cost, the largest first."""
    sizes: list[int] = []
    if not behind_others:  # one of the largest of them is the first, and takes its whole time
        upto = [costs[:count] for count in range(1, len(costs) + 1)]
        costs = min(upto, key=lambda some: some[-1][1].alone + _least(rows - some[-1][0], some)[-1])
        sizes.append(costs[-1][0])
    left = rows - sum(sizes)
    least = _least(left, costs)
    while left > 0:
        size, _ = min(costs, key=lambda pair: least[max(left - pair[0], 0)] + pair[1].further)
        sizes.append(size)
        left -= size
    return tuple(sorted(sizes, reverse=True))


def _least(rows: int, costs: Costs) -> FloatArray:
    """Return, for each number of rows up to `rows`, the least that batches for them cost behind others."""
    rows = max(rows, 0)
    return _least_up_to((1 << rows.bit_length()) - 1, costs)[: rows + 1]  # few tables, of what is asked for alone


@functools.lru_cache(64)
def _least_up_to(most: int, costs: Costs) -> FloatArray:
    least = np.full(most + 1, np.inf)
    least[0] = 0
    for known, cost in costs:
        size = min(known, most) or 1  # no batch is any better than one that holds all rows
        # Of numbers that lie `size` apart, each is reached from those before it; what is below 0 is no row, and free.
        padded = np.full((most // size + 2) * size, np.inf)
        padded[:size] = 0
        padded[size - 1 : size + most] = least
        chains = padded.reshape(-1, size)
        seconds = cost.further * np.arange(len(chains))[:, np.newaxis]
        least = (np.minimum.accumulate(chains - seconds) + seconds).ravel()[size - 1 : size + most]
    return least
