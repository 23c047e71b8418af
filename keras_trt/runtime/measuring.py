"""What batches cost on this machine, and how many batches and threads a pipeline needs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import product

import numpy as np

from ..backends.base import Array
from ..errors import CudaError
from ..specs import Cost, Pipelining
from . import copying
from .plan import Batch
from .pool import SLOTS

#: Runs batches of rows, and returns their outputs.
Run = Callable[[Sequence[Array], Sequence[Batch]], Sequence[Array]]
#: Makes so many rows of zeros, for each input.
Zeros = Callable[[int], list[Array]]

#: How pipelines run where it was not measured, or does not matter.
USUAL = Pipelining(SLOTS, copying.THREADS)
#: Batches of a pipeline that is timed, and the seconds that they may take: of so many, what the first and the last take
#: alone is a small part.
_BATCHES, _SECONDS = 24, 0.25
#: The most bytes of theirs, with the outputs, that are copied again and again, so that no cache holds them: that of an
#: H200's host has 300 MiB.
_BYTES = 512 << 20
#: How many batches may be under way, of those that are tried: where a loop before this one had 0.77 of what an engine
#: does with four, it had 0.93 with eight (MobileNetV2 on an H200, 600 KiB a row).
_DEPTHS = (SLOTS, SLOTS + 2, SLOTS + 4)
#: Few runs are timed, and of those that take less than so many seconds together more, up to so many: what disturbs a
#: short run may last longer than some of them. An MLP whose calls take 0.1 ms was found to take 0.5 by three.
_FEW, _MANY, _ENOUGH = 5, 50, 0.02
#: Bytes that one thread copies in a second, at least.
_ONE_THREADS = 5e9


def costs(run: Run, zeros: Zeros, sizes: Iterable[int]) -> dict[int, Cost]:
    """Return what a batch takes, by its size: alone, and as one of many that are under way."""
    found: dict[int, Cost] = {}
    for size in sizes:
        alone = _least_seconds(run, zeros(size), [Batch(0, size, size)])
        rows, batches = _pipeline(run, zeros, size, alone)
        several = _seconds_if_they_fit(run, rows, batches)
        further = (several - alone) / (len(batches) - 1) if several < math.inf else alone  # as one after the other
        found[size] = Cost(alone, max(further, alone / _BATCHES))  # noise must not make it nothing
    return found


def pipelining(run: Run, zeros: Zeros, use: Callable[[Pipelining], None], size: int, cost: Cost) -> Pipelining | None:
    """Return the fewest batches and threads that come within 2 % of the best, which are in use then.

    Args:
        run: runs a pipeline as it was last told to.
        zeros: makes rows.
        use: tells it.
        size: of the batches of a pipeline.
        cost: of each.

    Returns:
        `None` where it does not matter, as one thread copies a batch sooner than the GPU computes it, or at once.
    """
    nbytes = size * sum(array.nbytes for array in zeros(1))
    if not 2 * copying.PIECE <= nbytes <= _BYTES or nbytes / _ONE_THREADS < cost.further:
        return None
    rows, batches = _pipeline(run, zeros, size, cost.alone)
    cores = copying.cores()
    depths = [depth for depth in _DEPTHS if depth <= max(len(batches), SLOTS)]
    tried = [Pipelining(*one) for one in product(depths, sorted({min(4, cores), min(8, cores)}))]
    seconds: dict[Pipelining, list[float]] = {how: [] for how in tried}
    for how in (*tried, *reversed(tried)):  # what disturbs one of them may be over the second time
        if math.inf not in seconds[how]:
            use(how)
            seconds[how].append(_seconds_if_they_fit(run, rows, batches))
    least = {how: math.inf if math.inf in found else min(found) for how, found in seconds.items()}
    best = next(how for how in tried if least[how] <= 1.02 * min(least.values()))
    use(best)
    return best


def _pipeline(run: Run, zeros: Zeros, size: int, alone: float) -> tuple[list[Array], list[Batch]]:
    """Return rows and batches of one size, each of which takes so many seconds alone: two at least."""
    count = max(min(int(_SECONDS / alone), _BATCHES), 2)
    rows = zeros(size)
    nbytes = sum(array.nbytes for array in (*rows, *run(rows, [Batch(0, size, size)])))
    blocks = max(min(_BYTES // max(nbytes, 1), count), 1)
    starts = [i % blocks * size for i in range(count)]
    return zeros(blocks * size), [Batch(start, start + size, size) for start in starts]


def _least_seconds(run: Run, rows: Sequence[Array], batches: Sequence[Batch]) -> float:
    """Return the least of what runs take, as others may use the GPU too; not of the first two, before CUDA graphs."""
    seconds: list[float] = []
    while len(seconds) < _FEW or (len(seconds) < _MANY and sum(seconds[2:]) < _ENOUGH):
        began = time.perf_counter()
        run(rows, batches)
        seconds.append(time.perf_counter() - began)
    return min(seconds[2:])


def _seconds_if_they_fit(run: Run, rows: Sequence[Array], batches: Sequence[Batch]) -> float:
    """Return the least seconds; infinitely many where there is no memory for so many batches at once."""
    try:
        return _least_seconds(run, rows, batches)
    except CudaError as error:
        if not error.out_of_memory:
            raise
        return math.inf


def zeros(shapes: Iterable[Sequence[int]], dtypes: Iterable[np.dtype[np.generic]], rows: int) -> list[Array]:
    """Return zeros that were written, as what is only promised is one page that all caches hold."""
    found = [np.empty((rows, *shape), dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    for array in found:
        array.fill(0)
    return found
