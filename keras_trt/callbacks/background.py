"""Jobs that are done one after another beside the thread that asks for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


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
                job()
            except BaseException:  # which a job does not handle: nobody is to wait for ever
                with self._changed:
                    self._thread = None
                    self._jobs.clear()
                    self._changed.notify_all()
                raise
