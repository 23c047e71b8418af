"""Jobs that are done one after another beside the thread that asks for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Background:
    """Does jobs in a thread of its own, in the order in which they came.

    A job with the key of one that still waits takes its place. At most `limit` wait: to ask for another waits too. The
    thread ends when there is nothing to do, and the process ends after it: what was begun is finished.

    Args:
        limit: how many jobs may wait.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: dict[str, Callable[[], None]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, key: str, job: Callable[[], None]) -> None:
        """Have a job done. It must handle its own exceptions."""
        with self._changed:
            self._changed.wait_for(lambda: key in self._jobs or len(self._jobs) < self._limit)
            self._jobs[key] = job
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="keras_trt engine checkpoints")
                self._thread.start()

    def wait(self) -> None:
        """Wait until all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._thread is None)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._jobs:
                    self._thread = None
                    self._changed.notify_all()
                    return
                job: Any = self._jobs.pop(next(iter(self._jobs)))
                self._changed.notify_all()
            try:
                job()
            except BaseException:  # which a job does not handle: nobody is to wait for ever
                with self._changed:
                    self._thread = None
                    self._jobs.clear()
                    self._changed.notify_all()
                raise
