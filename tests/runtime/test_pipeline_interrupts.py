"""Batches under way at once, and Ctrl-C or another signal in their midst (over host memory: see `host_cuda`)."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from keras_trt.runtime import copying
from keras_trt.runtime.slots import Slot

from .helpers import assert_right, inputs, one_by_one, session
from .host_cuda import HostCuda
from .host_engine import HostEngineOnDevice


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
    for name in ("AT_ONCE", "ONE_THREADS"):  # however few rows there are
        monkeypatch.setattr(f"keras_trt.runtime.slots.{name}", 0)
    one = session(HostEngineOnDevice(host_cuda))
    assert_right(one, inputs(rows))
    finish, unfinished = copying.Copy.finish, set[int]()
    begin = copying.Copy.begin

    def begun(self: copying.Copy) -> None:
        unfinished.add(id(self._target.base))
        begin(self)

    def finished(self: copying.Copy) -> None:
        finish(self)
        unfinished.discard(id(self._target.base))

    def interrupted(_: copying.Copy) -> None:
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
    for name in ("AT_ONCE", "ONE_THREADS"):
        monkeypatch.setattr(f"keras_trt.runtime.slots.{name}", 100)
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
    assert len(ended) == 2
    monkeypatch.setattr(copying._Piece, "run", run)
    for rows in (3, 64):  # the few are copied at once
        assert_right(one, inputs(rows))
    one.close()


def test_rows_of_a_call_that_was_interrupted_twice_do_not_come_back(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AT_ONCE", "ONE_THREADS"):
        monkeypatch.setattr(f"keras_trt.runtime.slots.{name}", 100)
    one = session(HostEngineOnDevice(host_cuda), largest=64, costs=one_by_one({64: 1.0}))
    finish, left = copying.Copy.finish, 2

    def interrupted(copy: copying.Copy) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise KeyboardInterrupt
        finish(copy)

    monkeypatch.setattr(copying.Copy, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.run(inputs(64))
    assert_right(one, inputs(3))
    one.close()
