"""Copies by several threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from queue import SimpleQueue
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_trt.runtime import copying

from .test_pool import until

Array = np.ndarray[Any, Any]


@given(rows=st.integers(0, 40), width=st.integers(0, 70_000), pieces=st.integers(1, 16))
@settings(max_examples=20, deadline=None)
def test_copies_in_pieces(rows: int, width: int, pieces: int) -> None:
    source = np.random.default_rng(rows).integers(-99, 99, (rows, width))
    target = np.full((rows, width), np.nan, "float32")
    in_pieces = copying.Copy(target, source, min(pieces, max(rows, 1)))
    in_pieces.begin()
    in_pieces.finish()
    np.testing.assert_array_equal(target, source)
    again = np.full((rows, width), np.nan, "float32")
    copying.copy(again, source)
    np.testing.assert_array_equal(again, source)


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    pieces=st.integers(1, 5),
    rows=st.slices(20),
    dtype=st.sampled_from(["int64", "float64", "float32"]),
)
@settings(deadline=None)
def test_rows_of_several_arrays_are_as_those_of_one(sizes: list[int], pieces: int, rows: slice, dtype: str) -> None:
    generator = np.random.default_rng(sizes)
    parts = [generator.integers(-99, 99, (size, 3)).astype(dtype) for size in sizes]
    whole, some = np.concatenate(parts), copying.Rows(parts)
    assert (some.shape, some.dtype, len(some)) == (whole.shape, whole.dtype, len(whole))
    rows = slice(rows.start, rows.stop)
    target = np.full(whole[rows].shape, np.nan, "float32")
    with mock.patch.object(copying, "PIECE", 1):
        copy = copying.Copy(target, some[rows], pieces)
        copy.begin()
        copy.finish()
    np.testing.assert_array_equal(target, whole[rows])


@pytest.mark.parametrize(
    ("mib", "threads", "each", "helpers", "pieces"),
    [(1, 16, 1, 0, 0), (3, 16, 1, 3, 3), (19, 4, 1, 4, 4), (19, 16, 1, 16, 16), (19, 4, 4, 4, 16), (9, 4, 4, 4, 9)],
)
def test_each_thread_has_something_to_do(
    monkeypatch: pytest.MonkeyPatch, mib: int, threads: int, each: int, helpers: int, pieces: int
) -> None:
    target, begun = np.empty((64, mib << 14), np.uint8), list[int]()
    monkeypatch.setattr(copying, "_help_with", lambda _, count: begun.append(count))
    one = copying.Copy(target, np.ones(target.shape, np.uint8), threads, each)
    one.begin()
    one.finish()
    assert (sum(begun), len(one._pieces)) == (helpers, pieces)
    assert target.all()


@given(rows=st.integers(1, 40), threads=st.integers(1, 4), pieces=st.integers(1, 5), late=st.integers(0, 15))
@settings(max_examples=30, deadline=None)
def test_rows_are_told_as_they_arrive(rows: int, threads: int, pieces: int, late: int) -> None:
    """In their order, however late a piece is, and the last of them when all are there."""
    source, target, told = np.arange(1.0, rows + 1), np.zeros(rows), [0]
    run = copying._Piece.run

    def slow(piece: copying._Piece) -> None:
        if piece.source[0] == source[late % rows]:
            time.sleep(0.01)
        run(piece)

    def there(count: int) -> None:
        assert count > told[-1]
        told.append(count)
        np.testing.assert_array_equal(target[:count], source[:count])

    with mock.patch.object(copying, "PIECE", 8), mock.patch.object(copying._Piece, "run", slow):
        one = copying.Copy(target, source, threads, pieces)
        one.begin()
        one.finish(there)
    np.testing.assert_array_equal(target, source)
    assert told[-1] == (rows if one.begun else 0)  # of a single piece nothing is there before the rest


def test_threads_copy_all_pieces_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "PIECE", 1)
    source, target = np.arange(1.0, 17.0), np.zeros(16)
    one = copying.Copy(target, source, 2, pieces_a_thread=8)
    one.begin()
    until(lambda: not one.is_under_way)
    np.testing.assert_array_equal(target, source)


def test_rows_arrive_before_all_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "PIECE", 1)
    monkeypatch.setattr(copying, "_help_with", lambda *_: None)
    source, target, told = np.arange(1.0, 9.0), np.zeros(8), list[tuple[int, int]]()
    one = copying.Copy(target, source, 2, pieces_a_thread=4)
    one.begin()
    one.finish(lambda count: told.append((count, np.count_nonzero(target))))
    assert told == [(count, count) for count in range(1, 9)]


def test_rows_behind_those_that_cannot_be_copied_do_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "PIECE", 1)
    source, target, told = np.array(["1", "2", "x", "4"], object), np.zeros(4), list[int]()
    for _ in range(2):
        one = copying.Copy(target, source, 2, pieces_a_thread=2)
        one.begin()
        with pytest.raises(ValueError, match="could not convert"):
            one.finish(told.append)
        assert max(told, default=0) <= 2
        assert target[3] == 4  # all the same: no thread is left that writes


def test_who_cannot_be_told_may_finish_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when CUDA cannot send the first rows: others may still be written, and are waited for."""
    monkeypatch.setattr(copying, "PIECE", 1)

    def there(_: int) -> None:
        raise RuntimeError("no")

    source, target = np.arange(1.0, 5.0), np.zeros(4)
    one = copying.Copy(target, source, 2)
    one.begin()
    with pytest.raises(RuntimeError, match="no"):
        one.finish(there)
    one.finish()
    np.testing.assert_array_equal(target, source)


def test_scalars_and_errors_of_a_copy() -> None:
    target = np.zeros((), "float32")
    copying.copy(target, np.array(3))
    assert target == 3
    with pytest.raises(ValueError, match="broadcast"):
        copying.copy(np.zeros((4, 1 << 20), "float32"), np.zeros((4, 3), "float32"))
    assert copying.THREADS >= 1


def test_a_source_that_does_not_fit_is_refused_before_anything_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    target = np.zeros((4, 2))
    with monkeypatch.context() as patch:
        patch.setattr(copying, "PIECE", 1)
        for source in (np.ones((8, 2)), np.ones(2), np.ones((4, 1))):
            one = copying.Copy(target, source, 4)
            with pytest.raises(ValueError, match="does not fit"):
                one.begin()
    assert not target.any()
    large = np.zeros((4, copying.PIECE), np.uint8)
    with pytest.raises(ValueError, match="does not fit"):
        copying.copy(large, np.ones((1, copying.PIECE), np.uint8))
    assert not large.any()


def test_ctrl_c_during_a_copy_waits_for_all_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one of them would write into what the next call has put there."""
    run, begun = copying._Piece.run, threading.Event()

    def late(self: copying._Piece) -> None:
        if threading.current_thread() is threading.main_thread():
            assert begun.wait(20)
        else:
            begun.set()
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        run(self)

    monkeypatch.setattr(copying._Piece, "run", late)
    monkeypatch.setattr(copying, "PIECE", 1)
    source, target = np.array([1.0, 2.0]), np.zeros(2)
    one = copying.Copy(target, source, 2)
    one.begin()
    with pytest.raises(KeyboardInterrupt):
        one.finish()
    np.testing.assert_array_equal(target, source)


def test_a_handler_that_raises_loses_no_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of SIGTERM, which may come just before a piece is copied: who finishes again does it, and does not wait."""
    monkeypatch.setattr(copying, "PIECE", 1)
    monkeypatch.setattr(copying, "_help_with", lambda *_: None)
    run = copying._Piece.run

    def terminated(_: copying._Piece) -> None:
        monkeypatch.setattr(copying._Piece, "run", run)
        raise SystemExit

    source, target = np.arange(1.0, 5.0), np.zeros(4)
    one = copying.Copy(target, source, 4)
    one.begin()
    monkeypatch.setattr(copying._Piece, "run", terminated)
    with pytest.raises(SystemExit):
        one.finish()
    finishing = threading.Thread(target=one.finish, daemon=True)  # of another call, which got the slot
    finishing.start()
    finishing.join(20)
    assert not finishing.is_alive()
    np.testing.assert_array_equal(target, source)


def test_a_handler_may_copy_while_threads_are_started() -> None:
    """As one that calls a model: it waited for ever for the thread that it had interrupted, its own."""
    code = """
import signal, threading, numpy as np
from keras_trt.runtime import copying
copying.PIECE, start = 1, threading.Thread.start
def started(thread):
    start(thread)
    if thread.name == "keras_trt-copy" and not handled:
        signal.raise_signal(signal.SIGTERM)
threading.Thread.start, handled = started, []
def copy():
    source, target = np.ones(4), np.zeros(4)
    one = copying.Copy(target, source, 2)
    one.begin()
    one.finish()
    return (target == source).all()
signal.signal(signal.SIGTERM, lambda *_: (handled.append(1), print(copy())))
print(copy())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr) == ("True\nTrue\n", "")


def test_a_thread_that_outlives_the_main_one_still_copies() -> None:
    """From 3.12 on no thread can be started then."""
    code = """
import threading, numpy as np
from keras_trt.runtime import copying
def late():
    threading.main_thread().join()
    source, target = np.ones((8, 1 << 20), "float32"), np.zeros((8, 1 << 20), "float32")
    copying.copy(target, source)
    print((target == source).all())
threading.Thread(target=late).start()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_without_further_threads_one_copies_all_and_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(copying, "PIECE", 1)
    monkeypatch.setattr(copying, "_started", [])
    monkeypatch.setattr(threading.Thread, "start", refuses)
    source, target = np.arange(1.0, 5.0), np.zeros(4)
    one = copying.Copy(target, source, 2)
    one.begin()
    one.finish()
    np.testing.assert_array_equal(target, source)
    assert copying._jobs.empty()


def test_a_thread_that_is_late_copies_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target may be someone else's by then."""
    monkeypatch.setattr(copying, "PIECE", 1)
    source, target = np.arange(1.0, 5.0), np.zeros(4)
    one = copying.Copy(target, source, 2)
    one.begin()
    one.finish()
    np.testing.assert_array_equal(target, source)
    target[:] = 7
    assert not one.help()
    with one._pieces[0].done:  # as whoever waits for it has it for a moment
        assert not one.help()
    np.testing.assert_array_equal(target, np.full(4, 7.0))


def test_copies_of_threads_that_begin_at_once_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two queues were made then: what was put into one was never taken out, and kept its arrays."""

    def slow() -> Any:
        queue = SimpleQueue[Any]()
        time.sleep(0.1)
        return queue

    monkeypatch.setattr(copying, "SimpleQueue", slow)
    monkeypatch.setattr(copying, "PIECE", 1)
    copying._forget()
    sources = [np.ones((4, 8)) for _ in range(4)]
    kept = [weakref.ref(source) for source in sources]

    def work(source: Array) -> None:
        for _ in range(3):
            one = copying.Copy(np.zeros((4, 8)), source, 2)
            one.begin()
            one.finish()

    threads = [threading.Thread(target=work, args=(sources.pop(),)) for _ in kept]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threads.clear()
    until(lambda: not any(one() is not None for one in kept))
