"""Calls of many threads that are run as one batch: each gets its own rows' answers, or is run alone."""

from __future__ import annotations

import itertools
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_trt.errors import CudaError, FallbackWarning, InputError
from keras_trt.runtime import Session, copying
from keras_trt.runtime import session as session_module
from keras_trt.runtime import turns as turns_module
from keras_trt.runtime.plan import LONG, SHORT, WORTH, WORTH_WAKING, Batch, BatchPlan
from keras_trt.runtime.results import RowsDependError
from keras_trt.specs import Cost

from .helpers import Array, assert_right, in_threads, inputs, one_by_one, session
from .host_cuda import HostCuda
from .host_engine import HostEngineOnDevice, expected
from .interrupts import interrupted_at
from .test_open_shapes import PickingEngine
from .test_pool import interrupt, until

COSTS = one_by_one({1: 1.0e-4, 8: 1.1e-4, 32: 1.2e-4})


@pytest.fixture
def one(host_cuda: HostCuda) -> Iterator[Session]:
    one = session(HostEngineOnDevice(host_cuda), largest=32, costs=COSTS)
    assert_right(one, inputs(1))  # it is known then that the shapes of its outputs are
    yield one
    in_threads([one.close], 10)


@pytest.fixture
def ran(one: Session, monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """All batches that are run, in their order."""
    run, found = one._run_batches, list[Batch]()

    def noting(given: Any, batches: Any, *rest: Any, **keywords: Any) -> Any:
        found.extend(batches)
        return run(given, batches, *rest, **keywords)

    monkeypatch.setattr(one, "_run_batches", noting)
    return found


@contextmanager
def busy(one: Session, calls: int = WORTH_WAKING) -> Iterator[None]:
    """Let there be so many calls of other threads."""
    one._life._users += calls
    try:
        yield
    finally:
        one._life._users -= calls


@contextmanager
def waiting(one: Session, calls: list[Callable[[], None]]) -> Iterator[list[BaseException]]:
    """Let calls come one after the other while the block has its turn; then all of them must end. Give their errors."""
    errors: list[BaseException] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(call,), daemon=True) for call in calls]
    with busy(one), one._turns.wait():
        for index, thread in enumerate(threads):
            thread.start()
            until(lambda index=index: one._turns.waiting == index + 1)  # type: ignore[misc]
        yield errors
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a thread hangs"


def right(one: Session, rows: int, **keywords: Any) -> Callable[[], None]:
    return lambda: assert_right(one, inputs(rows, **keywords))


# How many.


@given(
    costs=st.dictionaries(st.integers(1, 24), st.builds(Cost, *[st.floats(1e-5, 2 * LONG)] * 2), max_size=4),
    rows=st.lists(st.integers(1, 30), min_size=1, max_size=6),
)
def test_as_many_as_are_worth_it(costs: dict[int, Cost], rows: list[int]) -> None:
    plan = BatchPlan(1, 24, costs)

    def seconds(count: int) -> float | None:
        """What so many take in the smallest batch that was measured and holds them."""
        fitting = [cost.alone for size, cost in sorted(costs.items()) if size >= sum(rows[:count])]
        return fitting[0] if fitting else None

    count, size = plan.together(rows)
    assert count == 1 or WORTH_WAKING <= count <= len(rows)
    apart = [plan.seconds(some, further=not plan.is_short(some)) for some in rows]
    for more in range(WORTH_WAKING, len(rows) + 1):
        together, one_by_one = seconds(more), list(itertools.accumulate(one or 0.0 for one in apart[:more]))[-1]
        worth = None not in apart[:more] and together is not None and together <= min(WORTH * one_by_one, LONG)
        if more == count:
            assert worth
            assert size == min(known for known in costs if known >= sum(rows[:more]))
        if more > count:
            assert not worth
    for calls in (2, 5):
        assert plan.is_joined(rows[0], calls) == (plan.together(rows[:1] * calls)[0] > 1)


def test_long_calls_are_joined_where_there_are_enough_of_them() -> None:
    """Single images are not short. Four beside each other take less than a batch of eight, and that less than five."""
    plan = BatchPlan(1, 32, {1: Cost(0.30e-3, 0.15e-3), 8: Cost(0.6e-3, 0.4e-3), 32: Cost(1.3e-3, 0.7e-3)})
    assert not plan.is_short(1)
    assert plan.seconds(1) > SHORT
    assert [plan.is_joined(1, calls) for calls in (2, 4, 5, 8, 32)] == [False, False, True, True, True]
    assert plan.together([1] * 32) == (32, 32)
    assert plan.together([1] * 6) == (6, 8)


# What comes of it.


def test_those_who_wait_are_run_along(one: Session, ran: list[Batch]) -> None:
    sizes = [1, 2, 3, 1, 4]
    with waiting(one, [right(one, size, seed=place) for place, size in enumerate(sizes)]) as errors:
        pass
    assert not errors
    assert ran == [Batch(0, 11, 32)]


def test_what_does_not_fit_is_run_next(one: Session, ran: list[Batch]) -> None:
    with waiting(one, [right(one, size, seed=place) for place, size in enumerate([10, 9, 10, 8, 3, 1])]) as errors:
        pass
    assert not errors
    assert ran[0] == Batch(0, 29, 32)
    assert sum(batch.stop for batch in ran) == 41


def test_other_shapes_are_not_run_along(one: Session, ran: list[Batch]) -> None:
    widths = [5, 6, 5, 6, 5, 6]
    with waiting(one, [right(one, 2, width=width, seed=place) for place, width in enumerate(widths)]) as errors:
        pass
    assert not errors
    assert ran == [Batch(0, 6, 8), Batch(0, 6, 8)]


def test_large_rows_are_copied_by_several_threads(
    one: Session, ran: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Straight from where each call has them, across the parts."""
    pieces: list[int] = []
    help_with = copying._help_with
    monkeypatch.setattr(copying, "PIECE", 40)
    monkeypatch.setattr("keras_trt.runtime.slots.ONE_THREADS", 40)
    monkeypatch.setattr(copying, "_help_with", lambda copy, count: (pieces.append(count), help_with(copy, count)))
    with waiting(one, [right(one, size, width=7, seed=place) for place, size in enumerate([3, 1, 5, 2])]) as errors:
        pass
    assert not errors
    assert ran == [Batch(0, 11, 32)]
    assert pieces
    assert max(pieces) > 1


def test_two_are_run_one_after_the_other(one: Session, ran: list[Batch]) -> None:
    with waiting(one, [right(one, 2, seed=place) for place in range(2)]) as errors:
        pass
    assert not errors
    assert [batch.stop for batch in ran] == [2, 2]


def test_out_is_written_by_its_own_call(one: Session, ran: list[Batch]) -> None:
    """And is not run along; the others are."""

    def into() -> None:
        given, out = inputs(3, seed=7), [np.empty((3, 5), "float32"), np.empty(3, "float32")]
        got = one.run(given, out=out)
        assert got[0] is out[0]
        np.testing.assert_array_equal(out[0], 2 * given[0] + 1)

    with waiting(one, [right(one, 1), into, right(one, 2), right(one, 3)]) as errors:
        pass
    assert not errors
    assert sorted(batch.stop for batch in ran) == [3, 6]


def test_each_owns_its_answers(one: Session, ran: list[Batch]) -> None:
    """One row that is kept must not keep all others' in memory, nor be changed by them."""
    got: list[Array] = []
    with waiting(one, [lambda: got.extend(one.run(inputs(1))) for _ in range(5)]):
        pass
    assert ran == [Batch(0, 5, 8)]
    assert len(got) == 10
    assert all(array.flags.owndata for array in got)


def test_many_threads(one: Session, ran: list[Batch]) -> None:
    """Of any sizes and shapes: all answers are right, and fewer batches run than calls were made."""
    calls = 40
    runner: Any = one._runner
    runner._engine.slow = 0.001

    def work(thread: int) -> Callable[[], None]:
        generator = random.Random(thread)  # noqa: S311 (no secret)

        def run() -> None:
            for call in range(calls):
                assert_right(
                    one, inputs(generator.choice([1, 1, 1, 2, 3, 8, 20, 40]), generator.choice([5, 5, 6]), call)
                )

        return run

    in_threads([work(thread) for thread in range(12)], 120)
    whole = [batch for batch in ran if batch.start == 0]
    assert len(whole) < 12 * calls


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


def test_outputs_whose_shape_depends_on_the_data_are_each_calls_own(host_cuda: HostCuda) -> None:
    """Those of all callers may fit together by chance, as where a row gives several."""
    one = session(PickingEngine(host_cuda), largest=32, costs=COSTS)
    run, sizes = one._run_batches, list[int]()

    def noting(given: Any, batches: list[Batch], *rest: Any, **keywords: Any) -> Any:
        sizes.append(batches[0].stop)
        return run(given, batches, *rest, **keywords)

    one._run_batches = noting  # type: ignore[method-assign, assignment]

    def work() -> None:
        given = [np.ones((8, 5), "float32"), np.zeros(8, "int32")]
        np.testing.assert_array_equal(one.run(given)[1], np.full(8, 5, "float32"))

    for _ in range(2):  # also where none has run yet
        with waiting(one, [work] * 3) as errors:
            pass
        assert not errors
    assert sizes == [8] * 6
    one.close()


# Who waits for no turn.


def test_a_few_threads_with_long_calls_run_beside_each_other(host_cuda: HostCuda) -> None:
    long = {1: Cost(0.30e-3, 0.15e-3), 8: Cost(0.6e-3, 0.4e-3), 32: Cost(1.3e-3, 0.7e-3)}
    one = session(HostEngineOnDevice(host_cuda), largest=32, costs=long)
    assert_right(one, inputs(1))
    with one._turns.wait():
        for others in range(8):
            with busy(one, others + 1):
                assert (one._call(one._plan, inputs(1)) is None) == (others < 4)
            if others < 4:
                with busy(one, others):
                    in_threads([right(one, 1)], 10)  # does not wait for the turn
    one.close()


def test_a_handler_of_a_signal_waits_for_no_turn(one: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come while its own thread holds the lock of all turns."""
    monkeypatch.setattr(turns_module, "LOST", 1000.0)
    monkeypatch.setattr(turns_module, "QUANTUM", 1000.0)
    plan, together, handled = one._plan, one._plan.together, list[bool]()

    def interrupted(calls: Iterable[int]) -> tuple[int, int]:
        if one._turns._lock.locked() and not handled:
            handled.append(True)
            signal.raise_signal(signal.SIGUSR1)
        return together(calls)

    before = signal.signal(signal.SIGUSR1, lambda *_: assert_right(one, inputs(2)))
    try:
        with waiting(one, [right(one, 2, seed=seed) for seed in range(3)]) as errors:
            monkeypatch.setattr(plan, "together", interrupted)
            one._turns._holder, one._turns._since = None, float("inf")  # no other is due before this one
            assert_right(one, inputs(2, seed=9))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not errors
    assert handled


# Ctrl-C, and turns that are lost.


def test_ctrl_c_at_any_moment_of_whoever_runs_the_others_along(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns_module, "LOST", 0.02)
    monkeypatch.setattr(turns_module, "QUANTUM", 0.001)
    one = session(HostEngineOnDevice(host_cuda), largest=32, costs=COSTS)
    assert_right(one, inputs(1))
    run, together = one._run_batches, 0

    def counting(given: Any, batches: Any, *rest: Any, **keywords: Any) -> Any:
        nonlocal together
        together += batches[0].stop == 7
        return run(given, batches, *rest, **keywords)

    monkeypatch.setattr(one, "_run_batches", counting)
    for moment in itertools.count():
        threads: list[threading.Thread] = []
        wrong: list[BaseException] = []

        def other(seed: int, wrong: list[BaseException] = wrong) -> None:
            try:
                assert_right(one, inputs(2, seed=seed))
            except BaseException as error:
                wrong.append(error)

        one._turns._holder = -1  # another thread, which is lost
        with busy(one):
            threads = [threading.Thread(target=other, args=(seed,), daemon=True) for seed in range(3)]
            for index, thread in enumerate(threads):
                thread.start()
                until(lambda index=index: one._turns.waiting == index + 1)  # type: ignore[misc]
            one._turns._holder = None
            one._turns._since = float("inf")  # no other is let in before this one
            interrupted = interrupted_at(
                moment, lambda: assert_right(one, inputs(1, seed=9)), session_module, turns_module
            )
            with one._turns._lock:
                one._turns._since = min(one._turns._since, 0.0)
            in_threads([thread.join for thread in threads], 20)
        assert not wrong
        in_threads([right(one, 3), right(one, 2)], 20)
        if not interrupted:
            assert together > 20
            break
    in_threads([one.close], 10)


def test_whoever_is_interrupted_while_it_is_run_along(one: Session, ran: list[Batch]) -> None:
    entered, go_on = threading.Event(), threading.Event()
    run, errors, threads = one._runner.run, list[BaseException](), list[threading.Thread]()

    def slow(*arguments: Any) -> None:
        entered.set()
        assert go_on.wait(20)
        run(*arguments)

    def work(seed: int) -> None:
        try:
            assert_right(one, inputs(2, seed=seed))
        except BaseException as error:
            errors.append(error)

    one._runner.run = slow  # type: ignore[method-assign, assignment]
    with busy(one), one._turns.wait():
        for index in range(4):
            threads.append(threading.Thread(target=work, args=(index,), daemon=True))
            threads[-1].start()
            until(lambda index=index: one._turns.waiting == index + 1)  # type: ignore[misc]
    assert entered.wait(20)
    interrupt(threads[2])
    go_on.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
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
    done: list[int] = []
    threads: list[threading.Thread] = []

    def work(seed: int) -> None:
        assert_right(one, inputs(2, seed=seed))
        done.append(seed)

    with busy(one), one._turns.wait():
        for index in range(4):
            threads.append(threading.Thread(target=work, args=(index,), daemon=True))
            threads[-1].start()
            until(lambda index=index: one._turns.waiting == index + 1)  # type: ignore[misc]
    assert stuck.wait(20)
    until(lambda: len(done) == 3)
    ended.set()
    for thread in threads:
        thread.join(20)
    assert sorted(done) == [0, 1, 2, 3]
