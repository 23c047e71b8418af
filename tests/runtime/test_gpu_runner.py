"""The slots of `GpuRunner`, over host memory: their logic alone, and nothing about CUDA (see `host_cuda`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from keras_trt.backends.base import DeviceEngine
from keras_trt.errors import CudaError, EngineLoadError, InputError
from keras_trt.runtime import SLOTS
from keras_trt.runtime.gpu import GpuRunner

from .host_cuda import HostCuda
from .host_engine import HostEngineOnDevice, expected
from .runners import assert_right, feeds, infer, running


def test_the_double_is_an_engine(engine: HostEngineOnDevice) -> None:
    assert isinstance(engine, DeviceEngine)


# One thread: what is reused, and what becomes a graph.


def test_the_second_run_of_a_shape_is_a_graph(runner: GpuRunner, host_cuda: HostCuda) -> None:
    for number in range(5):
        assert_right(runner, feeds(3, seed=number))
        assert len(host_cuda.executables) == (number > 0)
        assert host_cuda.calls["cudaGraphLaunch"] == number
    assert sum(not graph.destroyed for graph in host_cuda.graphs) == 0  # only the executable one is kept


def test_results_are_the_callers_own(runner: GpuRunner) -> None:
    for _ in range(3):
        first = infer(runner, feeds(4))
        kept = [output.copy() for output in first]
        infer(runner, feeds(4, seed=1))
        for output, before in zip(first, kept, strict=True):
            np.testing.assert_array_equal(output, before)
            assert output.flags.owndata
            assert output.flags.writeable


def test_inputs_are_not_changed(runner: GpuRunner) -> None:
    some = feeds(4)
    before = {name: array.copy() for name, array in some.items()}
    for _ in range(3):
        infer(runner, some)
    for name, array in some.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_slot_is_found_by_its_shapes(runner: GpuRunner, engine: HostEngineOnDevice) -> None:
    for round_number in range(3):
        for rows in range(1, SLOTS + 1):
            assert_right(runner, feeds(rows, seed=round_number))
    assert [context.shapes_set for context in engine.contexts] == [1] * SLOTS


def test_more_shapes_than_slots(runner: GpuRunner, engine: HostEngineOnDevice) -> None:
    for round_number in range(3):
        for rows in range(1, SLOTS + 4):
            for _ in range(3):
                assert_right(runner, feeds(rows, seed=round_number))
    assert len(engine.contexts) == SLOTS


def test_the_slot_that_was_idle_longest_changes_its_shapes(runner: GpuRunner, engine: HostEngineOnDevice) -> None:
    for rows in range(1, SLOTS + 1):
        assert_right(runner, feeds(rows))
    assert_right(runner, feeds(1))  # now 2 is the one
    assert_right(runner, feeds(100))
    assert [context.shapes["x"][0] for context in engine.contexts] == [1, 100, *range(3, SLOTS + 1)]


@pytest.mark.usefixtures("one_slot")
def test_memory_grows_and_is_kept(host_cuda: HostCuda) -> None:
    engine = HostEngineOnDevice(host_cuda)
    with running(engine) as runner:
        for rows, taken in [(4, 4), (2, 4), (4, 4), (1, 4), (9, 8), (3, 8), (9, 8)]:
            for seed in range(3):
                assert_right(runner, feeds(rows, seed=seed))
            assert host_cuda.calls["cudaMalloc"] == host_cuda.calls["cudaHostAlloc"] == taken
            assert len(host_cuda.live("device")) == len(host_cuda.live("pinned")) == 4
            (context,) = engine.contexts
            assert set(context.addresses.values()) == {
                address for address, memory in host_cuda.memory.items() if memory.kind == "device" and not memory.freed
            }


@pytest.mark.usefixtures("one_slot")
def test_a_shape_that_returns_records_a_new_graph(host_cuda: HostCuda) -> None:
    with running(HostEngineOnDevice(host_cuda)) as runner:
        for rows in (3, 3, 5, 5, 3, 3):
            assert_right(runner, feeds(rows))
        assert len(host_cuda.executables) == 3
        assert sum(not graph.destroyed for graph in host_cuda.executables) == 1


@pytest.mark.usefixtures("one_slot")
def test_rows_of_a_larger_batch_before_do_not_leak(runner: GpuRunner) -> None:
    some = feeds(20)
    some["x"][...] = np.nan
    infer(runner, some)
    for rows in (7, 1, 20):
        for _ in range(3):
            assert_right(runner, feeds(rows))


def test_what_cannot_be_captured_runs_without_a_graph(runner: GpuRunner, engine: Any, host_cuda: HostCuda) -> None:
    engine.can_capture = False
    for seed in range(4):
        assert_right(runner, feeds(3, seed=seed))
    assert host_cuda.calls["cudaStreamBeginCapture"] == 1  # once is enough to know
    assert not host_cuda.executables


def test_integers_are_cast_where_they_fit(runner: GpuRunner) -> None:
    some = feeds(3)
    wide = {**some, "k": np.array([-(2**31), 0, 2**31 - 1], "int64")}
    np.testing.assert_array_equal(infer(runner, wide)[0], expected(wide)[0])


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_integers_that_do_not_fit(runner: GpuRunner, engine: Any, value: int) -> None:
    some = feeds(3)
    assert_right(runner, some)
    with pytest.raises(InputError, match="integers") as caught:
        infer(runner, {**some, "k": np.array([1, value, 2], "int64")})
    assert caught.value.input_name == "k"
    assert str(value) in str(caught.value.received)
    for seed in range(3):
        assert_right(runner, feeds(3, seed=seed))
    assert len(engine.contexts) == 1


def test_a_shape_outside_the_profile(runner: GpuRunner, engine: Any) -> None:
    for _ in range(SLOTS + 1):
        with pytest.raises(InputError):
            infer(runner, feeds(3, width=65))
    assert_right(runner, feeds(3))
    assert len(engine.open_contexts()) <= SLOTS


def test_the_engines_device_is_current_and_put_back(host_cuda: HostCuda) -> None:
    with running(HostEngineOnDevice(host_cuda, device=1)) as runner:
        for rows in (2, 2, 2, 3):
            assert_right(runner, feeds(rows))
        assert {memory.device for memory in host_cuda.live("device")} == {1}
        with pytest.raises(InputError):
            infer(runner, feeds(3, width=65))
        assert host_cuda.cudaGetDevice()[1] == 0
    assert host_cuda.cudaGetDevice()[1] == 0


# Memory that is taken beforehand.


def test_what_is_reserved_is_there(runner: GpuRunner, host_cuda: HostCuda) -> None:
    largest = feeds(9, 5)
    runner.reserve({name: array.shape for name, array in largest.items()})
    taken = host_cuda.calls["cudaMalloc"]
    assert taken == 4
    for _ in range(3):
        assert_right(runner, largest)
    assert host_cuda.calls["cudaMalloc"] == taken


def test_too_little_to_reserve(runner: GpuRunner, host_cuda: HostCuda, engine: Any) -> None:
    shapes = {name: array.shape for name, array in feeds(9, 5).items()}
    for limit in (0, 100, 300):
        host_cuda.device_limit = limit
        with pytest.raises(CudaError, match="cudaErrorMemoryAllocation"):
            runner.reserve(shapes)
    engine.faults["create_context"] = (0, EngineLoadError("TensorRT made no execution context."))
    host_cuda.device_limit = 1 << 30
    with pytest.raises(EngineLoadError, match="no execution context"):
        runner.reserve(shapes)
    runner.reserve(shapes)
    assert_right(runner, feeds(9, 5))
