"""Batches under way at once, and Ctrl-C or another signal in their midst (over host memory: see `host_cuda`)."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from keras_trt.errors import CudaError
from keras_trt.runtime import SLOTS, copying, slots
from keras_trt.runtime.gpu import PIECES_A_THREAD
from keras_trt.runtime.pool import SlotPool
from keras_trt.runtime.results import Results
from keras_trt.runtime.slots import Slot

from .helpers import assert_right, inputs, one_by_one, runner_of, session
from .host_cuda import HostCuda
from .host_engine import HostEngineOnDevice
from .host_parts import StreamHandle


@pytest.mark.parametrize("rows", [8, 48])
def test_ctrl_c_in_front_of_a_wait_leaves_nothing_running(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    one = session(HostEngineOnDevice(host_cuda))
    wait = Slot.wait

    def interrupted(_: Slot) -> None:
        monkeypatch.setattr(Slot, "wait", wait)
        raise KeyboardInterrupt

    monkeypatch.setattr(Slot, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.run(inputs(rows))
    assert not any(stream.pending for stream in host_cuda.live_streams())
    assert_right(one, inputs(rows))
    one.close()


@pytest.mark.parametrize("rows", [8, 48])
def test_ctrl_c_in_front_of_the_end_of_a_copy_leaves_nothing_copying(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr("keras_trt.runtime.slots.ONE_THREADS", 0)  # however few rows there are
    one = session(HostEngineOnDevice(host_cuda))
    assert_right(one, inputs(rows))
    finish, unfinished = copying.Copy.finish, set[int]()
    begin = copying.Copy.begin

    def begun(self: copying.Copy) -> None:
        unfinished.add(id(self._target.base))
        begin(self)

    def finished(self: copying.Copy, *there: Any) -> None:
        finish(self, *there)
        unfinished.discard(id(self._target.base))

    def interrupted(_: copying.Copy, *there: Any) -> None:  # noqa: ARG001
        monkeypatch.setattr(copying.Copy, "finish", finished)
        raise KeyboardInterrupt

    monkeypatch.setattr(copying.Copy, "begin", begun)
    monkeypatch.setattr(copying.Copy, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.run(inputs(rows))
    assert not unfinished
    assert_right(one, inputs(rows))
    one.close()


def test_an_alarm_during_a_copy_is_raised_once_and_leaves_nothing_copying(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a handler that raises TimeoutError: later calls raised it again, and the other input was still copied."""
    monkeypatch.setattr("keras_trt.runtime.slots.ONE_THREADS", 100)
    monkeypatch.setattr(copying, "PIECE", 1)
    one = session(HostEngineOnDevice(host_cuda), largest=64, costs=one_by_one({64: 1.0}))
    run, main, begun, ended = copying._Piece.run, threading.main_thread(), threading.Event(), list[bool]()

    def alarmed(piece: copying._Piece) -> None:
        if piece.target.dtype == "float32":
            if threading.current_thread() is not main:
                assert begun.wait(20)  # so that the main one does a piece too
            elif not begun.is_set():
                begun.set()
                piece.source = np.array("no number")  # raises while it is copied
            run(piece)
        else:
            time.sleep(0.2)
            run(piece)
            ended.append(True)

    monkeypatch.setattr(copying._Piece, "run", alarmed)
    with pytest.raises(ValueError, match="no number"):
        one.run(inputs(64))
    assert len(ended) == PIECES_A_THREAD * copying.THREADS
    monkeypatch.setattr(copying._Piece, "run", run)
    for rows in (3, 64):  # the few are copied at once
        assert_right(one, inputs(rows))
    one.close()


def interrupt_ends_of_copies(
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    *,
    in_pieces: bool = True,
    seconds: float = 20.0,
    look: Callable[[copying._Piece], None] = lambda _: None,
) -> threading.Event:
    """Let Ctrl-C come as so many copies are to be finished, and other threads be at pieces until the event is set.

    Args:
        count: how many.
        in_pieces: whether other threads copy.
        seconds: how long they wait for the event at most.
        look: looks at a piece that another thread then copies late.
    """
    finish, run, main = copying.Copy.finish, copying._Piece.run, threading.main_thread()
    begun, go_on, left = threading.Event(), threading.Event(), count

    def interrupted(copy: copying.Copy, *there: Any) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            assert not in_pieces or begun.wait(20)
            raise KeyboardInterrupt
        finish(copy, *there)

    def late(piece: copying._Piece) -> None:
        if threading.current_thread() is not main and not go_on.is_set():
            begun.set()
            go_on.wait(seconds)
            look(piece)
        run(piece)

    monkeypatch.setattr(copying.Copy, "finish", interrupted)
    monkeypatch.setattr(copying._Piece, "run", late)
    return go_on


@pytest.mark.parametrize("piece", [1 << 20, 300])
def test_rows_of_a_call_that_was_interrupted_twice_do_not_come_back(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """Nor do pieces of it that other threads still copy."""
    monkeypatch.setattr("keras_trt.runtime.slots.ONE_THREADS", 100)
    monkeypatch.setattr(copying, "PIECE", piece)
    one = session(HostEngineOnDevice(host_cuda), largest=64, costs=one_by_one({64: 1.0}))
    go_on = interrupt_ends_of_copies(monkeypatch, 2, in_pieces=piece < 1 << 20, seconds=1.0)
    with pytest.raises(KeyboardInterrupt):
        one.run(inputs(64))
    threading.Timer(0.1, go_on.set).start()  # while the next call is at its rows, or waits for those of the last
    for seed in range(3):
        assert_right(one, inputs(3, seed=seed))
    one.close()


@pytest.mark.parametrize("closes", [False, True])
def test_memory_of_a_call_that_was_interrupted_is_not_freed_under_a_copy(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    """When the slot's next rows are larger, or it is closed, while a thread still copies those of before."""
    monkeypatch.setattr("keras_trt.runtime.pool.SLOTS", 1)
    monkeypatch.setattr("keras_trt.runtime.slots.ONE_THREADS", 100)
    monkeypatch.setattr(copying, "PIECE", 300)
    one = session(HostEngineOnDevice(host_cuda), largest=128)
    assert_right(one, inputs(64))
    freed = list[bool]()

    def look(piece: copying._Piece) -> None:
        at = piece.target.ctypes.data
        freed.extend(one.freed for start, one in host_cuda.memory.items() if start <= at < start + one.size)

    go_on = interrupt_ends_of_copies(monkeypatch, 3, look=look)
    with pytest.raises(KeyboardInterrupt):
        one.run(inputs(64))
    threading.Timer(0.2, go_on.set).start()
    if not closes:
        assert_right(one, inputs(100))
    one.close()
    assert freed
    assert not any(freed)


def test_a_second_ctrl_c_loses_no_slot(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    one = session(HostEngineOnDevice(host_cuda))
    assert_right(one, inputs(48))
    pool, give_up = runner_of(one)._pool, SlotPool.give_up
    put, waited = Results.put, list[int]()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def again(pool: SlotPool, slot: Slot) -> None:
        if not waited:
            signal.raise_signal(signal.SIGINT)
        waited.append(1)
        give_up(pool, slot)

    monkeypatch.setattr(Results, "put", interrupted)
    monkeypatch.setattr(SlotPool, "give_up", again)
    with pytest.raises(KeyboardInterrupt):
        one.run(inputs(48))
    assert len(waited) > 1
    assert len(pool._idle) == pool._made
    monkeypatch.setattr(Results, "put", put)
    assert_right(one, inputs(48))
    one.close()


# A call within another of the same thread.


@pytest.mark.parametrize("rows", [8, 24, 96])
@pytest.mark.parametrize("within", [3, 40])
def test_a_handler_of_a_signal_runs_where_its_thread_holds_all_slots(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, rows: int, within: int
) -> None:
    """It has one more, until it has ended: its thread can give none back."""
    one = session(HostEngineOnDevice(host_cuda))
    launch, launches = Slot.launch, itertools.count(1)

    def launched(slot: Slot) -> None:
        launch(slot)
        if next(launches) == rows // 8:
            assert_right(one, inputs(within))

    monkeypatch.setattr(Slot, "launch", launched)
    assert_right(one, inputs(rows))
    assert runner_of(one)._pool._made <= SLOTS
    one.close()


def test_a_call_within_another_finds_no_memory(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    one = session(HostEngineOnDevice(host_cuda))
    assert_right(one, inputs(96))
    launch, launches = Slot.launch, itertools.count(1)

    def launched(slot: Slot) -> None:
        launch(slot)
        if next(launches) == SLOTS:
            host_cuda.device_limit = 0
            with pytest.raises(CudaError, match="MemoryAllocation"):
                one.run(inputs(1))
            host_cuda.device_limit = 1 << 30

    monkeypatch.setattr(Slot, "launch", launched)
    assert_right(one, inputs(96))
    monkeypatch.setattr(Slot, "launch", launch)
    assert_right(one, inputs(96))
    one.close()


def test_progress_may_call_too(host_cuda: HostCuda) -> None:
    one = session(HostEngineOnDevice(host_cuda))
    calls: list[int] = []

    def progress(done: int) -> None:
        calls.append(done)
        assert_right(one, inputs(3, seed=done))

    one.run(inputs(96), progress)
    assert calls == list(range(8, 97, 8))
    one.close()


@pytest.mark.parametrize("calls_within", [False, True])
def test_whoever_asks_for_the_last_error_hears_of_no_question(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, calls_within: bool
) -> None:
    """Whether a stream is idle is answered by an error. A signal may come before that is forgotten."""
    monkeypatch.setattr(slots, "AHEAD", 0)
    one = session(HostEngineOnDevice(host_cuda))
    query, asked = host_cuda.cudaStreamQuery, list[int]()

    def queried(stream: StreamHandle) -> tuple[Any, ...]:
        answer = query(stream)
        asked.append(answer[0])
        if answer[0] and len(asked) < 9:
            if not calls_within:
                raise KeyboardInterrupt
            assert_right(one, inputs(3))
        return answer

    monkeypatch.setattr(host_cuda, "cudaStreamQuery", queried)
    if calls_within:
        assert_right(one, inputs(24))
    else:
        with pytest.raises(KeyboardInterrupt):
            one.run(inputs(24))
    assert any(asked)
    monkeypatch.setattr(host_cuda, "cudaStreamQuery", query)
    assert_right(one, inputs(3))
    one.close()
