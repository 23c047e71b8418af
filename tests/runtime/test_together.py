"""Calls of many threads that are run as one batch: each gets its own rows' answers."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from keras_trt.runtime import Session, copying
from keras_trt.runtime import turns as turns_module
from keras_trt.runtime.plan import Batch
from keras_trt.specs import Cost

from .helpers import Array, assert_right, in_threads, inputs, one_by_one, session
from .host_cuda import HostCuda
from .host_engine import HostEngineOnDevice
from .joined import busy, noted, right, waiting

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
    """It is not run along, and waits for no turn; the others are."""

    def into() -> None:
        given, out = inputs(3, seed=7), [np.empty((3, 5), "float32"), np.empty(3, "float32")]
        got = one.run(given, out=out)
        assert got[0] is out[0]
        np.testing.assert_array_equal(out[0], 2 * given[0] + 1)

    with waiting(one, [right(one, 1), right(one, 2), right(one, 3)]) as errors:
        into()
    assert not errors
    assert [batch.stop for batch in ran] == [3, 6]


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


# Who is not run along, or waits for no turn.


def test_short_calls_take_turns(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch would take less, and all whose calls are in it would have to be woken, which takes longer."""
    one = session(HostEngineOnDevice(host_cuda), largest=32, costs=one_by_one({1: 9e-5, 8: 9e-5, 32: 9e-5}))
    ran = noted(one, monkeypatch)
    for before in range(4):  # with all that calls have found out by then
        with waiting(one, [right(one, 2, seed=place) for place in range(6)]) as errors:
            pass
        assert not errors
        assert [batch.stop for batch in ran] == [2] * 6 * (before + 1)
    one.close()


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
