"""Copies of arrays by several threads: one thread moves 10 GB/s where a GPU takes 50."""

from __future__ import annotations

import functools
import itertools
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

import numpy as np

from .._interrupts import deferred

Array = np.ndarray[Any, np.dtype[Any]]

#: Bytes below which a further thread costs more than it saves: about 100 µs of copying.
PIECE = 1 << 20
#: Bytes that the speed of copying is measured on: more than a cache holds.
_MEASURED = 64 << 20


def copy(target: Array, source: Array) -> None:
    """Copy `source` to `target`, of the same shape, with a cast if need be, by as many threads as pay."""
    if target.nbytes < 2 * PIECE:
        np.copyto(target, source, casting="unsafe")
        return
    under_way = Copy(target, source)
    try:
        under_way.begin()
    finally:
        under_way.finish()


class Copy:
    """A copy of `source` to `target`, of the same shape, with a cast if need be, that is done in the background.

    Args:
        target, source: arrays of one shape.
        pieces: into how many it is cut, of at least one row. Defaults to `None`: as many as there are threads that pay.
    """

    def __init__(self, target: Array, source: Array, pieces: int | None = None) -> None:
        self._target, self._source = target, source
        if pieces is None:
            pieces = min(target.nbytes // PIECE, len(target)) if target.ndim else 0
            pieces = min(pieces, threads()) if pieces > 1 else 1
        self._count = pieces
        self._pieces: list[tuple[Future[None], slice]] = []

    def begin(self) -> None:
        """Let other threads begin with the pieces, if there are several. `finish` must follow, also after an error."""
        if self._count > 1:
            bounds = np.linspace(0, len(self._target), self._count + 1).astype(int)
            self._pieces = [(Future(), slice(start, stop)) for start, stop in itertools.pairwise(bounds)]
            with suppress(RuntimeError):  # no further thread can be started, as at exit: `finish` does the rest
                for piece in self._pieces:
                    _pool().submit(self._begun, *piece)

    def finish(self) -> None:
        """Do what no other thread has begun, and wait until all is copied.

        Raises:
            ValueError: if the shapes differ.
        """
        if not self._pieces:
            np.copyto(self._target, self._source, casting="unsafe")
            return
        with deferred():  # Ctrl-C must not leave a thread behind that still writes
            try:
                for future, rows in reversed(self._pieces):  # threads begin with the first
                    if future.cancel():
                        self._copy(rows)
            finally:
                begun = [future for future, _ in self._pieces if not future.cancel()]
                wait(begun)
        for future in begun:
            future.result()

    def _begun(self, piece: Future[None], rows: slice) -> None:
        """Copy a piece in another thread, unless `finish` has."""
        # Not the future of `submit`: that may raise although it has put the work into its queue.
        if piece.set_running_or_notify_cancel():
            try:
                self._copy(rows)
            except BaseException as error:
                piece.set_exception(error)
            else:
                piece.set_result(None)

    def _copy(self, rows: slice) -> None:
        np.copyto(self._target[rows], self._source[rows], casting="unsafe")  # without the GIL


@functools.cache
def threads() -> int:
    """Return how many threads copy fastest here: the fewest that come within 10 % of the best, measured once."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    source, target = (np.ones(_MEASURED, np.uint8) for _ in range(2))
    rates: dict[int, float] = {}
    for count in (1, 2, 4, 8, 16) * 2:  # twice: the first copy by so many starts their threads
        if count <= cores:
            began = time.perf_counter()
            under_way = Copy(target, source, count)
            under_way.begin()
            under_way.finish()
            rates[count] = max(rates.get(count, 0.0), 1 / (time.perf_counter() - began))
    return min(count for count, rate in rates.items() if rate >= 0.9 * max(rates.values()))


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(16, thread_name_prefix="keras_trt-copy")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
