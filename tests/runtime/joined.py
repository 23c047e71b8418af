"""What the tests of calls that are run together share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from keras_trt.runtime import Session
from keras_trt.runtime.plan import WORTH_WAKING

from .helpers import assert_right, inputs, one_by_one
from .test_pool import until

COSTS = one_by_one({1: 1.0e-4, 8: 1.1e-4, 32: 1.2e-4})


@contextmanager
def busy(one: Session, calls: int = WORTH_WAKING) -> Iterator[None]:
    """Let there be so many calls of other threads."""
    one._life._users += calls
    try:
        yield
    finally:
        one._life._users -= calls


@contextmanager
def waiting(one: Session, calls: list[Callable[[], None]]) -> Iterator[list[BaseException]]:
    """Let calls come one after the other while the block has its turn; then all of them must end. Give their errors."""
    errors: list[BaseException] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(call,), daemon=True) for call in calls]
    with busy(one), one._turns.wait():
        for index, thread in enumerate(threads):
            thread.start()
            until(lambda index=index: one._turns.waiting == index + 1)  # type: ignore[misc]
        yield errors
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a thread hangs"


def right(one: Session, rows: int, **keywords: Any) -> Callable[[], None]:
    return lambda: assert_right(one, inputs(rows, **keywords))
