"""Short calls of many threads, one after the other."""

from __future__ import annotations

import threading
import time
from collections import deque

#: How long the first who waits is kept waiting, in seconds: as long as Python, too, lets a thread run on that others
#: wait for (`sys.getswitchinterval`).
QUANTUM = 5e-3
#: Within how many seconds a thread has come again at once, and will again: about what waking another takes.
AT_ONCE = 2e-4
#: After how many seconds a turn is taken for lost: Ctrl-C may come just before a thread can end its turn.
LOST = 1.0


class _Waiting:
    """One who waits.

    Attributes:
        again: whether it came at once after its turn before.
        turn: whether its turn has come.
        on_guard: whether it looks, each `QUANTUM`, if whoever is expected to come again has done so.
    """

    __slots__ = ("_woken", "again", "on_guard", "thread", "turn")

    def __init__(self, thread: int, again: bool) -> None:
        self.thread, self.again = thread, again
        self.turn = self.on_guard = False
        self._woken = threading.Lock()
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
    `QUANTUM` (as WebKit's locks are fair in the end: https://webkit.org/blog/6161/locking-in-webkit/).

    Who waits is woken as seldom as can be: at its turn, and as the first where somebody is expected to come again, who
    may not. To wake, it needs the interpreter lock, and gets it late from a thread that lets go of it only for moments;
    until then each of those moments costs that thread a system call or two, which made its calls up to twice as long.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[_Waiting] = deque()
        self._holder: int | None = None  # the thread whose turn it is
        self._again = False  # whether it had come at once after its turn before
        self._since = 0.0  # when the first in the queue became that
        self._own = threading.local()  # when the thread left

    def __enter__(self) -> None:
        thread, now = threading.get_ident(), time.monotonic()
        again = now - getattr(self._own, "left", 0.0) < AT_ONCE
        with self._lock:
            # The holder itself comes again from within the block, or was interrupted before it could leave.
            if self._holder == thread or (self._holder is None and not (self._queue and self._due(now))):
                self._holder, self._again = thread, again
                return
        self._wait(_Waiting(thread, again))

    def __exit__(self, *exception: object) -> None:
        now = time.monotonic()
        with self._lock:
            self._leave(threading.get_ident(), now)
        self._own.left = now

    def _wait(self, waiting: _Waiting) -> None:
        try:
            with self._lock:
                self._queue.append(waiting)
                if len(self._queue) == 1:
                    self._since = time.monotonic()
                if self._holder is None:
                    self._next(time.monotonic())  # who left before that was due did not come again
            while not waiting.turn:
                if not waiting.sleep():
                    with self._lock:
                        now = time.monotonic()
                        if self._queue and (self._holder is None or now - self._since > LOST):
                            self._next(now)
        except BaseException:  # Ctrl-C
            with self._lock:
                if waiting.turn:
                    self._leave(waiting.thread, time.monotonic())
                elif waiting in self._queue:
                    self._queue.remove(waiting)
                    self._since = time.monotonic()
                    if self._queue and self._holder is None:  # who was on guard may have been this one
                        self._next(self._since)
            raise

    def _leave(self, thread: int, now: float) -> None:
        """End a thread's turn, and begin the next where it is due. Needs the lock, as do those below."""
        if self._holder == thread:  # else it was taken for lost
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
        waiting = self._queue[0]
        del self._queue[0]
        waiting.turn, self._holder, self._again = True, waiting.thread, waiting.again
        self._since = now
        waiting.wake()
