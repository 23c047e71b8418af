"""Who may use which slot of an engine: first come, first served."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Literal, overload

from ..backends.base import DeviceEngine
from ..errors import CudaError, EngineLoadError
from .slots import Shapes, Slot

_logger = logging.getLogger("keras_trt")

#: Execution contexts of one engine. Each holds TensorRT's activation memory for the largest batch, so few of them:
#: enough for the batch sizes in use (the largest, the tail's, 1) or for as many threads.
MAX_SLOTS = 4


class _Turn:
    """One who waits for a slot.

    Attributes:
        granted: whether it may go on: with `slot`, or with a new one where that is `None`.
    """

    __slots__ = ("granted", "slot", "woken")

    def __init__(self) -> None:
        self.slot: Slot | None = None
        self.granted = False
        self.woken = threading.Lock()
        self.woken.acquire()


class SlotPool:
    """Up to `MAX_SLOTS` slots of an engine, made when they are needed. Safe to use from many threads.

    A slot that comes back is handed to whoever has waited longest, and nobody else is woken: where all were, many
    threads spent their time on waking for nothing, and some never got a slot.

    Args:
        engine: a loaded engine; its device must be current for all that the pool does.
    """

    def __init__(self, engine: DeviceEngine) -> None:
        self._engine = engine
        self._idle: list[Slot] = []
        self._queue: deque[_Turn] = deque()
        self._made = 0
        self._limit = MAX_SLOTS
        self._closed = False
        self._lock = threading.Lock()
        self._quiet = threading.Condition(self._lock)

    @overload
    def take(self, shapes: Shapes, *, wait: Literal[True]) -> Slot: ...
    @overload
    def take(self, shapes: Shapes, *, wait: bool) -> Slot | None: ...
    def take(self, shapes: Shapes, *, wait: bool) -> Slot | None:
        """Return a slot with the shapes: an idle one that last ran them, else a new one, else one that changes its own.

        Args:
            shapes: of the inputs.
            wait: whether to wait for a slot. Who holds one must not: two might wait for each other.

        Returns:
            `None` where there is none to be had now, or others wait.

        Raises:
            RuntimeError: after `close`.
            CudaError, EngineLoadError: for want of memory, if there is no slot to wait for either.
        """
        while True:
            turn = None
            with self._lock:
                if self._closed:
                    raise RuntimeError("This engine is closed.")
                if self._queue and not wait:
                    return None
                slot = None if self._queue else self._idle_slot(shapes)
                if slot is None:
                    if not self._queue and self._made < self._limit:
                        self._made += 1
                    elif not wait:
                        return None
                    else:
                        self._queue.append(turn := _Turn())
            if turn is not None:
                slot = self._when_granted(turn)
            prepared = self._prepared(slot, shapes)
            if prepared is not None:
                return prepared

    def give(self, slot: Slot) -> None:
        """Take a slot back."""
        with self._lock:
            self._pass_on(slot)

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

    def _when_granted(self, turn: _Turn) -> Slot | None:
        try:
            turn.woken.acquire()
        except BaseException:  # Ctrl-C
            with self._lock:
                if turn in self._queue:
                    self._queue.remove(turn)
                elif turn.slot is not None:
                    self._pass_on(turn.slot)
                elif turn.granted:
                    self._one_less()
            raise
        if not turn.granted:
            raise RuntimeError("This engine is closed.")
        return turn.slot

    def _prepared(self, slot: Slot | None, shapes: Shapes) -> Slot | None:
        """Return a slot, a new one where none is given, with the shapes; `None` where others are left to wait for.

        A slot that finds no memory is given up, with all that it holds: there are fewer from now on.
        """
        try:
            if slot is None:
                slot = Slot(self._engine)
            if slot.shapes != shapes:
                slot.prepare(shapes)
        except BaseException as error:
            if slot is not None and not (isinstance(error, CudaError) and error.out_of_memory):
                self.give(slot)
                raise
            if not self._drop(slot) or not isinstance(error, CudaError | EngineLoadError):
                raise
            _logger.info("The GPU has room for %d slots of this engine: %s", self._limit, error)
            return None
        return slot

    def _drop(self, slot: Slot | None) -> bool:
        """Do with one slot less from now on; `False` where none is left."""
        try:
            if slot is not None:
                slot.close()
        finally:
            with self._lock:
                left = self._made - 1
                self._limit = max(left, 1)
                self._one_less()
        return left > 0

    def _one_less(self) -> None:
        """Count one slot less; whoever has waited longest may make another where there may be one. Needs the lock."""
        self._made -= 1
        if self._queue and self._made < self._limit:
            self._made += 1
            self._grant(None)
        self._quiet.notify_all()

    def _pass_on(self, slot: Slot) -> None:
        """Hand a slot to whoever has waited longest. Needs the lock."""
        if self._queue:
            self._grant(slot)
        else:
            self._idle.append(slot)
            if self._closed:
                self._quiet.notify_all()

    def _grant(self, slot: Slot | None) -> None:
        turn = self._queue.popleft()
        turn.slot, turn.granted = slot, True
        turn.woken.release()

    def _idle_slot(self, shapes: Shapes) -> Slot | None:
        """Return an idle slot that has the shapes, or is to change its own as no more may be made. Needs the lock."""
        for slot in self._idle:
            if slot.shapes == shapes:
                self._idle.remove(slot)
                return slot
        if self._idle and self._made >= self._limit:
            return self._idle.pop(0)  # the one that has been idle longest
        return None
