"""Calls of many threads: one after the other, or several as one batch, by one of the threads."""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from ..backends.base import Array

#: How long the first who waits is kept waiting, in seconds: as long as Python, too, lets a thread run on that others
#: wait for (`sys.getswitchinterval`).
QUANTUM = 5e-3
#: Within how many seconds a thread has come again at once, and will again: about what waking another takes.
AT_ONCE = 2e-4
#: After how many seconds a turn is taken for lost: Ctrl-C may come just before a thread can end its turn.
LOST = 1.0


@dataclass(eq=False)
class Call:
    """Rows that another thread's turn may run along with its own.

    Attributes:
        inputs: arrays with one number of rows.
        outputs: what was inferred, as views of what all rows gave; `None` until then.
    """

    inputs: Sequence[Array]
    outputs: Sequence[Array] | None = None

    @functools.cached_property
    def kind(self) -> Hashable:
        """Only calls of one kind can be run together."""
        return tuple([(array.dtype, array.shape[1:]) for array in self.inputs])

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return len(self.inputs[0])


class Turn:
    """What one thread waits for: a context that says, when it is entered, whether the turn has come.

    Else another has taken the call along, and run it, unless it has no outputs.
    """

    __slots__ = ("_turns", "_woken", "again", "call", "has_come", "is_over", "on_guard", "thread")

    def __init__(self, turns: Turns, call: Call | None) -> None:
        self._turns, self.call = turns, call
        self.thread = threading.get_ident()
        # Whether its thread came at once after its call before; whether it looks, each `QUANTUM`, if whoever is
        # expected to come again has done so; and whether another that had taken its call along is through.
        self.again = self.on_guard = self.has_come = self.is_over = False

    def __enter__(self) -> bool:
        return self._turns._enter(self)

    def __exit__(self, *exception: object) -> None:
        self._turns._exit(self)

    def prepare_to_sleep(self) -> None:
        """Be one that can be woken."""
        self._woken = threading.Lock()  # not made for those who need not wait
        self._woken.acquire()

    def sleep(self) -> bool:
        """Wait until woken, and return whether that was so."""
        return self._woken.acquire(timeout=QUANTUM if self.on_guard else LOST)

    def wake(self) -> None:
        """Let it see what is said of it. Who calls holds the lock of all turns, so that no other wakes it meanwhile."""
        if self._woken.locked():  # else it is about to see
            self._woken.release()


class Turns:
    """Lets one thread at a time into a block. It is for speed alone: two are let in where else all might stand still.

    Whoever leaves lets in the one that has waited longest. But to wake another thread at each turn costs more than a
    short call takes: a thread that comes again at once, call after call, may do so until the first has been that for
    `QUANTUM` (as WebKit's locks are fair in the end: https://webkit.org/blog/6161/locking-in-webkit/). It may also run
    the calls of those who wait along with its own, as one batch, where they are enough: each of them is woken.

    Who waits is woken as seldom as can be: at its turn, when its call was run, and as the first where somebody is
    expected to come again, who may not. To wake, it needs the interpreter lock, and gets it late from a thread that
    lets go of it only for moments; until then each of those moments costs that thread a system call or two, which made
    its calls up to twice as long.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[Turn] = deque()
        self._holder: int | None = None  # the thread whose turn it is
        self._again = False  # whether it had come at once after its turn before
        self._along: list[Turn] = []  # whose calls it runs along, and since when
        self._along_since = 0.0
        self._since = 0.0  # when the first in the queue became that
        self._own = threading.local()  # when the thread left

    def wait(self, call: Call | None = None) -> Turn:
        """Return a context to wait in for a turn, or until `call` was run along."""
        return Turn(self, call)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    def along(self, call: Call, count: Callable[[Iterable[int]], int]) -> list[Call]:
        """Return calls of others to be run along with one's own: those of its kind that have waited longest.

        They are woken when this turn ends, and those that have no outputs then wait for turns of their own.

        Args:
            call: one's own; it must be one's turn.
            count: says, by the numbers of rows of one's own call and of those that wait, how many to run together.
        """
        with self._lock:
            if not self._queue or self._holder != threading.get_ident():  # the turn was taken for lost
                return []
            fitting = [turn for turn in self._queue if turn.call is not None and turn.call.kind == call.kind]
            calls = [turn.call for turn in fitting if turn.call is not None]
            more = count(one.rows for one in (call, *calls)) - 1
            taken, now = set(fitting[:more]), time.monotonic()
            left, along = deque(turn for turn in self._queue if turn not in taken), [*self._along, *taken]
            since = self._since if left and left[0] is self._queue[0] else now
            # Without a call in between, after which Ctrl-C could come.
            self._queue, self._along, self._since, self._along_since = left, along, since, now
        return calls[:more]

    def _enter(self, turn: Turn) -> bool:
        now = time.monotonic()
        turn.again = now - getattr(self._own, "left", 0.0) < AT_ONCE
        with self._lock:
            # The holder itself comes again from within the block, or was interrupted before it could leave.
            if self._holder == turn.thread or (self._holder is None and not (self._queue and self._due(now))):
                self._holder, self._again, turn.has_come = turn.thread, turn.again, True
                return True
        self._wait(turn)
        return turn.has_come

    def _exit(self, turn: Turn) -> None:
        now = time.monotonic()
        if turn.has_come:
            with self._lock:
                self._leave(turn.thread, now)
        self._own.left = now

    def _wait(self, turn: Turn) -> None:
        turn.prepare_to_sleep()
        try:
            with self._lock:
                self._queue.append(turn)
                if len(self._queue) == 1:
                    self._since = time.monotonic()
                if self._holder is None:
                    self._next(time.monotonic())  # who left before that was due did not come again
            while not (turn.has_come or turn.is_over):
                if not turn.sleep():
                    with self._lock:
                        self._look_after(turn, time.monotonic())
        except BaseException:  # Ctrl-C
            with self._lock:
                if turn.has_come:
                    self._leave(turn.thread, time.monotonic())
                elif turn in self._queue:
                    self._queue.remove(turn)
                    self._since = time.monotonic()
                    if self._queue and self._holder is None:  # who was on guard may have been this one
                        self._next(self._since)
            raise

    # Those below need the lock.

    def _look_after(self, turn: Turn, now: float) -> None:
        """Go on where whoever has the turn does not."""
        since = self._along_since if turn in self._along else self._since
        if self._holder is not None and now - since < 0.9 * LOST:  # who looks has slept for `LOST`, or all but
            return
        self._end_along()
        if self._queue:
            self._next(now)
        else:
            self._holder = None

    def _leave(self, thread: int, now: float) -> None:
        """End a thread's turn, and begin the next where it is due."""
        if self._holder != thread:  # it was taken for lost
            return
        self._end_along()
        if self._queue and (not self._again or self._due(now)):
            self._next(now)
            return
        self._holder = None
        if self._queue and not self._queue[0].on_guard:
            self._queue[0].on_guard = True
            self._queue[0].wake()

    def _due(self, now: float) -> bool:
        return now - self._since >= QUANTUM

    def _next(self, now: float) -> None:
        """Give the turn to the first."""
        turn = self._queue[0]
        del self._queue[0]
        turn.has_come, self._holder, self._again = True, turn.thread, turn.again
        self._since = now
        turn.wake()

    def _end_along(self) -> None:
        while self._along:
            turn = self._along[-1]
            del self._along[-1]
            turn.is_over = True
            turn.wake()
