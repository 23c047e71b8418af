"""One engine on several GPUs (over host memory: see `host_cuda`)."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_trt.errors import CudaError, EngineLoadError
from keras_trt.specs import Cost

from .helpers import assert_right, costs, in_threads, inputs, session
from .host_cuda import HostCuda, installed
from .host_engine import HostEngineOnDevice

Array = np.ndarray[Any, Any]


@pytest.fixture
def engines(host_cuda: HostCuda) -> list[HostEngineOnDevice]:
    return [HostEngineOnDevice(host_cuda, device) for device in range(2)]


@given(calls=st.lists(st.integers(1, 150), min_size=1, max_size=4), costs=costs)
@settings(max_examples=20, deadline=None)
def test_rows_from_several_gpus_come_back_in_order(calls: list[int], costs: dict[int, Cost]) -> None:
    with installed() as cuda:
        engines = [HostEngineOnDevice(cuda, device) for device in range(2)]
        one = session(*engines, costs=costs)
        for seed, rows in enumerate(calls):
            assert_right(one, inputs(rows, seed=seed))
        one.close()
        assert all(engine.closed for engine in engines)


def test_batches_are_spread_over_gpus(host_cuda: HostCuda, engines: list[HostEngineOnDevice]) -> None:
    for engine in engines:
        engine.slow = 0.001
    one = session(*engines)
    done: list[int] = []
    one.run(inputs(8 * 40), done.append)
    assert done == [8 * count for count in range(1, 41)]
    assert all(engine.contexts for engine in engines)
    assert {host_cuda.streams[stream].device for stream in host_cuda.streams} == {0, 1}
    one.close()


def test_single_batches_go_to_the_gpu_that_is_free(engines: list[HostEngineOnDevice]) -> None:
    for engine in engines:
        engine.slow = 0.002
    one = session(*engines)

    def work(seed: int) -> Any:
        def calls() -> None:
            for number in range(10):
                assert_right(one, inputs(8, seed=100 * seed + number))

        return calls

    in_threads([work(seed) for seed in range(6)])
    assert all(engine.contexts for engine in engines)
    one.close()


def test_a_call_does_not_wait_for_what_others_keep_the_replicas_busy_with(engines: list[HostEngineOnDevice]) -> None:
    one = session(*engines)
    busy = threading.Event()
    others = [one._runner._pool.submit(busy.wait) for _ in range(8)]  # type: ignore[union-attr]
    try:
        in_threads([lambda: assert_right(one, inputs(8 * 6))], 10)
        assert not any(other.done() for other in others)
    finally:
        busy.set()
    one.close()


def test_of_three_gpus_all_have_ended_when_one_fails(host_cuda: HostCuda) -> None:
    host_cuda.devices = 3
    engines = [HostEngineOnDevice(host_cuda, device) for device in range(3)]
    engines[2].slow = 0.1
    one = session(*engines)
    for other in engines[:2]:
        other.slow = 0.02  # so that the third has begun
    engines[1].faults["enqueue"] = (2, CudaError("CUDA failed.", name="cudaErrorIllegalAddress"))
    with pytest.raises(CudaError, match="CUDA failed"):
        one.run(inputs(8 * 60))
    before = host_cuda.calls["cudaStreamSynchronize"]
    assert not any(stream.pending for stream in host_cuda.live_streams())
    time.sleep(0.2)
    assert host_cuda.calls["cudaStreamSynchronize"] == before
    assert_right(one, inputs(100))
    one.close()


@pytest.mark.parametrize("place", [0, 1])
def test_an_error_on_one_gpu_ends_the_call(engines: list[HostEngineOnDevice], place: int) -> None:
    one = session(*engines)
    engines[place].faults["enqueue"] = (0, EngineLoadError("TensorRT did not start."))
    with pytest.raises(EngineLoadError, match="did not start"):  # noqa: PT012 (the other GPU may take all of a call)
        for _ in range(50):
            one.run(inputs(8 * 30))
    assert_right(one, inputs(100))
    one.close()


def test_memory_on_each_gpu_is_told(host_cuda: HostCuda, engines: list[HostEngineOnDevice]) -> None:
    one = session(*engines)
    assert [use.slots for use in one.usage()] == [0, 0]
    one.reserve()
    for number, use in enumerate(one.usage()):
        buffers = sum(memory.size for memory in host_cuda.live("device") if memory.device == number)
        assert (use.device, use.slots, use.engine_bytes, use.context_bytes) == (f"cuda:{number}", 1, 1000, 300)
        assert use.buffer_bytes == use.pinned_bytes == buffers > 0
    one.close()


def test_several_gpus_without_a_thread_for_each(engines: list[HostEngineOnDevice]) -> None:
    """After the main thread's end no pool takes work."""
    one = session(*engines)
    one._runner._pool.shutdown()  # type: ignore[union-attr]
    assert_right(one, inputs(100))
    one.close()
