"""Until when an engine stays open, which many threads use and any of them may close."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Lifetime:
    """Knows who uses something, and frees it once nobody does and it is to be closed.

    Args:
        free: frees it; called once it is closed and nobody uses it.
    """

    def __init__(self, free: Callable[[], None]) -> None:
        self._free = free
        self._users = self._blocks = 0
        self._closed = self._cut_short = self._retired = False
        self._lock = threading.RLock()  # entered itself: its condition's `with` may keep it after Ctrl-C
        self._changed = threading.Condition(self._lock)
        self._own = threading.local()  # how often the thread uses it, and how many of these are calls

    @property
    def calls(self) -> int:
        """How many use it now, without the blocks around them."""
        return self._users - self._blocks

    @property
    def is_nested(self) -> bool:
        """Whether this thread's call is within another of its own, as of a handler of a signal."""
        return getattr(self._own, "calls", 0) > 1

    def use(self, *, block: bool = True) -> Use:
        """Return a context in which it stays open: for all that runs in it, in any thread.

        Args:
            block: `False` for what may be part of such a block.

        Raises:
            RuntimeError: on entering, if it is closed.
        """
        return Use(self, block)

    def retire(self) -> None:
        """Close once nobody uses it: now, or when the last one ends. Does not wait."""
        with self._lock:
            self._retired = True
            last = self._ends()
        if last:
            self._free()

    def close(self, *, cut_short: bool = False) -> None:
        """Close it once those who use it are through. From within a block it does not wait for that, but retires.

        Args:
            cut_short: whether a block may run nothing more, so that only what runs now is waited for, and not the end
                of the block.
        """
        if getattr(self._own, "uses", 0):
            self.retire()
            return
        with self._lock:
            self._closed = True
            self._cut_short |= cut_short
            self._changed.wait_for(lambda: self._users == (self._blocks if cut_short else 0))
        self._free()

    def _ends(self) -> bool:
        """Close if it is retired and idle, and return whether it is to be freed now. Needs the lock."""
        last = self._retired and self._users == 0 and not self._closed
        self._closed |= last
        return last


class Use:
    """One user of a `Lifetime`: a class, as a generator would double what it costs at each call."""

    __slots__ = ("_block", "_counted", "_life")

    def __init__(self, life: Lifetime, block: bool) -> None:
        self._life, self._block, self._counted = life, block, False

    def __enter__(self) -> None:
        life, block = self._life, self._block
        uses, calls = getattr(life._own, "uses", 0), getattr(life._own, "calls", 0)
        try:
            with life._lock:
                if life._closed and (block or not life._blocks or life._cut_short):
                    raise RuntimeError("This engine is closed.")
                # Without a call in between, after which Ctrl-C could come.
                life._users += 1
                life._blocks += block
                life._own.uses, life._own.calls = uses + 1, calls + (not block)
                self._counted = True
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exception: object) -> None:
        life = self._life
        with life._lock:
            if self._counted:
                life._own.uses -= 1
                life._own.calls -= not self._block
                life._users -= 1
                life._blocks -= self._block
                self._counted = False
            last = life._retired and life._ends()
            if life._closed:
                life._changed.notify_all()
        if last:
            life._free()
