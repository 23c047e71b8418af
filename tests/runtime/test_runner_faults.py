"""Errors in the slots of `GpuRunner` leave a pool that works and loses nothing (see `host_cuda`)."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_trt.errors import CudaError, EngineLoadError
from keras_trt.runtime import SLOTS
from keras_trt.runtime.gpu import GpuRunner

from .host_cuda import HostCuda, installed
from .host_engine import HostEngineOnDevice
from .host_parts import Status
from .runners import assert_right, feeds, infer, running

OUT_OF_MEMORY = Status.cudaErrorMemoryAllocation


def failures(runner: GpuRunner, rows: int) -> int:
    """Return how many of six calls CUDA fails; the others must be right."""
    failed = 0
    for seed in range(6):
        try:
            assert_right(runner, feeds(rows, seed=seed))
        except CudaError:
            failed += 1
    return failed


@pytest.mark.parametrize("runs_before", [0, 1, 2])
@pytest.mark.parametrize(
    "function", ["cudaMemcpyAsync", "cudaGraphLaunch", "cudaStreamSynchronize", "cudaMalloc", "cudaHostAlloc"]
)
@pytest.mark.parametrize("passed", range(4))
def test_a_cuda_call_fails(
    runner: GpuRunner, host_cuda: HostCuda, function: str, runs_before: int, passed: int
) -> None:
    for seed in range(runs_before):
        assert_right(runner, feeds(3, seed=seed))
    host_cuda.fail(function, *[Status.cudaSuccess] * passed, OUT_OF_MEMORY)
    assert failures(runner, rows=3) <= 1
    host_cuda.injected.clear()
    for rows in (3, 8, 3):
        assert_right(runner, feeds(rows))


@pytest.mark.parametrize("runs_before", [0, 1, 2])
@pytest.mark.parametrize("passed", range(7))
def test_a_piece_cannot_be_sent(
    runner: GpuRunner, host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, runs_before: int, passed: int
) -> None:
    """Others are copied and sent meanwhile: none may come into the rows of the next call."""
    monkeypatch.setattr("keras_trt.runtime.slots.ONE_THREADS", 16)
    monkeypatch.setattr("keras_trt.runtime.copying.PIECE", 1)
    for seed in range(runs_before):
        assert_right(runner, feeds(8, seed=seed))
    host_cuda.fail("cudaMemcpyAsync", *[Status.cudaSuccess] * passed, OUT_OF_MEMORY)
    assert failures(runner, rows=8) <= 1  # in a capture it costs no more than the graph
    assert not host_cuda.injected["cudaMemcpyAsync"]
    for rows in (3, 8, 3):
        assert_right(runner, feeds(rows))


@pytest.mark.parametrize("function", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_a_capture_that_fails_costs_no_answer(runner: GpuRunner, host_cuda: HostCuda, function: str) -> None:
    host_cuda.fail(function, Status.cudaErrorStreamCaptureUnsupported)
    for seed in range(5):
        assert_right(runner, feeds(3, seed=seed))
    assert host_cuda.calls[function] == 1


@pytest.mark.parametrize("passed", range(3))
def test_an_enqueue_that_fails(runner: GpuRunner, engine: Any, passed: int) -> None:
    engine.faults["enqueue"] = (passed, EngineLoadError("TensorRT could not start the inference."))
    failed = 0
    for seed in range(5):
        try:
            assert_right(runner, feeds(3, seed=seed))
        except EngineLoadError:
            failed += 1
    # The second one is in a capture, and runs without a graph then; from the third on nothing is enqueued.
    assert failed == (passed == 0)


@pytest.mark.usefixtures("one_slot")
@pytest.mark.parametrize("passed", range(8))
@pytest.mark.parametrize("larger", [3, 30])
def test_an_address_that_is_refused(runner: GpuRunner, engine: Any, passed: int, larger: int) -> None:
    engine.faults["set_address"] = (passed, EngineLoadError("TensorRT refused the address."))
    failed = 0
    for rows in (3, larger, larger, 3, 3):
        try:
            assert_right(runner, feeds(rows))
        except EngineLoadError:
            failed += 1
    assert failed == (passed < 4 or larger == 30)


@pytest.mark.parametrize("method", ["create_context", "set_shapes"])
def test_a_context_that_cannot_be_had(runner: GpuRunner, engine: Any, method: str) -> None:
    for rows in range(1, SLOTS + 3):
        engine.faults[method] = (0, EngineLoadError("no memory"))
        try:
            assert_right(runner, feeds(rows))
        except EngineLoadError:
            assert_right(runner, feeds(rows))
    engine.faults.clear()
    for rows in range(1, SLOTS + 1):
        assert_right(runner, feeds(rows))
    assert 1 <= len(engine.open_contexts()) <= SLOTS


def test_a_stream_that_cannot_be_had(runner: GpuRunner, host_cuda: HostCuda) -> None:
    for _ in range(SLOTS + 1):
        host_cuda.fail("cudaStreamCreateWithFlags", OUT_OF_MEMORY)
        with pytest.raises(CudaError):
            infer(runner, feeds(3))
    for rows in range(1, SLOTS + 2):
        assert_right(runner, feeds(rows))


def test_no_memory_for_another_slot_uses_one_that_is_there(runner: GpuRunner, engine: Any) -> None:
    """A GPU that is nearly full ran 8 rows: 3 rows must not fail for want of a second context."""
    assert_right(runner, feeds(8))
    engine.faults["create_context"] = (0, EngineLoadError("TensorRT made no execution context."))
    assert_right(runner, feeds(3))
    for rows in (8, 3, 5, 8):
        assert_right(runner, feeds(rows))


def test_memory_that_ran_out_comes_back(runner: GpuRunner, host_cuda: HostCuda) -> None:
    assert_right(runner, feeds(3))
    host_cuda.device_limit = 100
    for _ in range(SLOTS + 1):
        with pytest.raises(CudaError, match="cudaErrorMemoryAllocation"):
            infer(runner, feeds(50))
    host_cuda.device_limit = 1 << 30
    for rows in (50, 3, 50, 60, 3):
        assert_right(runner, feeds(rows))


FUNCTIONS = (
    "cudaMalloc",
    "cudaHostAlloc",
    "cudaMemcpyAsync",
    "cudaStreamSynchronize",
    "cudaStreamCreateWithFlags",
    "cudaStreamBeginCapture",
    "cudaStreamEndCapture",
    "cudaGraphInstantiate",
    "cudaGraphLaunch",
)
METHODS = ("create_context", "set_shapes", "set_address", "enqueue")
CALLS = st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(1, 3))
FAULTS = st.tuples(st.sampled_from(FUNCTIONS + METHODS), st.integers(0, 3))


@settings(deadline=None, max_examples=80)
@given(steps=st.lists(st.one_of(CALLS, FAULTS), max_size=25), slots=st.integers(1, SLOTS))
def test_any_order_of_shapes_and_errors(steps: list[tuple[Any, ...]], slots: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch, installed() as host_cuda:
        monkeypatch.setattr("keras_trt.runtime.pool.SLOTS", slots)
        engine = HostEngineOnDevice(host_cuda)
        with running(engine) as runner:
            for step in steps:
                if isinstance(step[0], int):
                    rows, width, times = step
                    for seed in range(times):
                        with contextlib.suppress(CudaError, EngineLoadError):
                            assert_right(runner, feeds(rows, width, seed))
                elif step[0] in METHODS:
                    engine.faults[step[0]] = (step[1], EngineLoadError("injected"))
                else:
                    host_cuda.fail(step[0], *[Status.cudaSuccess] * step[1], OUT_OF_MEMORY)
                assert len(engine.open_contexts()) <= slots
            engine.faults.clear()
            host_cuda.injected.clear()
            for rows in range(1, slots + 2):
                for seed in range(3):
                    assert_right(runner, feeds(rows, seed=seed))
