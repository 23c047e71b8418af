"""Turns: one thread at a time, none waits for ever, and none is lost."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import pytest

from keras_trt.runtime import turns as turns_module
from keras_trt.runtime.turns import QUANTUM, Turns

from .helpers import in_threads, inputs, one_by_one, session
from .host_cuda import HostCuda
from .host_engine import HostEngineOnDevice
from .interrupts import interrupted_at
from .test_pool import interrupt, until


@pytest.mark.parametrize("count", [2, 5, 32])
def test_one_at_a_time_and_all_in_the_end(count: int) -> None:
    turns, inside, most = Turns(), 0, 0
    ends, calls = time.monotonic() + 60 * count * QUANTUM, [0] * count

    def work(index: int) -> Callable[[], None]:
        def run() -> None:
            nonlocal inside, most
            while time.monotonic() < ends:
                with turns.wait():
                    inside += 1
                    most = max(most, inside)
                    inside -= 1
                calls[index] += 1

        return run

    in_threads([work(index) for index in range(count)])
    assert most == 1
    assert min(calls) >= 3, calls


@pytest.mark.parametrize("again", [True, False])
def test_who_comes_at_once_again_may_do_so_and_others_let_the_next_in(
    monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    monkeypatch.setattr("keras_trt.runtime.turns.QUANTUM", 1000.0)
    monkeypatch.setattr("keras_trt.runtime.turns.AT_ONCE", 1000.0 if again else 0.0)
    turns, got = Turns(), threading.Event()

    def wait() -> None:
        with turns.wait():
            got.set()

    thread = threading.Thread(target=wait, daemon=True)
    with turns.wait():
        pass
    with turns.wait():
        thread.start()
        until(lambda: bool(turns._queue))
    if again:
        for _ in range(100):
            with turns.wait():
                assert not got.is_set()
        with turns.wait():
            turns._since = -1000.0  # long ago: due when this one leaves
    assert got.wait(20)
    thread.join(20)


def test_the_first_does_not_wait_for_one_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras_trt.runtime.turns.AT_ONCE", 1000.0)
    turns, got = Turns(), threading.Event()

    def wait() -> None:
        with turns.wait():
            got.set()

    with turns.wait():
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        until(lambda: bool(turns._queue))
        turns._since, turns._again = time.monotonic() + 0.05, True  # not due when this one leaves
    assert got.wait(20)
    thread.join(20)
    with turns.wait():
        pass


def test_who_came_behind_many_is_on_guard_once_it_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not sleep for as long as so many turns could have taken."""
    monkeypatch.setattr("keras_trt.runtime.turns.QUANTUM", 1.0)
    monkeypatch.setattr("keras_trt.runtime.turns.LOST", 1000.0)
    turns, got = Turns(), threading.Event()

    def wait(last: bool) -> None:
        with turns.wait():
            if last:
                got.set()

    threads = [threading.Thread(target=wait, args=(index == 12,), daemon=True) for index in range(13)]
    with turns.wait():
        for index, thread in enumerate(threads):
            thread.start()
            until(lambda index=index: len(turns._queue) == index + 1)  # type: ignore[misc]
        turns._queue[11].again = True  # but does not come again
    assert got.wait(10)
    for thread in threads:
        thread.join(20)


def test_whoever_is_interrupted_on_guard_is_followed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras_trt.runtime.turns.QUANTUM", 1000.0)
    monkeypatch.setattr("keras_trt.runtime.turns.LOST", 1000.0)
    turns, got, errors = Turns(), threading.Event(), list[BaseException]()

    def wait(first: bool) -> None:
        try:
            with turns.wait():
                got.set()
        except KeyboardInterrupt as error:
            assert first
            errors.append(error)

    threads = [threading.Thread(target=wait, args=(index == 0,), daemon=True) for index in range(2)]
    with turns.wait():
        for index, thread in enumerate(threads):
            thread.start()
            until(lambda index=index: len(turns._queue) == index + 1)  # type: ignore[misc]
        turns._again = True  # but does not come again
    guard = turns._queue[0]
    assert guard.on_guard
    interrupt(threads[0])
    with turns._lock:
        guard.wake()  # a thread hears of it when it wakes
    assert got.wait(20)
    for thread in threads:
        thread.join(20)
    assert errors


def test_an_error_ends_a_turn() -> None:
    turns = Turns()
    with pytest.raises(ValueError, match="no"), turns.wait():
        raise ValueError("no")
    with turns.wait():
        pass


@pytest.mark.parametrize("place", [0, 1, 2])
def test_whoever_is_interrupted_leaves_its_place(place: int) -> None:
    turns, got, errors = Turns(), list[int](), list[BaseException]()

    def wait(index: int) -> None:
        try:
            with turns.wait():
                got.append(index)
        except BaseException as error:
            errors.append(error)

    with turns.wait():
        threads = []
        for index in range(3):
            threads.append(threading.Thread(target=wait, args=(index,), daemon=True))
            threads[-1].start()
            until(lambda index=index: len(turns._queue) == index + 1)  # type: ignore[misc]
        interrupt(threads[place])
        if place == 0:  # a thread hears of it when it wakes
            until(lambda: bool(errors))
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert len(errors) == 1
    assert isinstance(errors[0], KeyboardInterrupt)
    assert sorted([*got, place]) == [0, 1, 2] or sorted(got) == [0, 1, 2]
    with turns.wait():
        pass


def test_whoever_has_the_turn_may_come_in_again() -> None:
    """As a handler of a signal, or a report of progress, that calls the model from within its call."""
    turns = Turns()

    def twice() -> None:
        with turns.wait(), turns.wait():
            pass

    in_threads([twice, twice], 10)


@pytest.mark.parametrize("waits", [0, 1, 2])
def test_ctrl_c_at_any_moment_lets_others_have_their_turn(waits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it comes before the turn can be ended."""
    monkeypatch.setattr("keras_trt.runtime.turns.QUANTUM", 0.001)
    monkeypatch.setattr("keras_trt.runtime.turns.LOST", 0.01)
    for moment in itertools.count():
        turns = Turns()

        def wait(turns: Turns = turns) -> None:
            with turns.wait():
                pass

        threads = [threading.Thread(target=wait, daemon=True) for _ in range(waits)]
        turns._holder = -1  # another thread that is lost; so all of them wait
        for index, thread in enumerate(threads):
            thread.start()
            until(lambda turns=turns, index=index: len(turns._queue) > index or turns._holder != -1)  # type: ignore[misc]
        interrupted = interrupted_at(moment, wait, turns_module)
        in_threads([*[thread.join for thread in threads], wait, wait], 10)
        assert turns._holder is None or interrupted
        assert not turns._queue
        if not interrupted:
            return


@pytest.mark.parametrize(("seconds", "gpus", "at_once"), [(1e-4, 1, 2), (1e-2, 1, 3), (1e-4, 2, 3)])
def test_only_short_calls_on_one_gpu_take_turns(host_cuda: HostCuda, seconds: float, gpus: int, at_once: int) -> None:
    """Nor does the first, who is alone when it comes."""
    engines = [HostEngineOnDevice(host_cuda, device) for device in range(gpus)]
    one = session(*engines, costs=one_by_one({1: seconds, 8: seconds}))
    run, meeting, inside, most = one._run_batches, threading.Barrier(3), 0, 0

    def met(*arguments: object, **keywords: object) -> list[object]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            meeting.wait(0.5)
        except threading.BrokenBarrierError:
            meeting.reset()
        inside -= 1
        return run(*arguments, **keywords)  # type: ignore[arg-type]

    one._run_batches = met  # type: ignore[method-assign, assignment]
    in_threads([lambda: one.run(inputs(8)) and None] * 3)
    assert most == at_once
    one.close()


def test_a_report_of_progress_keeps_nobody_waiting(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras_trt.runtime.turns.LOST", 1000.0)
    one = session(HostEngineOnDevice(host_cuda), costs=one_by_one({8: 1e-4}))
    one.run(inputs(8), lambda _: in_threads([lambda: one.run(inputs(8)) and None], 10))
    one.close()
