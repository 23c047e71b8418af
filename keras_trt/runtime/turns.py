"""Short calls of many threads, one after the other."""

from __future__ import annotations

import threading
import time
from collections import deque

#: How long the first who waits is kept waiting, in seconds: as long as Python, too, lets a thread run on that others
#: wait for (`sys.getswitchinterval`).
QUANTUM = 5e-3


class _Waiting:
    __slots__ = ("first", "granted", "turn")

    def __init__(self) -> None:
        self.turn = False
        self.first, self.granted = threading.Lock(), threading.Lock()
        self.first.acquire()
        self.granted.acquire()


class Turns:
    """Lets one thread at a time into a block.

    Whoever leaves may come in again at once, until the one that has waited longest has been the first for `QUANTUM`
    (as WebKit's locks are fair in the end: https://webkit.org/blog/6161/locking-in-webkit/). To wake another thread at
    each turn costs more than a short call takes; to wake none would let some wait for ever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[_Waiting] = deque()
        self._taken = False
        self._since = 0.0  # when the first in the queue became that

    def __enter__(self) -> None:
        with self._lock:
            if not self._taken and not self._due():
                self._taken = True
                return
            waiting = _Waiting()
            self._queue.append(waiting)
            if len(self._queue) == 1:
                self._told_first()
        try:
            waiting.first.acquire()
            while not waiting.granted.acquire(timeout=QUANTUM):
                with self._lock:
                    if not self._taken and not waiting.turn:  # nobody else comes
                        self._taken = True
                        self._next()
        except BaseException:  # Ctrl-C
            with self._lock:
                if waiting.turn:
                    self._left()
                else:
                    was_first = self._queue[0] is waiting
                    self._queue.remove(waiting)
                    if was_first and self._queue:
                        self._told_first()
            raise

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._left()

    def _left(self) -> None:
        """End a turn, and begin the next where it is due. Needs the lock, as do those below."""
        if self._due():
            self._next()
        else:
            self._taken = False

    def _due(self) -> bool:
        return bool(self._queue) and time.monotonic() - self._since >= QUANTUM

    def _next(self) -> None:
        """Give the turn to the first."""
        waiting = self._queue.popleft()
        waiting.turn = True
        waiting.granted.release()
        if self._queue:
            self._told_first()

    def _told_first(self) -> None:
        self._since = time.monotonic()
        self._queue[0].first.release()
