"""The slots of `GpuRunner`, over host memory: their logic alone, and nothing about CUDA (see `host_cuda`)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_trt.backends.base import DeviceEngine
from keras_trt.errors import CudaError, EngineLoadError, InputError
from keras_trt.runtime import MAX_SLOTS
from keras_trt.runtime.gpu import GpuRunner
from keras_trt.runtime.plan import Batch
from keras_trt.runtime.results import Results

from .helpers import in_threads
from .host_cuda import HostCuda, Status, installed
from .host_engine import HostEngineOnDevice, expected

Array = np.ndarray[Any, Any]
OUT_OF_MEMORY = Status.cudaErrorMemoryAllocation


def feeds(rows: int, width: int = 5, seed: int = 0) -> dict[str, Array]:
    generator = np.random.default_rng([rows, width, seed])
    return {
        "x": generator.standard_normal((rows, width)).astype("float32"),
        "k": generator.integers(-9, 9, rows).astype("int32"),
    }


def infer(runner: GpuRunner, some: dict[str, Array]) -> list[Array]:
    """Run one batch."""
    rows = len(some["x"])
    results = Results(rows, [runner._engine.dtype(name) for name in runner.output_names])
    runner.run(some, [Batch(0, rows, rows)], range(len(runner.output_names)), results)
    return results.arrays


def assert_right(runner: GpuRunner, some: dict[str, Array]) -> None:
    for got, wanted in zip(infer(runner, some), expected(some), strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


@contextlib.contextmanager
def running(engine: HostEngineOnDevice) -> Iterator[GpuRunner]:
    runner = GpuRunner(engine)
    try:
        yield runner
    finally:
        runner.close()
        assert engine.closed


@pytest.fixture
def engine(host_cuda: HostCuda) -> HostEngineOnDevice:
    return HostEngineOnDevice(host_cuda)


@pytest.fixture
def one_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runners that are made after this have one slot."""
    monkeypatch.setattr("keras_trt.runtime.pool.MAX_SLOTS", 1)


@pytest.fixture
def runner(engine: HostEngineOnDevice) -> Iterator[GpuRunner]:
    with running(engine) as runner:
        yield runner


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
        for rows in range(1, MAX_SLOTS + 1):
            assert_right(runner, feeds(rows, seed=round_number))
    assert [context.shapes_set for context in engine.contexts] == [1] * MAX_SLOTS


def test_more_shapes_than_slots(runner: GpuRunner, engine: HostEngineOnDevice) -> None:
    for round_number in range(3):
        for rows in range(1, MAX_SLOTS + 4):
            for _ in range(3):
                assert_right(runner, feeds(rows, seed=round_number))
    assert len(engine.contexts) == MAX_SLOTS


def test_the_slot_that_was_idle_longest_changes_its_shapes(runner: GpuRunner, engine: HostEngineOnDevice) -> None:
    for rows in range(1, MAX_SLOTS + 1):
        assert_right(runner, feeds(rows))
    assert_right(runner, feeds(1))  # now 2 is the one
    assert_right(runner, feeds(100))
    assert [context.shapes["x"][0] for context in engine.contexts] == [1, 100, *range(3, MAX_SLOTS + 1)]


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
    for _ in range(MAX_SLOTS + 1):
        with pytest.raises(InputError):
            infer(runner, feeds(3, width=65))
    assert_right(runner, feeds(3))
    assert len(engine.open_contexts()) <= MAX_SLOTS


def test_the_engines_device_is_current_and_put_back(host_cuda: HostCuda) -> None:
    with running(HostEngineOnDevice(host_cuda, device=1)) as runner:
        for rows in (2, 2, 2, 3):
            assert_right(runner, feeds(rows))
        assert {memory.device for memory in host_cuda.live("device")} == {1}
        with pytest.raises(InputError):
            infer(runner, feeds(3, width=65))
        assert host_cuda.cudaGetDevice()[1] == 0
    assert host_cuda.cudaGetDevice()[1] == 0


# Errors: each leaves a pool that works and loses nothing.


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
    failed = 0
    for seed in range(6):
        try:
            assert_right(runner, feeds(3, seed=seed))
        except CudaError:
            failed += 1
    assert failed <= 1
    host_cuda.injected.clear()
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
    for rows in range(1, MAX_SLOTS + 3):
        engine.faults[method] = (0, EngineLoadError("no memory"))
        try:
            assert_right(runner, feeds(rows))
        except EngineLoadError:
            assert_right(runner, feeds(rows))
    engine.faults.clear()
    for rows in range(1, MAX_SLOTS + 1):
        assert_right(runner, feeds(rows))
    assert 1 <= len(engine.open_contexts()) <= MAX_SLOTS


def test_a_stream_that_cannot_be_had(runner: GpuRunner, host_cuda: HostCuda) -> None:
    for _ in range(MAX_SLOTS + 1):
        host_cuda.fail("cudaStreamCreateWithFlags", OUT_OF_MEMORY)
        with pytest.raises(CudaError):
            infer(runner, feeds(3))
    for rows in range(1, MAX_SLOTS + 2):
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
    for _ in range(MAX_SLOTS + 1):
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
@given(steps=st.lists(st.one_of(CALLS, FAULTS), max_size=25), slots=st.integers(1, MAX_SLOTS))
def test_any_order_of_shapes_and_errors(steps: list[tuple[Any, ...]], slots: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch, installed() as host_cuda:
        monkeypatch.setattr("keras_trt.runtime.pool.MAX_SLOTS", slots)
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
    assert len(engine.contexts) <= MAX_SLOTS
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
    assert 1 <= len(engine.contexts) <= MAX_SLOTS
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


@pytest.mark.parametrize("callers", [1, MAX_SLOTS, MAX_SLOTS + 1, 3 * MAX_SLOTS])
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
    busy = min(callers, MAX_SLOTS)
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
