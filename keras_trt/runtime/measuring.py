"""What batches cost on this machine, and how many batches and threads a pipeline needs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product

import numpy as np

from ..backends.base import Array
from ..errors import CudaError
from ..specs import Cost, Pipelining
from . import copying
from .plan import Batch
from .pool import SLOTS

#: Runs batches of rows.
Run = Callable[[Sequence[Array], Sequence[Batch]], object]
#: Makes so many rows of zeros, for each input.
Zeros = Callable[[int], list[Array]]

#: Batches of a pipeline that is timed; and the most bytes of theirs that are copied again and again, so that no cache
#: holds them.
_BATCHES, _BYTES = 16, 256 << 20
#: Bytes that one thread copies in a second, at least.
_ONE_THREADS = 5e9


def costs(run: Run, zeros: Zeros, sizes: Iterable[int]) -> dict[int, Cost]:
    """Return what a batch takes, by its size: each is run five times alone and five times two at once.

    The least of the last three counts, which CUDA graphs run: others may use the GPU too.
    """
    found: dict[int, Cost] = {}
    for size in sizes:
        rows, batches = zeros(2 * size), [Batch(0, size, size), Batch(size, 2 * size, size)]
        alone = _least_seconds(run, [array[:size] for array in rows], batches[:1], 5)
        both = _least_seconds(run, rows, batches, 5)
        # It cannot be less: the slowest of bringing in, computing and bringing out takes a third of it at least.
        found[size] = Cost(alone, max(both - alone, alone / 3))
    return found


def pipelining(
    run: Run, zeros: Zeros, use: Callable[[Pipelining], None], costs: Mapping[int, Cost]
) -> Pipelining | None:
    """Return the fewest batches and threads that come within 2 % of the best, which are in use then.

    Args:
        run: runs a pipeline as it was last told to.
        zeros: makes rows.
        use: tells it.
        costs: of batches; pipelines are of the best size.

    Returns:
        `None` where it does not matter, as one thread copies a batch sooner than the GPU computes it, or at once.
    """
    size, cost = min(costs.items(), key=lambda pair: pair[1].further / pair[0])
    nbytes = size * sum(array.nbytes for array in zeros(1))
    if not 2 * copying.PIECE <= nbytes <= _BYTES or nbytes / _ONE_THREADS < cost.further:
        return None
    blocks = min(max(_BYTES // nbytes, 1), _BATCHES)
    starts = [i % blocks * size for i in range(_BATCHES)]
    rows, batches = zeros(blocks * size), [Batch(start, start + size, size) for start in starts]
    cores = copying.cores()
    tried = [Pipelining(*one) for one in product((SLOTS, SLOTS + 2), sorted({min(4, cores), min(8, cores)}))]
    seconds: dict[Pipelining, float] = {}
    for how in tried:
        use(how)
        try:
            seconds[how] = _least_seconds(run, rows, batches, 5)
        except CudaError as error:
            if not error.out_of_memory:
                raise
            seconds[how] = math.inf
    best = next(how for how in tried if seconds[how] <= 1.02 * min(seconds.values()))
    use(best)
    return best


def _least_seconds(run: Run, rows: Sequence[Array], batches: Sequence[Batch], times: int) -> float:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        run(rows, batches)
        seconds.append(time.perf_counter() - began)
    return min(seconds[2:])


def zeros(shapes: Iterable[Sequence[int]], dtypes: Iterable[np.dtype[np.generic]], rows: int) -> list[Array]:
    """Return zeros that were written, as what is only promised is one page that all caches hold."""
    found = [np.empty((rows, *shape), dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    for array in found:
        array.fill(0)
    return found
