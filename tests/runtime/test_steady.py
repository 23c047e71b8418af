"""Calls like those before, which take a way of their own (over host memory: see `host_cuda`)."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_trt.cuda import current_device
from keras_trt.errors import CudaError
from keras_trt.runtime import RowsDependError, Session
from keras_trt.runtime.pool import SlotPool
from keras_trt.runtime.slots import Slot
from keras_trt.runtime.steady import Steady
from keras_trt.specs import Measured, OptimizationProfile, ShapeRange, Signature, TensorSpec

from .helpers import INPUTS, assert_right, in_threads, inputs, one_by_one, runner_of, session
from .host_cuda import HostCuda, Status, installed
from .host_engine import HostEngineOnDevice, expected
from .joined import busy
from .test_open_shapes import PickingEngine, picked
from .test_pool import until

COSTS = one_by_one({1: 1e-3, 8: 1e-3})


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call that found such a way was run by it."""
    found: list[bool] = []
    run = Steady.run

    def watched(steady: Steady, call: Any) -> Any:
        outputs = run(steady, call)
        found.append(outputs is not None)
        return outputs

    monkeypatch.setattr(Steady, "run", watched)
    return found


@pytest.fixture
def one(host_cuda: HostCuda) -> Iterator[Session]:
    made = session(HostEngineOnDevice(host_cuda), costs=COSTS)
    yield made
    made.close()


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few rows there are, CUDA copies them from where they lie."""
    monkeypatch.setattr("keras_trt.runtime.slots.AT_ONCE", 0)


def settle(one: Session, rows: int = 8) -> None:
    """Make the two calls that those after them are like."""
    for seed in range(2):
        assert_right(one, inputs(rows, seed=100 + seed))
    assert one._steady is not None


@pytest.mark.parametrize("at_once", [0, 1 << 16])
def test_the_third_call_needs_nothing_but_the_graph(
    host_cuda: HostCuda, one: Session, taken: list[bool], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr("keras_trt.runtime.slots.AT_ONCE", at_once)
    for seed in range(6):
        before = host_cuda.calls.copy()
        assert_right(one, inputs(8, seed=seed))
    assert taken == [True] * 4
    called = {name for name in host_cuda.calls if host_cuda.calls[name] > before[name]}
    alone = {"cudaGraphLaunch", "cudaGetDevice", "cudaSetDevice", "cudaStreamSynchronize"}
    assert called <= alone | ({"cudaMemcpyAsync"} if at_once == 0 else set())
    assert (host_cuda.pageable > 0) == (at_once == 0)


@given(
    rows=st.lists(st.integers(1, 20), min_size=3, max_size=12),
    widths=st.lists(st.sampled_from([5, 7]), min_size=3, max_size=12),
    again=st.integers(1, 4),
)
def test_any_calls_are_right(rows: list[int], widths: list[int], again: int) -> None:
    with installed() as cuda:
        one = session(HostEngineOnDevice(cuda), costs=COSTS)
        for seed, (count, width) in enumerate(zip(rows, widths, strict=False)):
            for more in range(again):
                assert_right(one, inputs(count, width, seed=20 * seed + more))
        one.close()


def test_outputs_are_the_callers(one: Session, taken: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are copied before the slot is another's, who begins at once to write to it."""
    give = SlotPool.give

    def given_away(pool: SlotPool, slot: Slot) -> None:
        for output in slot.outputs:
            output.fill(np.nan)
        give(pool, slot)

    monkeypatch.setattr(SlotPool, "give", given_away)
    found = []
    for seed in range(6):
        call = inputs(8, seed=seed)
        found.append((one.run(call), expected({"x": call[0], "k": call[1]})))
        call[0][...] = np.nan
    for (y, sums), wanted in found:
        np.testing.assert_array_equal(y, wanted[1])
        np.testing.assert_array_equal(sums, wanted[0])
    assert all(taken)


def test_names_and_types_are_the_signatures(host_cuda: HostCuda, taken: list[bool]) -> None:
    class Reversed(HostEngineOnDevice):
        input_names = ("k", "x")

    profile = OptimizationProfile({"x": ShapeRange((1, 1), (8, 5), (8, 64)), "k": ShapeRange((1,), (8,), (8,))})
    outputs = (TensorSpec("y", (None, None), "float64"), TensorSpec("sums", (None,), "float16"))
    signature = Signature(INPUTS, outputs, {"list": [0, 1]}, {"list": [0, 1]})
    one = Session([Reversed(host_cuda)], signature, profile, rows_independent=True, measured=Measured(COSTS))
    for seed in range(5):
        call = inputs(8, seed=seed)
        y, sums = one.run(call)
        wanted = expected({"x": call[0], "k": call[1]})
        assert (y.dtype, sums.dtype) == (np.float64, np.float16)
        np.testing.assert_array_equal(y, wanted[1])
        np.testing.assert_array_equal(sums, wanted[0].astype("float16"))
    assert sum(taken) == 3
    one.close()


def others(x: Any, k: Any) -> dict[str, list[Any]]:
    return {
        "strided": [np.repeat(x, 2, axis=1)[:, ::2], k],
        "float64": [x.astype("float64"), k],
        "int64": [x, k.astype("int64")],
        "memmap": [x.view(np.memmap), k],
        "big-endian": [x.astype(">f4"), k],
    }


@pytest.mark.parametrize("kind", others(*inputs(8)))
def test_what_differs_takes_the_usual_way(one: Session, taken: list[bool], kind: str) -> None:
    settle(one)
    x, k = inputs(8)
    wanted = expected({"x": x, "k": k})
    for _ in range(4):
        y, sums = one.run(others(x, k)[kind])
        np.testing.assert_array_equal(y, wanted[1])
        np.testing.assert_array_equal(sums, wanted[0])
    assert not any(taken)
    for _ in range(3):
        assert_right(one, [x, k])
    assert taken[-1]


def test_a_call_with_out_or_progress_is_given_them(one: Session, taken: list[bool]) -> None:
    settle(one)
    x, k = inputs(8, seed=5)
    out = [np.full((8, 5), np.nan, "float32"), np.full(8, np.nan, "float32")]
    assert one.run([x, k], out=out)[0] is out[0]
    np.testing.assert_array_equal(out[0], expected({"x": x, "k": k})[1])
    done: list[int] = []
    one.run([x, k], done.append)
    assert done == [8]
    assert not taken


@pytest.mark.usefixtures("direct")
def test_large_rows_are_copied_by_several_threads(
    host_cuda: HostCuda, one: Session, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keras_trt.runtime.slots.ONE_THREADS", 8 * 5 * 4 - 1)
    for seed in range(4):
        assert_right(one, inputs(8, seed=seed))
    assert host_cuda.pageable == 4  # of `k` alone
    assert not taken


def test_large_answers_are_copied_by_several_threads(
    one: Session, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keras_trt.runtime.steady.ONE_THREADS", 8 * (5 + 1) * 4 - 1)
    for seed in range(4):
        assert_right(one, inputs(8, seed=seed))
    assert not taken


def test_other_shapes_become_those_before(one: Session, taken: list[bool]) -> None:
    settle(one)
    for seed in range(4):
        assert_right(one, inputs(8, 7, seed=seed))
    assert taken == [True, True]


@pytest.mark.usefixtures("direct")
def test_rows_that_do_not_fill_their_batch_are_padded_by_the_slot(host_cuda: HostCuda, taken: list[bool]) -> None:
    one = session(HostEngineOnDevice(host_cuda), smallest=8)
    for seed in range(4):
        assert_right(one, inputs(3, seed=seed))
    assert host_cuda.pageable == 0
    assert not taken
    one.close()


def test_integers_that_do_not_fit_are_refused_each_time(one: Session) -> None:
    x, k = inputs(8)
    wide = k.astype("int64")
    for _ in range(4):
        one.run([x, wide])
    wide[3] = 1 << 40
    with pytest.raises(ValueError, match="cannot take"):
        one.run([x, wide])


@pytest.mark.parametrize("device", [0, 1])
def test_on_any_gpu_whichever_is_current(host_cuda: HostCuda, taken: list[bool], device: int) -> None:
    one = session(HostEngineOnDevice(host_cuda, device), costs=COSTS)
    settle(one)
    for current in (0, 1):
        with current_device(current):
            assert_right(one, inputs(8, seed=3))
            assert host_cuda.cudaGetDevice()[1] == current
    assert taken == [True, True]
    one.close()


def test_a_new_plan_ends_it(one: Session, taken: list[bool]) -> None:
    settle(one)
    one.measure()
    assert_right(one, inputs(8, seed=9))
    assert not taken
    for seed in range(3):
        assert_right(one, inputs(8, seed=seed))
    assert taken[-1]


@pytest.mark.usefixtures("direct")
@pytest.mark.parametrize("function", ["cudaGraphLaunch", "cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_a_failure_is_left_to_the_usual_way(
    host_cuda: HostCuda,
    one: Session,
    taken: list[bool],
    function: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settle(one)
    forgotten: list[bool] = []
    monkeypatch.setattr(host_cuda, "cudaGetLastError", lambda: forgotten.append(True))
    host_cuda.fail(function, Status.cudaErrorMemoryAllocation)
    with caplog.at_level(logging.DEBUG, "keras_trt"):
        assert_right(one, inputs(8, seed=4))
    assert "has failed" in caplog.text
    assert forgotten
    assert not taken
    for seed in range(3):
        assert_right(one, inputs(8, seed=seed))
    assert taken[-1]
    times = 2 + (function == "cudaStreamSynchronize")  # a slot that is given up is waited for
    host_cuda.fail(function, *[Status.cudaErrorIllegalAddress] * times)
    with pytest.raises(CudaError, match="IllegalAddress"):
        one.run(inputs(8))


def test_many_threads(host_cuda: HostCuda, taken: list[bool]) -> None:
    """Each gets its own rows' answers, and whoever finds others takes its turn as they do."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    engine = HostEngineOnDevice(host_cuda)
    engine.slow = 1e-3
    one = session(engine, largest=8, costs=COSTS)
    settle(one)
    alike = threading.Barrier(6)

    def work(place: int) -> None:
        alike.wait()
        for seed in range(40):
            assert_right(one, inputs(8, seed=100 * place + seed))
            time.sleep(1e-3 * (seed % 3))
        alike.wait()
        for seed in range(10 if place == 0 else 0):
            assert_right(one, inputs(8, seed=seed))

    try:
        in_threads([lambda place=place: work(place) for place in range(6)])  # type: ignore[misc]
    finally:
        sys.setswitchinterval(interval)
    assert taken[-10:] == [True] * 10  # of the one that is left
    assert taken.count(True) < 6 * 40
    one.close()


def test_whoever_is_not_alone_waits_for_its_turn(host_cuda: HostCuda, taken: list[bool]) -> None:
    one = session(HostEngineOnDevice(host_cuda), costs=one_by_one({1: 1e-4, 8: 1e-4}))
    settle(one)
    ended = threading.Event()
    with busy(one), one._turns.wait():
        thread = threading.Thread(target=lambda: (assert_right(one, inputs(8)), ended.set()))
        thread.start()
        assert not ended.wait(0.2)
    assert ended.wait(10)
    assert taken == [True]
    thread.join()
    one.close()


def test_calls_that_are_shorter_than_was_measured_take_turns(
    one: Session, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the GPU was busy with something else when it was measured."""
    clock = {"now": 0.0, "step": 1e-3}

    def now() -> float:
        clock["now"] += clock["step"]
        return clock["now"]

    monkeypatch.setattr("keras_trt.runtime.steady.time", SimpleNamespace(perf_counter=now))
    settle(one)
    for step, waits in ((1e-3, False), (1e-4, True), (1e-3, True)):
        clock["step"] = step
        assert_right(one, inputs(8))  # alone
        assert taken.pop()
        thread = threading.Thread(target=assert_right, args=(one, inputs(8, seed=1)))
        with busy(one, 1), one._turns.wait():
            thread.start()
            until(lambda thread=thread: one._turns.waiting or not thread.is_alive())  # type: ignore[misc]
            assert bool(one._turns.waiting) == waits
        thread.join(10)
        assert not thread.is_alive()
        assert taken == [True] * waits
        taken.clear()


def test_a_call_that_found_no_graph_was_not_short(
    one: Session, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(one)
    monkeypatch.setattr("keras_trt.runtime.steady.time", SimpleNamespace(perf_counter=lambda: 0.0))
    with monkeypatch.context() as patches:
        patches.setattr(Slot, "repeat", lambda *_: False)
        assert_right(one, inputs(8))
    assert taken == [False]
    assert one._steady is not None
    assert not one._steady.is_short
    assert_right(one, inputs(8))
    assert one._steady.is_short


def test_a_short_call_beside_a_long_one_waits_for_one_turn(
    host_cuda: HostCuda, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = session(HostEngineOnDevice(host_cuda), costs=one_by_one({1: 1e-4, 8: 1e-4}))
    settle(one)
    pool, wait, turns = runner_of(one)._pool, one._turns.wait, list[int]()
    monkeypatch.setattr(one._turns, "_wait", lambda turn: turns.append(1) or type(one._turns)._wait(one._turns, turn))
    slot = pool.take((("x", (3, 5)), ("k", (3,))), wait=True)
    with busy(one), wait():
        threads = [threading.Thread(target=assert_right, args=(one, inputs(8, seed=seed))) for seed in range(2)]
        for count, thread in enumerate(threads, 1):
            thread.start()
            until(lambda count=count: one._turns.waiting == count)  # type: ignore[misc]
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert (taken, turns) == ([False] * 2, [1] * 2)
    pool.give(slot)
    one.close()


def test_it_runs_no_slot_while_another_is_in_use(one: Session, taken: list[bool]) -> None:
    runner = runner_of(one)
    settle(one)
    shapes = runner._pool._idle[-1].shapes or ()
    slots = [runner._pool.take(shapes, wait=True) for _ in range(2)]
    runner._pool.give(slots[0])
    assert_right(one, inputs(8, seed=4))
    assert taken == [False]
    runner._pool.give(slots[1])
    for seed in range(3):  # the slot that was given last has no graph yet
        assert_right(one, inputs(8, seed=seed))
    assert taken[-1]


@pytest.mark.parametrize("ending", ["close", "retire"])
def test_a_signals_handler_ends_the_session(
    host_cuda: HostCuda, taken: list[bool], monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """The call is run to its end first, for which the handler cannot wait, as the call is its own thread's."""
    one = session(HostEngineOnDevice(host_cuda), costs=COSTS)
    settle(one)
    launch = host_cuda.cudaGraphLaunch

    def interrupted(*arguments: Any) -> Any:
        result = launch(*arguments)
        signal.raise_signal(signal.SIGUSR1)
        return result

    before = signal.signal(signal.SIGUSR1, lambda *_: getattr(one, ending)())
    try:
        with monkeypatch.context() as patches:
            patches.setattr(host_cuda, "cudaGraphLaunch", interrupted)
            assert_right(one, inputs(8, seed=3))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert taken == [True]
    with pytest.raises(RuntimeError, match="closed"):
        one.run(inputs(8))


def test_after_close(host_cuda: HostCuda) -> None:
    one = session(HostEngineOnDevice(host_cuda), costs=COSTS)
    settle(one)
    one.close()
    with pytest.raises(RuntimeError, match="closed"):
        one.run(inputs(8))


def test_no_rows(one: Session) -> None:
    assert one.run(inputs(0)) == []


def test_outputs_whose_shape_depends_on_the_data_take_the_usual_way(host_cuda: HostCuda, taken: list[bool]) -> None:
    one = session(PickingEngine(host_cuda), largest=16)
    for seed in range(4):
        x, k = inputs(16, seed=seed)
        wanted = picked({"x": x, "k": k})
        with contextlib.suppress(RowsDependError):  # once
            y, sums = one.run([x, k])
            np.testing.assert_array_equal(y, wanted[1])
            np.testing.assert_array_equal(sums, wanted[0])
    assert not taken
    one.close()
