"""Ctrl-C at any moment of a call: other calls still find all slots, and the engine can be closed."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from types import SimpleNamespace

import pytest

from keras_trt.cuda import graph, host, memory
from keras_trt.cuda import runtime as cuda_runtime
from keras_trt.model import call as call_module
from keras_trt.runtime import gpu, lifetime, pipeline, results, session, slots, steady, turns
from keras_trt.runtime import pool as pool_module
from keras_trt.runtime.pool import SlotPool
from keras_trt.specs import Measured, Pipelining

from .helpers import assert_right, in_threads, inputs, one_by_one, runner_of
from .helpers import session as session_of
from .host_cuda import installed
from .host_engine import HostEngineOnDevice
from .interrupts import interrupted_at
from .test_pool import SHAPES, Waiter, ended

OWN = (gpu, lifetime, pipeline, pool_module, results, session, slots, steady, turns)
MODULES = (*OWN, host, memory, threading, cuda_runtime)


@pytest.fixture(autouse=True)
def one_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one that is lost is missed, and a turn soon."""
    monkeypatch.setattr("keras_trt.runtime.pool.SLOTS", 1)
    monkeypatch.setattr("keras_trt.runtime.turns.LOST", 0.01)


@pytest.mark.parametrize(
    ("rows", "ahead", "moments"), [(3, slots.AHEAD, 100), (3, 0, 50), (20, slots.AHEAD, 100), (20, 160, 100)]
)
def test_a_call(rows: int, ahead: int, moments: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a single batch, which takes its turn or is like one before, and with several, with `x` sent ahead or not."""
    if not ahead:  # and what of it CUDA copies
        monkeypatch.setattr(slots, "AT_ONCE", 20)
    else:
        monkeypatch.setattr(slots, "AHEAD", ahead)
        monkeypatch.setattr(steady.Steady, "run", lambda *_: None)
    for moment in itertools.count():
        with installed() as cuda:
            one = session_of(HostEngineOnDevice(cuda), costs=one_by_one({8: 1e-4}))
            for _ in range(3):  # then there is a graph
                assert_right(one, inputs(rows))
            interrupted = interrupted_at(moment, lambda one=one: one.run(inputs(rows)), *MODULES)  # type: ignore[misc]
            assert not any(stream.pending for stream in cuda.live_streams())
            in_threads([lambda one=one: assert_right(one, inputs(rows))], 10)  # type: ignore[misc]
            in_threads([one.close], 10)
        if not interrupted:
            assert moment > moments
            return


@pytest.mark.parametrize("rows", [8, 5])
def test_a_call_whose_rows_are_sent_in_pieces(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "ONE_THREADS", 16)
    monkeypatch.setattr("keras_trt.runtime.copying.PIECE", 16)
    for moment in itertools.count():
        with installed() as cuda:
            one = session_of(HostEngineOnDevice(cuda), costs=one_by_one({8: 1e-4}))
            for _ in range(2):
                assert_right(one, inputs(rows))
            interrupted = interrupted_at(moment, lambda one=one: one.run(inputs(rows, seed=1)), slots, memory)  # type: ignore[misc]
            assert not any(stream.pending for stream in cuda.live_streams())
            in_threads([lambda one=one: assert_right(one, inputs(rows))], 10)  # type: ignore[misc]
            in_threads([one.close], 10)
        if not interrupted:
            assert moment > 30
            return


@pytest.mark.long
def test_a_call_with_batches_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several slots, with rows on their way while others are computed, and the thread asleep meanwhile."""
    monkeypatch.setattr(slots, "AHEAD", 0)
    slept = list[float]()
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(sleep=slept.append))
    for moment in itertools.count():
        with installed() as cuda:
            cuda.is_quick = lambda stream: stream.asked > 3
            one = session_of(HostEngineOnDevice(cuda), measured=Measured({}, Pipelining(3, 1)))
            for _ in range(3):
                assert_right(one, inputs(32))
            slept.clear()
            interrupted = interrupted_at(moment, lambda one=one: one.run(inputs(32)), *MODULES)  # type: ignore[misc]
            assert not any(stream.pending for stream in cuda.live_streams())
            assert len(runner_of(one)._pool._idle) == 3
            in_threads([lambda one=one: assert_right(one, inputs(32))], 10)  # type: ignore[misc]
            in_threads([one.close], 10)
        if not interrupted:
            assert moment > 300
            assert slept
            return


def test_nothing_of_others_is_collected_meanwhile() -> None:
    collected, meanwhile, before = list[int](), list[int](), gc.get_threshold()
    one = threading.Event()
    one.itself = one  # type: ignore[attr-defined]
    weakref.finalize(one, collected.append, 1)
    del one

    def work() -> None:
        gc.set_threshold(1)
        _ = [[] for _ in range(1000)]
        meanwhile.extend(collected)

    try:
        interrupted_at(1 << 30, work, pool_module)
        _ = [[] for _ in range(1000)]
        assert collected
        assert not meanwhile
    finally:
        gc.set_threshold(*before)


def test_a_slot_that_is_given_to_another() -> None:
    for moment in itertools.count():
        with installed() as cuda:
            pool = SlotPool(HostEngineOnDevice(cuda))  # type: ignore[arg-type]
            slot = pool.take(SHAPES, wait=True)
            waiters = [Waiter(pool) for _ in range(2)]
            interrupted = interrupted_at(moment, lambda pool=pool, slot=slot: pool.give(slot), pool_module)  # type: ignore[misc]
            pool.give_up(slot)
            for waiter in waiters:
                ended(waiter)
            assert not any(waiter.error for waiter in waiters)
            assert pool.close() == [slot]
            slot.close()
        if not interrupted:
            return


def test_a_call_that_records_a_graph() -> None:
    """A later one does."""
    for moment in itertools.count():
        with installed() as cuda:
            one = session_of(HostEngineOnDevice(cuda))
            assert_right(one, inputs(8))
            interrupted = interrupted_at(moment, lambda one=one: one.run(inputs(8)), slots, graph)  # type: ignore[misc]
            launched = cuda.calls["cudaGraphLaunch"]
            assert_right(one, inputs(8))
            assert cuda.calls["cudaGraphLaunch"] == launched + 1
            one.close()
            cuda.graphs.clear()  # a few bytes may be lost
            cuda.executables.clear()
        if not interrupted:
            return


def test_the_capture_of_a_graph() -> None:
    for moment in itertools.count():
        with installed() as cuda, cuda_runtime.Stream() as stream:
            interrupted = interrupted_at(
                moment, lambda stream=stream: graph.capture(stream, lambda: None).close(), graph, cuda_runtime
            )  # type: ignore[misc]
            assert not cuda.is_capturing(stream.address)
            cuda.graphs.clear()  # a few bytes may be lost, but not the stream
            cuda.executables.clear()
        if not interrupted:
            return


def test_the_beginning_of_a_call_of_a_model() -> None:
    with installed() as cuda:
        one = session_of(HostEngineOnDevice(cuda))
        parts = {
            "_predictor": None,
            "_evaluator": None,
            "_following": None,
            "_check_process": lambda: None,
            "_closed": False,
        }
        model = SimpleNamespace(_session=one, _changing=threading.RLock(), **parts)
        for moment in itertools.count():
            call = call_module.Call(model)  # type: ignore[arg-type]
            if not interrupted_at(moment, call.__enter__, call_module, lifetime, session):
                break
            life = one._life
            assert (life._users, life._blocks, life._own.__dict__.get("uses", 0)) == (0, 0, 0)
        call.__exit__()
        one.close()
