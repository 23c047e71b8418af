"""Copies of arrays by several threads: one thread moves 10 GB/s where a GPU takes 50."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import numpy as np

from .._interrupts import deferred

Array = np.ndarray[Any, np.dtype[Any]]

#: Bytes below which a further thread costs more than it saves: about 100 µs of copying.
PIECE = 1 << 20


def cores() -> int:
    """Return how many threads this process may run at once."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


#: How many threads copy where it was not measured what is best (see `Session.measure`): more of them wait for the
#: interpreter lock and for memory.
THREADS = min(4, cores())


class Rows:
    """The rows of several arrays, one after the other, as of one array.

    Args:
        parts: arrays of one type, whose rows have one shape.
    """

    def __init__(self, parts: Sequence[Array]) -> None:
        self.parts = parts
        self.dtype = parts[0].dtype
        self.shape: tuple[int, ...] = (sum(map(len, parts)), *parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Rows:
        start, stop, _ = rows.indices(len(self))
        found = []
        for part in self.parts:
            found.append(part[max(start, 0) : max(stop, 0)])
            start, stop = start - len(part), stop - len(part)
        return Rows(found)


def put(target: Array, source: Array | Rows) -> None:
    """Copy `source` to `target`, of the same shape, with a cast if need be."""
    if isinstance(source, Rows):  # both without the GIL
        np.concatenate(source.parts, out=target, casting="unsafe")
    else:
        np.copyto(target, source, casting="unsafe")


def copy(target: Array, source: Array) -> None:
    """Copy `source` to `target`, of the same shape, with a cast if need be, by as many threads as pay."""
    if target.nbytes < 2 * PIECE:
        np.copyto(target, source, casting="unsafe")
        return
    under_way = Copy(target, source)
    try:
        under_way.begin()
        under_way.finish()
    except BaseException:
        if under_way.begun:
            under_way.finish()  # Ctrl-C may have come before it could
        raise


class _Piece:
    """A part of a copy, which one thread does."""

    __slots__ = ("done", "error", "ran", "source", "taken", "target")

    def __init__(self, target: Array, source: Array | Rows) -> None:
        self.target, self.source = target, source
        self.taken = False  # by a thread that does it
        self.error: BaseException | None = None
        self.ran = False
        self.done = threading.Lock()  # held until it has; then by whoever waits for that, for a moment
        self.done.acquire()

    def run(self) -> None:
        try:
            put(self.target, self.source)
        except BaseException as error:
            self.error = error
        finally:
            self.ran = True
            self.done.release()


class Copy:
    """A copy of `source` to `target`, of the same shape, with a cast if need be, that is done in the background.

    Built on locks and a queue that are C's: what a `Future` and a `ThreadPoolExecutor` take for a piece is as long as
    a fast machine needs for half a megabyte, and all threads wait for it.

    Args:
        target, source: of one shape.
        threads: how many do it at most, beside whoever calls `finish`.
        pieces_a_thread: into how many pieces it is cut for each of them, of at least one row and of `PIECE` bytes.
    """

    def __init__(self, target: Array, source: Array | Rows, threads: int = THREADS, pieces_a_thread: int = 1) -> None:
        self._target, self._source = target, source
        self._threads = threads
        most = threads * pieces_a_thread
        self._count = max(min(target.nbytes // PIECE, len(target), most), 1) if target.ndim else 1
        self._pieces: list[_Piece] = []
        self._taking = threading.Lock()

    def begin(self) -> None:
        """Let other threads begin with the pieces, if there are several. `finish` must follow, also after an error.

        Raises:
            ValueError: if the shapes differ.
        """
        if self._count > 1:
            target, source, count = self._target, self._source, self._count
            if source.shape != target.shape:
                raise ValueError(f"A source of shape {source.shape} does not fit {target.shape}: no broadcast.")
            bounds = [len(target) * i // count for i in range(count + 1)]
            self._pieces = [_Piece(target[i:j], source[i:j]) for i, j in itertools.pairwise(bounds)]
            _help_with(self, min(count, self._threads))

    @property
    def begun(self) -> bool:
        """Whether other threads may be at pieces of it."""
        return bool(self._pieces)

    @property
    def is_under_way(self) -> bool:
        """Whether pieces were given to other threads and not all are done, so that `finish` takes a while."""
        return not all(piece.ran for piece in self._pieces)

    def finish(self, there: Callable[[int], None] | None = None) -> None:
        """Do what no other thread has begun, and wait until all is copied. May be called again.

        Args:
            there: is told how many rows are copied, from the first on, as more of several pieces are. Whoever finishes
                a copy does pieces of it, and tells between them.

        Raises:
            ValueError: if the shapes differ. What a piece has raised is raised once.
        """
        if not self._pieces:
            put(self._target, self._source)
            return
        with deferred():  # Ctrl-C must not leave a thread behind that still writes
            pieces, rows, failed = self._pieces, 0, False
            while pieces:
                while not pieces[0].ran and self.help():
                    pass
                with pieces[0].done:
                    pass
                ended = list(itertools.takewhile(lambda piece: piece.ran, pieces))
                pieces = pieces[len(ended) :]
                rows += sum(len(piece.target) for piece in ended)
                failed = failed or any(piece.error for piece in ended)
                if there and not failed:
                    there(rows)
        errors = [piece.error for piece in self._pieces if piece.error is not None]
        for piece in self._pieces:
            piece.error = None
        if errors:
            raise errors[0]

    def help(self) -> bool:
        """Do a piece that no thread has begun, and return whether there was one."""
        mine = None
        try:
            with self._taking:
                for piece in self._pieces:
                    if not piece.taken:
                        mine, piece.taken = piece, True
                        break
            if mine:
                mine.run()
        except BaseException:  # of a handler of a signal: whoever finishes does it
            if mine and not mine.ran:
                mine.taken = False
            raise
        return mine is not None


_starting = threading.RLock()  # a handler of a signal may copy something meanwhile
_started: list[threading.Thread] = []
_jobs: SimpleQueue[Copy] = SimpleQueue()


def _help_with(under_way: Copy, count: int) -> None:
    """Let so many threads help with a copy; fewer, where they cannot be started, as at exit: `finish` does the rest."""
    if len(_started) < count:
        with _starting, suppress(RuntimeError):
            while len(_started) < count:
                thread = threading.Thread(target=_work, args=(_jobs,), name="keras_trt-copy", daemon=True)
                thread.start()
                _started.append(thread)
    for _ in range(min(count, len(_started))):
        _jobs.put(under_way)


def _work(jobs: SimpleQueue[Copy]) -> None:
    while True:
        _help(jobs.get())


def _help(under_way: Copy) -> None:  # by a name of its own, which keeps no arrays until the next job
    while under_way.help():
        pass


def _forget() -> None:
    global _starting, _jobs
    _starting, _jobs = threading.RLock(), SimpleQueue()
    _started.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # threads do not survive a fork
