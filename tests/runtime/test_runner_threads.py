"""Many threads on one `GpuRunner`, and its end (over host memory: see `host_cuda`)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from keras_trt.errors import CudaError
from keras_trt.runtime import SLOTS
from keras_trt.runtime.gpu import GpuRunner

from .helpers import in_threads
from .host_cuda import HostCuda
from .host_engine import HostEngineOnDevice
from .runners import assert_right, feeds, infer, running

# Threads.


@pytest.mark.usefixtures("one_slot")
def test_usage_while_a_slot_changes_its_shapes(host_cuda: HostCuda) -> None:
    class Overtaken(dict[str, Any]):
        """Another call begins while the buffers are looked at."""

        def values(self) -> Any:
            for one in super().values():
                if caller.ident is None:
                    caller.start()
                    caller.join(0.5)
                yield one

    with running(HostEngineOnDevice(host_cuda)) as runner:
        assert_right(runner, feeds(3))
        taken = sum(memory.size for memory in host_cuda.live("device"))
        caller = threading.Thread(target=assert_right, args=(runner, feeds(9)))
        (slot,) = runner._pool._idle
        slot._buffers = Overtaken(slot._buffers)
        (usage,) = runner.usage()
        caller.join(30)
        assert usage.buffer_bytes == usage.pinned_bytes == taken


@pytest.mark.parametrize("slow", [0.0, 0.001], ids=["fast", "slow"])
def test_eight_threads_of_different_shapes(runner: GpuRunner, engine: Any, host_cuda: HostCuda, slow: float) -> None:
    engine.slow = slow
    calls = 40 if slow else 150

    def work(thread: int) -> Callable[[], None]:
        def calls_of_one_thread() -> None:
            generator = np.random.default_rng(thread)
            for call in range(calls):
                assert_right(runner, feeds(int(generator.integers(1, 10)), int(generator.integers(1, 4)), call))

        return calls_of_one_thread

    in_threads([work(thread) for thread in range(8)])
    assert len(engine.contexts) <= SLOTS
    assert host_cuda.executables
    assert not host_cuda.faults


def test_eight_threads_of_one_shape(runner: GpuRunner, engine: Any, host_cuda: HostCuda) -> None:
    engine.slow = 0.001

    def work(thread: int) -> Callable[[], None]:
        def calls_of_one_thread() -> None:
            for call in range(30):
                assert_right(runner, feeds(6, seed=1000 * thread + call))

        return calls_of_one_thread

    in_threads([work(thread) for thread in range(8)])
    assert [context.shapes_set for context in engine.contexts] == [1] * len(engine.contexts)
    assert 1 <= len(engine.contexts) <= SLOTS
    assert len(host_cuda.executables) == len(engine.contexts)


def test_threads_while_memory_is_short(runner: GpuRunner, engine: Any, host_cuda: HostCuda) -> None:
    """Whoever waits for a slot is woken, also when another could not make one."""
    engine.slow = 0.001
    answered, refused = [], []

    def work(thread: int) -> Callable[[], None]:
        def calls_of_one_thread() -> None:
            for call in range(40):
                try:
                    assert_right(runner, feeds(1 + (thread + call) % 9, seed=call))
                    answered.append(1)
                except CudaError:
                    refused.append(1)

        return calls_of_one_thread

    host_cuda.device_limit = 600
    in_threads([work(thread) for thread in range(8)])
    assert answered
    assert len(answered) + len(refused) == 8 * 40
    host_cuda.device_limit = 1 << 30
    for rows in (1, 5, 9):
        assert_right(runner, feeds(rows))


# The end.


class Gate:
    """Holds inferences until it is opened."""

    def __init__(self, engine: HostEngineOnDevice) -> None:
        self.inside = threading.Semaphore(0)
        self.open = threading.Event()
        create = engine.create_context

        def create_context(stream: int) -> Any:
            context = create(stream)
            infer = context._infer

            def gated(*arguments: Any) -> None:
                self.inside.release()
                assert self.open.wait(30)
                infer(*arguments)

            context._infer = gated  # type: ignore[method-assign]
            return context

        engine.create_context = create_context  # type: ignore[method-assign]


@pytest.mark.parametrize("callers", [1, SLOTS, SLOTS + 1, 3 * SLOTS])
def test_close_waits_for_the_calls_under_way(host_cuda: HostCuda, callers: int) -> None:
    engine = HostEngineOnDevice(host_cuda)
    runner = GpuRunner(engine)
    gate = Gate(engine)
    answers: list[str] = []

    def call() -> None:
        try:
            assert_right(runner, feeds(3))
            answers.append("right")
        except RuntimeError as error:
            answers.append(str(error))

    threads = [threading.Thread(target=call, daemon=True) for _ in range(callers)]
    for thread in threads:
        thread.start()
    busy = min(callers, SLOTS)
    for _ in range(busy):
        assert gate.inside.acquire(timeout=30)
    closer = threading.Thread(target=runner.close, daemon=True)
    closer.start()
    closer.join(0.2)
    assert closer.is_alive()
    assert not engine.closed
    gate.open.set()
    for thread in (*threads, closer):
        thread.join(10)
    hanging = sum(thread.is_alive() for thread in threads)
    assert not hanging, f"{hanging} callers that waited for a slot hang after close"
    assert not closer.is_alive(), "close hangs"
    assert engine.closed
    assert answers.count("right") == busy
    assert set(answers) <= {"right", "This engine is closed."}
    with pytest.raises(RuntimeError, match="closed"):
        infer(runner, feeds(3))


def test_close_twice(host_cuda: HostCuda) -> None:
    runner = GpuRunner(HostEngineOnDevice(host_cuda))
    assert_right(runner, feeds(3))
    runner.close()
    runner.close()


def test_close_before_any_call(host_cuda: HostCuda) -> None:
    GpuRunner(HostEngineOnDevice(host_cuda)).close()
