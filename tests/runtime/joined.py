"""What the tests of calls that are run together share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from keras_trt.runtime import Session
from keras_trt.runtime.plan import WORTH_WAKING, Batch

from .helpers import assert_right, inputs, one_by_one
from .test_pool import until

COSTS = one_by_one({1: 1.0e-3, 8: 1.1e-3, 32: 1.2e-3})


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
    with busy(one), one._turns.wait():
        threads, errors = come(one, calls)
        yield errors
    end(threads)


def come(one: Session, calls: list[Callable[[], None]]) -> tuple[list[threading.Thread], list[BaseException]]:
    """Let calls come one after the other, which must wait for their turn; return their threads, and what they raise."""
    errors: list[BaseException] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(call,), daemon=True) for call in calls]
    for index, thread in enumerate(threads):
        thread.start()
        until(lambda index=index: one._turns.waiting == index + 1)  # type: ignore[misc]
    return threads, errors


def end(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a thread hangs"


def noted(one: Session, monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """Return a list of all batches that are run from now on, in their order."""
    run, again, found = one._run_batches, one._again, list[Batch]()

    def noting_like_before(given: Any) -> Any:
        outputs = again(given)
        if outputs is not None:
            found.append(Batch(0, len(given[0]), len(given[0])))
        return outputs

    def noting(given: Any, batches: Any, *rest: Any, **keywords: Any) -> Any:
        found.extend(batches)
        return run(given, batches, *rest, **keywords)

    monkeypatch.setattr(one, "_run_batches", noting)
    monkeypatch.setattr(one, "_again", noting_like_before)
    return found


def right(one: Session, rows: int, **keywords: Any) -> Callable[[], None]:
    return lambda: assert_right(one, inputs(rows, **keywords))
