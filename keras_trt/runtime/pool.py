"""Who may use which slot of an engine: first come, first served."""

from __future__ import annotations

import logging
import threading
from collections import deque
from contextlib import ExitStack
from typing import Literal, overload

from .._interrupts import deferred
from ..backends.base import DeviceEngine
from ..errors import CudaError, EngineLoadError
from .slots import Shapes, Slot

_logger = logging.getLogger("keras_trt")

#: Execution contexts of one engine. Each holds TensorRT's activation memory for the largest batch, so few of them:
#: enough for the batch sizes in use (the largest, the tail's, 1) or for as many threads.
SLOTS = 4


class _Turn:
    """One who wants a slot.

    Attributes:
        granted: whether it may go on: with `slot`, or with a new one where that is `None`.
    """

    __slots__ = ("granted", "slot", "thread", "woken")

    def __init__(self) -> None:
        self.slot: Slot | None = None
        self.granted = False
        self.thread = threading.get_ident()

    def wait_in(self, queue: deque[_Turn]) -> None:
        self.woken = threading.Lock()  # not made for those who need not wait
        self.woken.acquire()
        queue.append(self)


class SlotPool:
    """Up to `SLOTS` slots of an engine, or as many as it is told, made when they are needed. Safe for many threads.

    A slot that comes back is handed to whoever has waited longest, and nobody else is woken: where all were, many
    threads spent their time on waking for nothing, and some never got a slot.

    Ctrl-C loses no slot: Python hears of it when a function begins and after a call of another library's, so nothing of
    that kind lies between the steps that move a slot. Hence `del` here, where a list could `pop`.

    Args:
        engine: a loaded engine; its device must be current for all that the pool does.
    """

    def __init__(self, engine: DeviceEngine) -> None:
        self._engine = engine
        self._idle: list[Slot] = []
        self._queue: deque[_Turn] = deque()
        self._made = 0
        self._limit = SLOTS
        self._closed = False
        self._lock = threading.RLock()  # a handler of a signal may call the same model within
        self._quiet = threading.Condition(self._lock)

    @overload
    def take(self, shapes: Shapes, *, wait: Literal[True], nested: bool = False) -> Slot: ...
    @overload
    def take(self, shapes: Shapes, *, wait: bool, change: bool = True, nested: bool = False) -> Slot | None: ...
    def take(self, shapes: Shapes, *, wait: bool, change: bool = True, nested: bool = False) -> Slot | None:
        """Return a slot with the shapes: an idle one that last ran them, else a new one, else one that changes its own.

        Args:
            shapes: of the inputs.
            wait: whether to wait for a slot. Who holds one must not: two might wait for each other.
            change: whether an idle slot may change its shapes; it may for whoever waits.
            nested: whether the thread may hold slots of another call, for which it would wait for ever: where there is
                none, it gets one more than there may be, until that is given back.

        Returns:
            `None` where there is none to be had now, or others wait.

        Raises:
            RuntimeError: after `close`.
            CudaError, EngineLoadError: for want of memory, if there is no slot to wait for either.
        """
        while True:
            turn = _Turn()
            try:
                with self._lock:
                    if self._closed:
                        raise RuntimeError("This engine is closed.")
                    if not self._queue:
                        self._grant_at_once(turn, shapes, change or wait)
                    if not turn.granted:
                        if not wait:
                            return None
                        if nested:
                            self._made += 1
                            turn.granted = True
                        else:
                            turn.wait_in(self._queue)
                if not turn.granted:
                    turn.woken.acquire()
                    if not turn.granted:
                        raise RuntimeError("This engine is closed.")
                return self._prepared(turn, shapes)
            except BaseException as error:
                if not self._gives_up(turn, error) or nested:
                    raise

    def take_last(self, shapes: Shapes) -> Slot | None:
        """Return the slot with the shapes that was given last, if nobody has one or waits; else `None`."""
        slot, thread = None, threading.get_ident()
        try:
            with self._lock:
                idle = self._idle
                if len(idle) != self._made or self._closed:
                    return None
                for place in range(len(idle) - 1, -1, -1):
                    if idle[place].shapes == shapes:
                        slot = idle[place]
                        slot.holder = thread
                        del idle[place]
                        break
        except BaseException:
            if slot is not None:
                self.give(slot)
            raise
        return slot

    def give(self, slot: Slot) -> None:
        """Take a slot back from the thread that took it, unless it has given it. Nothing may run on it."""
        if self._made > self._limit:
            self._free(slot)
        with self._lock:
            if slot.holder == threading.get_ident():
                self._pass_on(slot)
            if self._closed:
                self._quiet.notify_all()

    def give_up(self, slot: Slot) -> None:
        """Take a slot back after a failure, unless it is given: once nothing runs into the next call's memory."""
        try:
            if slot.holder == threading.get_ident():
                slot.wait()
        finally:
            self.give(slot)

    def _free(self, slot: Slot) -> None:
        """Free a slot of this thread's, where there are more than there may be."""
        with deferred():
            with self._lock:
                surplus = slot.holder == threading.get_ident() and self._made > self._limit
                if surplus:
                    slot.holder = None
                    self._made -= 1
            if surplus:
                slot.close()

    def resize(self, limit: int) -> None:
        """Have so many slots at most from now on. Those beyond that are freed, if in use when they are given back."""
        with deferred(), ExitStack() as closing:
            with self._lock:
                self._limit = limit
                self._let_make()
                count = min(max(self._made - limit, 0), len(self._idle))
                surplus, self._idle[:count] = self._idle[:count], []
                self._made -= count
            for slot in surplus:
                closing.callback(slot.close)

    def held(self) -> tuple[int, int, int]:
        """Return how many slots there are, and what they take on the GPU and on the host.

        Slots that are in use now count as those that are idle.
        """
        with self._lock:  # nobody takes a slot and changes its buffers meanwhile
            made, held = self._made, [slot.buffer_bytes for slot in self._idle]
        on_gpu, pinned = (sum(sizes) * made // len(held) for sizes in zip(*held, strict=True)) if held else (0, 0)
        return made, on_gpu, pinned

    def close(self) -> list[Slot]:
        """Let nobody take a slot any more, and return all of them once they are idle."""
        with self._lock:
            self._closed = True
            while self._queue:
                self._queue.popleft().woken.release()
            self._quiet.wait_for(lambda: len(self._idle) == self._made)
            idle, self._idle, self._made = self._idle, [], 0
        return idle

    def _grant_at_once(self, turn: _Turn, shapes: Shapes, change: bool) -> None:
        """Grant a slot, or a new one, where that is to be had now. Needs the lock."""
        slot = self._idle_slot(shapes, change)
        if slot is not None:
            turn.slot, turn.granted, slot.holder = slot, True, turn.thread
        elif self._made < self._limit:
            self._made += 1
            turn.granted = True

    def _prepared(self, turn: _Turn, shapes: Shapes) -> Slot:
        """Return the slot that was granted, a new one where none is given, with the shapes."""
        slot = turn.slot
        if slot is None:
            turn.slot = slot = Slot(self._engine)
            slot.holder = turn.thread
        if slot.shapes != shapes:
            slot.prepare(shapes)
        return slot

    def _gives_up(self, turn: _Turn, error: BaseException) -> bool:
        """Take back, after an error, what was granted; return whether others are left to wait for.

        A slot that finds no memory is given up, with all that it holds: there are fewer from now on.
        """
        with self._lock:
            if turn in self._queue:
                self._queue.remove(turn)
        if not turn.granted:
            return False
        slot, no_memory = turn.slot, isinstance(error, CudaError) and error.out_of_memory
        if slot is not None and not no_memory:
            self.give(slot)
            return False
        if not isinstance(error, CudaError | EngineLoadError):  # Ctrl-C, which says nothing about memory
            with self._lock:
                self._one_less()
            return False
        if not self._drop(slot):
            return False
        _logger.info("The GPU has room for %d slots of this engine: %s", self._limit, error)
        return True

    def _drop(self, slot: Slot | None) -> bool:
        """Do with one slot less from now on; `False` where none is left."""
        try:
            if slot is not None:
                slot.close()
        finally:
            with self._lock:
                left = self._made - 1
                self._limit = max(min(left, self._limit), 1)
                self._one_less()
        return left > 0

    def _one_less(self) -> None:
        """Count one slot less. Needs the lock."""
        self._made -= 1
        self._let_make()
        self._quiet.notify_all()

    def _let_make(self) -> None:
        """Let those who have waited longest make slots, as many as there may be more. Needs the lock."""
        while self._queue and self._made < self._limit:
            self._grant(None)

    def _pass_on(self, slot: Slot) -> None:
        """Hand a slot to whoever has waited longest. Needs the lock."""
        if self._queue:
            self._grant(slot)
        else:
            slot.holder = None
            self._idle += [slot]

    def _grant(self, slot: Slot | None) -> None:
        turn = self._queue[0]
        del self._queue[0]
        turn.slot, turn.granted = slot, True
        if slot is not None:
            slot.holder = turn.thread
        else:
            self._made += 1
        turn.woken.release()

    def _idle_slot(self, shapes: Shapes, change: bool) -> Slot | None:
        """Return an idle slot that has the shapes, or may change its own as no more may be made. Needs the lock."""
        for place, slot in enumerate(self._idle):
            if slot.shapes == shapes:
                del self._idle[place]
                return slot
        if not (change and self._idle) or self._made < self._limit:
            return None
        slot = self._idle[0]  # the one that has been idle longest
        del self._idle[0]
        return slot
