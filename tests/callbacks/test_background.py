"""The thread that makes engines beside a training."""

from __future__ import annotations

import sys
import threading

import pytest

from keras_trt.callbacks.background import SWITCH_INTERVAL, Background


def test_nobody_waits_for_a_thread_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    background, threads, done, told = Background(limit=0), [], [], threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _: told.set())

    def end() -> None:
        threads.append(threading.current_thread())
        raise SystemExit

    background.submit("a", end)
    background.wait()
    background.submit("b", lambda: done.append(1))
    background.wait()
    assert done
    threads[0].join()  # so that its end is told in this test and not in the next
    assert told.is_set()


def test_a_job_yields_the_interpreter_lock_at_once() -> None:
    usual = sys.getswitchinterval()
    begun, may_end, seen = threading.Barrier(3), threading.Event(), list[float]()

    def job() -> None:
        begun.wait(20)
        seen.append(sys.getswitchinterval())
        may_end.wait(20)

    several = [Background(limit=0) for _ in range(2)]
    for background in several:
        background.submit("a", job)
    begun.wait(20)
    may_end.set()
    for background in several:
        background.wait()
    assert seen == pytest.approx([SWITCH_INTERVAL] * 2)
    assert sys.getswitchinterval() == usual > SWITCH_INTERVAL


def test_a_training_waits_only_where_what_waits_holds_too_much() -> None:
    background, may_end, done = Background(limit=10), threading.Event(), list[int]()
    background.submit("first", lambda: may_end.wait(20) and None)
    for i in range(4):
        background.submit(str(i), lambda i=i: done.append(i), size=3 if i < 3 else 1)  # type: ignore[misc]
    asking = threading.Thread(target=background.submit, args=("4", lambda: done.append(4), 1), daemon=True)
    asking.start()
    background.submit("1", lambda: done.append(11), size=3)  # in place of the one with its key
    asking.join(0.2)
    assert asking.is_alive()
    may_end.set()
    asking.join(20)
    background.wait()
    assert done == [0, 11, 2, 3, 4]
