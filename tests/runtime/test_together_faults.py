"""Calls that were to be run together and cannot be: each is run alone, and gets its own error."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest

from keras_trt.errors import CudaError, FallbackWarning, InputError
from keras_trt.runtime import Session, steady
from keras_trt.runtime import session as session_module
from keras_trt.runtime import turns as turns_module
from keras_trt.runtime.plan import Batch
from keras_trt.runtime.results import RowsDependError

from .helpers import Array, assert_right, in_threads, inputs, session
from .host_cuda import HostCuda
from .host_engine import HostEngineOnDevice, expected
from .interrupts import interrupted_at
from .joined import COSTS, busy, come, end, noted, right, waiting
from .test_open_shapes import PickingEngine
from .test_pool import interrupt, until

# What fails.


def test_what_one_has_wrong_is_not_the_others_affair(one: Session, ran: list[Batch]) -> None:
    def large(number: int) -> list[Array]:
        given = inputs(2, seed=3)
        return [given[0], np.full(2, number, "int64")]

    def refused() -> None:
        with pytest.raises(InputError, match="cannot take"):
            one.run(large(1 << 40))

    def taken() -> None:
        given = large(5)
        _, sums = one.run(given)
        np.testing.assert_array_equal(sums, expected({"x": given[0], "k": given[1]})[0])

    with waiting(one, [taken, taken, taken]) as errors, busy(one):
        refused()
    assert not errors
    assert [batch.stop for batch in ran] == [6]  # who is refused never waits, and so keeps nobody from it


@pytest.mark.parametrize("method", ["enqueue", "set_shapes"])
def test_a_failure_of_the_gpu_that_passes(one: Session, ran: list[Batch], method: str) -> None:
    runner: Any = one._runner
    runner._engine.faults[method] = (0, CudaError("unknown", name="cudaErrorUnknown"))
    with waiting(one, [right(one, 2, seed=place) for place in range(4)]) as errors:
        pass
    assert not errors
    assert [batch.stop for batch in ran] == [8, 2, 2, 2, 2]


def test_too_little_memory_for_all_of_them(one: Session, ran: list[Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are run alone, and no more of them together than there is room for."""
    run = one._run_batches

    def small(given: Any, batches: list[Batch], *rest: Any, **keywords: Any) -> Any:
        if batches[0].size > 8:
            raise CudaError("no memory", name="cudaErrorMemoryAllocation")
        return run(given, batches, *rest, **keywords)

    monkeypatch.setattr(one, "_run_batches", small)
    with pytest.warns(FallbackWarning, match="running 16 at a time"):  # noqa: SIM117
        with waiting(one, [right(one, 3, seed=place) for place in range(4)]) as errors:
            pass
    with waiting(one, [right(one, 2, seed=place) for place in range(5)]) as later:
        pass
    assert not errors
    assert not later
    assert [batch.stop for batch in ran] == [3, 3, 3, 3, 8, 2]


def test_rows_that_are_seen_to_depend_on_each_other(one: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    run = one._run_batches

    def depends(given: Any, batches: list[Batch], *rest: Any, regrouped: bool) -> Any:
        if regrouped and batches[0].stop > 2:
            raise RowsDependError("Outputs of shapes [(1,)] for 8 rows")
        return run(given, batches, *rest, regrouped=regrouped)

    monkeypatch.setattr(one, "_run_batches", depends)
    with waiting(one, [right(one, 2, seed=place) for place in range(4)]) as errors:
        pass
    assert not errors
    assert not one.rows_independent


def test_an_error_of_any_kind_is_that_of_one_alone(
    one: Session, ran: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where NumPy is told, in the thread that runs the others along, to raise. None of them is joined again."""
    joining, call = list[object](), one._call
    monkeypatch.setattr(one, "_call", lambda *given: (joining.append(given), call(*given))[1])
    one._dtypes = [np.dtype("float16"), np.dtype("float32")]

    def strict() -> None:
        with np.errstate(over="raise"):
            given = inputs(2)
            np.testing.assert_array_equal(one.run(given)[0], (2 * given[0] + 1).astype("float16"))

    def large() -> None:
        given = inputs(2)
        given[0][0, 0] = 1e9
        with np.errstate(over="ignore"):
            assert np.isinf(one.run(given)[0][0, 0])

    with waiting(one, [strict, large, strict, strict]) as errors:
        pass
    assert not errors
    assert [batch.stop for batch in ran] == [8, 2, 2, 2, 2]
    assert len(joining) == 4


@pytest.mark.parametrize("cause", ["rows depend", "too little memory"])
@pytest.mark.filterwarnings("ignore:The GPU's memory")
def test_what_is_found_out_while_others_wait_counts_for_them(one: Session, ran: list[Batch], cause: str) -> None:
    with waiting(one, [right(one, 2, seed=place) for place in range(6)]) as errors:
        if cause == "rows depend":
            one._depend(RowsDependError("as a call of many rows saw, which takes no turn"))
        else:
            one._halve(one._plan, 16)
    assert not errors
    assert {batch.size for batch in ran} <= ({2} if cause == "rows depend" else {1, 2, 8})


def test_outputs_whose_shape_depends_on_the_data_are_each_calls_own(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of all callers may fit together by chance, as where a row gives several."""
    one = session(PickingEngine(host_cuda), largest=32, costs=COSTS)
    ran = noted(one, monkeypatch)

    def work() -> None:
        given = [np.ones((8, 5), "float32"), np.zeros(8, "int32")]
        np.testing.assert_array_equal(one.run(given)[1], np.full(8, 5, "float32"))

    for _ in range(2):  # also where none has run yet
        with busy(one):
            in_threads([work] * 3)
    assert [batch.stop for batch in ran] == [8] * 6
    one.close()


# Ctrl-C, and turns that are lost.


def test_ctrl_c_at_any_moment_of_whoever_runs_the_others_along(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns_module, "QUANTUM", 0.001)
    monkeypatch.setattr(steady, "SHORT", 0.0)  # as costs say, and not as fast as the host is
    one = session(HostEngineOnDevice(host_cuda), largest=32, costs=COSTS)
    assert_right(one, inputs(1))
    ran = noted(one, monkeypatch)
    for moment in itertools.count():
        one._turns._holder = -1  # another thread, which is lost
        with busy(one):
            monkeypatch.setattr(turns_module, "LOST", 60.0)  # however long they take to come
            threads, wrong = come(one, [right(one, 2, seed=seed) for seed in range(3)])
            monkeypatch.setattr(turns_module, "LOST", 0.06)
            with one._turns._lock:
                for turn in one._turns._queue:
                    turn.wake()
            one._turns._holder = None
            one._turns._since = float("inf")  # no other is let in before this one
            interrupted = interrupted_at(
                moment, lambda: assert_right(one, inputs(1, seed=9)), session_module, turns_module
            )
            with one._turns._lock:
                one._turns._since = min(one._turns._since, 0.0)
            end(threads)
        assert not wrong
        in_threads([right(one, 3), right(one, 2)], 20)
        if not interrupted:
            assert [batch.stop for batch in ran].count(7) > 20
            break
    in_threads([one.close], 10)


def test_whoever_is_interrupted_while_it_is_run_along(one: Session, ran: list[Batch]) -> None:
    entered, go_on = threading.Event(), threading.Event()
    run = one._runner.run

    def slow(*arguments: Any, **keywords: Any) -> None:
        entered.set()
        assert go_on.wait(20)
        run(*arguments, **keywords)

    one._runner.run = slow  # type: ignore[method-assign, assignment]
    with busy(one), one._turns.wait():
        threads, errors = come(one, [right(one, 2, seed=seed) for seed in range(4)])
    assert entered.wait(20)
    interrupt(threads[2])
    go_on.set()
    end(threads)
    assert [type(error) for error in errors] == [KeyboardInterrupt]
    assert ran == [Batch(0, 8, 8)]


@pytest.mark.parametrize("others", [0, 1])
def test_a_lost_turn_is_over_at_once_for_all_who_wait_for_it(others: int) -> None:
    turns = turns_module.Turns()
    taken, waits = turns.wait(turns_module.Call([])), turns.wait()
    for turn in (taken, waits):
        turn.prepare_to_sleep()
    turns._holder, turns._along, turns._along_since = -1, [taken], 10.0
    turns._queue.extend([waits][:others])
    turns._since = 100.0
    turns._look_after(taken, 10.0 + turns_module.LOST / 2)
    assert turns._holder == -1
    turns._look_after(taken, 10.0 + turns_module.LOST)
    assert taken.is_over
    assert not taken.has_come
    assert waits.has_come == bool(others)
    assert turns._holder == (waits.thread if others else None)


def test_who_was_taken_along_by_one_that_is_lost_runs_alone(one: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "LOST", 0.05)
    stuck, along, ended = threading.Event(), one._turns.along, threading.Event()

    def lost(*arguments: Any) -> Any:
        found = along(*arguments)
        if found and not stuck.is_set():
            stuck.set()
            assert ended.wait(20)
        return found

    monkeypatch.setattr(one._turns, "along", lost)
    with busy(one), one._turns.wait():
        threads, errors = come(one, [right(one, 2, seed=seed) for seed in range(4)])
    assert stuck.wait(20)
    until(lambda: sum(thread.is_alive() for thread in threads) == 1)
    ended.set()
    end(threads)
    assert not errors
