"""Who gets a slot: whoever has waited longest, also where those before gave up, failed, or the engine is closed."""

from __future__ import annotations

import ctypes
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from keras_trt.errors import CudaError, EngineLoadError
from keras_trt.runtime.pool import SlotPool
from keras_trt.runtime.slots import Slot

from .host_parts import Status

SHAPES = (("x", (3, 5)), ("k", (3,)))
OTHERS = (("x", (4, 5)), ("k", (4,)))


@pytest.fixture
def pool(engine: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlotPool]:
    monkeypatch.setattr("keras_trt.runtime.pool.SLOTS", 1)
    pool = SlotPool(engine)
    yield pool
    for slot in pool.close():
        slot.close()
    engine.close()


class Waiter(threading.Thread):
    """Takes a slot in a thread of its own, tells so, and gives it back when told to."""

    def __init__(self, pool: SlotPool, shapes: Any = SHAPES, told: Callable[[], None] = lambda: None) -> None:
        super().__init__(daemon=True)
        self._pool, self._shapes, self._told = pool, shapes, told
        self.error: BaseException | None = None
        self.may_give = threading.Event()
        before = len(pool._queue)
        self.start()
        until(lambda: len(pool._queue) > before or not self.is_alive())

    def run(self) -> None:
        try:
            slot = self._pool.take(self._shapes, wait=True)
        except BaseException as error:
            self.error = error
            return
        self._told()
        assert self.may_give.wait(20)
        self._pool.give(slot)


def until(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not true():
        assert time.monotonic() < ends, "it does not come about"
        time.sleep(0.001)


def ended(waiter: Waiter) -> None:
    waiter.may_give.set()
    waiter.join(20)
    assert not waiter.is_alive()


def test_first_come_first_served(pool: SlotPool) -> None:
    """Whoever gives a slot and takes it again at once must not get it before those who wait."""
    slot = pool.take(SHAPES, wait=True)
    got: list[int] = []
    waiters = [Waiter(pool, told=lambda i=i: got.append(i)) for i in range(3)]  # type: ignore[misc]
    pool.give(slot)
    assert pool.take(SHAPES, wait=False) is None
    for waiter in waiters:
        waiter.may_give.set()
    pool.give(pool.take(SHAPES, wait=True))
    got.append(3)
    for waiter in waiters:
        ended(waiter)
    assert got == [0, 1, 2, 3]


def test_none_that_waits_is_woken_for_nothing(pool: SlotPool) -> None:
    slot = pool.take(SHAPES, wait=True)
    waiters = [Waiter(pool) for _ in range(8)]
    turns = list(pool._queue)
    pool.give(slot)
    assert [turn.granted for turn in turns] == [True] + [False] * 7
    assert all(turn.woken.locked() for turn in turns[1:])
    for waiter in waiters:
        ended(waiter)
    assert pool.take(SHAPES, wait=True) is slot
    pool.give(slot)


def test_a_waiting_thread_that_is_interrupted_leaves_its_place(pool: SlotPool) -> None:
    slot = pool.take(SHAPES, wait=True)
    first, second = Waiter(pool), Waiter(pool)
    interrupt(first)
    # A thread blocked on a lock sees the exception when it runs again, which may be with the slot in its hands.
    pool.give(slot)
    ended(first)
    ended(second)
    assert isinstance(first.error, KeyboardInterrupt)
    assert second.error is None
    assert pool.take(SHAPES, wait=False) is slot
    pool.give(slot)


def interrupt(thread: threading.Thread) -> None:
    """Raise KeyboardInterrupt in a thread, as Ctrl-C does in the main one."""
    identity = ctypes.c_ulong(thread.ident or 0)
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, ctypes.py_object(KeyboardInterrupt)) == 1


def test_closing_wakes_all_who_wait(pool: SlotPool) -> None:
    slot = pool.take(SHAPES, wait=True)
    waiters = [Waiter(pool) for _ in range(3)]
    closed: list[list[Slot]] = []
    closer = threading.Thread(target=lambda: closed.append(pool.close()), daemon=True)
    closer.start()
    for waiter in waiters:
        ended(waiter)
        assert isinstance(waiter.error, RuntimeError)
    assert not closed  # a slot is still in use
    pool.give(slot)
    closer.join(20)
    assert closed == [[slot]]
    with pytest.raises(RuntimeError, match="closed"):
        pool.take(SHAPES, wait=True)
    slot.close()


def test_whoever_waits_may_make_the_slot_that_another_could_not(engine: Any, pool: SlotPool) -> None:
    slot = pool.take(SHAPES, wait=True)
    waiters = [Waiter(pool, OTHERS) for _ in range(3)]
    # The first gets the slot, cannot change its shapes for want of memory, and gives it up.
    engine.cuda.fail("cudaMalloc", Status.cudaErrorMemoryAllocation)
    pool.give(slot)
    for waiter in waiters:
        ended(waiter)
    assert isinstance(waiters[0].error, CudaError)
    assert [waiter.error for waiter in waiters[1:]] == [None, None]
    pool.give(pool.take(SHAPES, wait=True))


def test_a_slot_that_cannot_be_made_is_no_one_elses_loss(engine: Any, pool: SlotPool) -> None:
    for _ in range(3):
        engine.faults["create_context"] = (0, EngineLoadError("TensorRT made no execution context."))
        with pytest.raises(EngineLoadError):
            pool.take(SHAPES, wait=True)
    pool.give(pool.take(SHAPES, wait=True))


# Another number of slots.


def test_who_waits_gets_a_slot_once_there_may_be_more(pool: SlotPool) -> None:
    slot = pool.take(SHAPES, wait=True)
    got: list[int] = []
    waiters = [Waiter(pool, told=lambda i=i: got.append(i)) for i in range(3)]  # type: ignore[misc]
    pool.resize(3)
    until(lambda: len(got) == 2)
    assert len(pool._queue) == 1
    pool.give(slot)
    for waiter in waiters:
        ended(waiter)
    assert pool.held()[0] == 3


def test_a_slot_without_memory_does_not_let_others_be_made(pool: SlotPool, engine: Any) -> None:
    pool.resize(4)
    taken = [pool.take(SHAPES, wait=True) for _ in range(4)]
    pool.resize(2)
    pool.give(taken.pop())
    engine.cuda.fail("cudaMalloc", Status.cudaErrorMemoryAllocation)
    assert pool.take(OTHERS, wait=False) is None
    for slot in taken:
        pool.give(slot)
    pool.resize(pool._limit)
    assert pool.held()[0] == 2


def test_ctrl_c_while_slots_are_freed_leaves_none(pool: SlotPool, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.resize(4)
    for slot in [pool.take(SHAPES, wait=True) for _ in range(4)]:
        pool.give(slot)
    close = Slot.close

    def interrupted(slot: Slot) -> None:
        signal.raise_signal(signal.SIGINT)
        close(slot)

    monkeypatch.setattr(Slot, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.resize(1)
    monkeypatch.setattr(Slot, "close", close)
    assert len(engine.open_contexts()) == pool.held()[0] == 1
