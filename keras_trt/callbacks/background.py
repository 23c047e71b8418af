"""Jobs that are done one after another beside the thread that asks for them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: How long a job may keep Python's interpreter lock from other threads, in seconds. By default it is 5 ms, which a
#: training would wait at each of its calls into TensorFlow: beside a thread that is busy with Python, `fit` with steps
#: of 1.3 ms took 17 times as long, and with this 4 times (two cores).
SWITCH_INTERVAL = 2e-4

_lock = threading.Lock()
_yielding = 0  # jobs that are under way, of all `Background`s
_usual = 0.0  # the interval without them


@contextmanager
def _yields() -> Iterator[None]:
    """Let other threads have the interpreter lock as soon as they want it."""
    global _yielding, _usual
    with _lock:
        if not _yielding:
            _usual = sys.getswitchinterval()
            sys.setswitchinterval(min(_usual, SWITCH_INTERVAL))
        _yielding += 1
    try:
        yield
    finally:
        with _lock:
            _yielding -= 1
            if not _yielding:
                sys.setswitchinterval(_usual)


class Background:
    """Does jobs in a thread of its own, in the order in which they came.

    A job with the key of one that still waits takes its place. Where those that wait hold more memory than `limit`, to
    ask for another waits too. The thread ends when there is nothing to do, and the process ends after it: what was
    begun is finished.

    Args:
        limit: how many bytes the jobs that wait may hold. One may always wait.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: dict[str, tuple[Callable[[], None], int]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __reduce__(self) -> tuple[type[Background], tuple[int]]:
        return type(self), (self._limit,)  # a copy, as tuners make them of callbacks, has nothing to do

    def submit(self, key: str, job: Callable[[], None], size: int = 0) -> None:
        """Have a job done, which holds `size` bytes. It must handle its own exceptions."""
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs or key in self._jobs or self._held() + size <= self._limit)
            self._jobs[key] = job, size
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="keras_trt engine checkpoints")
                self._thread.start()

    def wait(self) -> None:
        """Wait until all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._thread is None)

    def _held(self) -> int:
        return sum(size for _, size in self._jobs.values())

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._jobs:
                    self._thread = None
                    self._changed.notify_all()
                    return
                job: Any = self._jobs.pop(next(iter(self._jobs)))[0]
                self._changed.notify_all()
            try:
                with _yields():
                    job()
            except BaseException:  # which a job does not handle: nobody is to wait for ever
                with self._changed:
                    self._thread = None
                    self._jobs.clear()
                    self._changed.notify_all()
                raise
