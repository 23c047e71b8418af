"""Outputs whose shape depends on the data, on a GPU: slots over host memory (see `host_cuda`), TensorRT's callbacks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from keras_trt import cuda
from keras_trt.backends.base import DeviceEngine
from keras_trt.backends.tensorrt.engine import TensorRTContext
from keras_trt.backends.tensorrt.flavor import flavor
from keras_trt.backends.tensorrt.outputs import output_allocator
from keras_trt.errors import CudaError, EngineLoadError, InputError
from keras_trt.runtime import RowsDependError, Session
from keras_trt.runtime.gpu import GpuRunner
from keras_trt.specs import OptimizationProfile, ShapeRange, Signature, TensorSpec

from .host_arrays import GpuArray
from .host_cuda import HostCuda
from .host_engine import HostContext, HostEngineOnDevice
from .host_parts import Status

Array = np.ndarray[Any, Any]
BOUND = 16  # what the double asks memory for beyond what it needs, as TensorRT asks for a bound


class PickingEngine(HostEngineOnDevice):
    """Gives `y = 2 x + 1`, and in `sums` those of `x.sum(1) + k` that are above 0: it is not known how many.

    Attributes:
        asked: the sizes that memory was asked for.
    """

    def __init__(self, host: HostCuda) -> None:
        super().__init__(host)
        self.asked: list[int] = []

    def create_context(self, stream: int) -> HostContext:  # noqa: ARG002
        self.strike("create_context")
        context = PickingContext(self)
        self.contexts.append(context)
        return context


class PickingContext(HostContext):
    engine: PickingEngine
    allocate: Callable[[int], int]

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...] | None]:
        outputs = super().set_shapes(shapes)
        del self.shapes["sums"]
        return {**outputs, "sums": None}

    def set_allocator(self, name: str, allocate: Callable[[int], int]) -> None:
        assert name == "sums"
        self.allocate = allocate

    def enqueue(self, stream: int) -> dict[str, tuple[int, ...]]:
        host = self.engine.cuda
        assert not host.is_capturing(stream)
        self.engine.strike("enqueue")
        # The size is known once the inputs have arrived: TensorRT waits for its stream too.
        assert host.cudaStreamSynchronize(host.streams[stream]) == (Status.cudaSuccess,)
        x, k = (self._array(name, self.shapes[name], self.addresses[name]) for name in ("x", "k"))
        sums = picked({"x": x, "k": k})[0]
        self.engine.asked.append(sums.nbytes + BOUND)
        address = self.allocate(sums.nbytes + BOUND)
        assert address

        def give() -> None:
            self._array("sums", sums.shape, address)[...] = sums
            self._array("y", self.shapes["y"], self.addresses["y"])[...] = 2 * x + 1

        host.put(stream, give)
        return {"sums": sums.shape}

    def _array(self, name: str, shape: tuple[int, ...], address: int) -> Array:
        dtype = self.engine.dtype(name)
        size = int(np.prod(shape)) * dtype.itemsize
        return self.engine.cuda.view(address, size, "device").view(dtype).reshape(shape)


def picked(feeds: Mapping[str, Array]) -> list[Array]:
    sums = feeds["x"].sum(axis=1, dtype="float32") + feeds["k"].astype("float32")
    return [sums[sums > 0], 2 * feeds["x"] + 1]


def feeds(rows: int, seed: int = 0, *, negative: bool = False) -> list[Array]:
    generator = np.random.default_rng([rows, seed])
    k = np.full(rows, -99) if negative else generator.integers(-3, 4, rows)
    return [generator.standard_normal((rows, 5)).astype("float32"), k.astype("int32")]


@pytest.fixture
def engine(host_cuda: HostCuda) -> PickingEngine:
    return PickingEngine(host_cuda)


@pytest.fixture
def session(engine: PickingEngine) -> Iterator[Session]:
    session = session_of(engine)
    yield session
    session.close()


def session_of(engine: PickingEngine, *, independent: bool = False) -> Session:
    inputs = (TensorSpec("x", (None, 5), "float32"), TensorSpec("k", (None,), "int32"))
    outputs = (TensorSpec("sums", (None,), "float32"), TensorSpec("y", (None, 5), "float32"))
    ranges = {"x": ShapeRange((1, 5), (8, 5), (64, 5)), "k": ShapeRange((1,), (8,), (64,))}
    signature = Signature(inputs, outputs, {"list": [0, 1]}, {"list": [0, 1]})
    return Session([engine], signature, OptimizationProfile(ranges), rows_independent=independent)


def assert_right(session: Session, some: list[Array]) -> None:
    for got, wanted in zip(session.run(some), picked({"x": some[0], "k": some[1]}), strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def test_the_double_is_an_engine(engine: PickingEngine) -> None:
    assert isinstance(engine, DeviceEngine)


def test_any_number_of_answers(session: Session, host_cuda: HostCuda) -> None:
    session.reserve()
    counts = set()
    for number in range(40):
        some = feeds(1 + number % 7, number)
        counts.add(len(picked({"x": some[0], "k": some[1]})[0]))
        assert_right(session, some)
    assert counts >= {0, 1, 2, 3}
    assert_right(session, feeds(9, negative=True))
    assert host_cuda.calls["cudaGraphLaunch"] == host_cuda.calls["cudaStreamBeginCapture"] == 0


def test_memory_grows_and_is_kept(session: Session, engine: PickingEngine, host_cuda: HostCuda) -> None:
    def held() -> tuple[int, int]:
        (use,) = session.usage()
        return use.buffer_bytes, use.pinned_bytes

    some = feeds(8, negative=True)
    assert_right(session, some)
    (on_gpu, pinned), made = held(), host_cuda.calls["cudaMalloc"]
    some[1][:] = 99
    assert_right(session, some)
    assert engine.asked == [BOUND, 8 * 4 + BOUND]
    assert held() == (on_gpu + 8 * 4, pinned + 8 * 4 - 1)  # no memory is smaller than one byte
    assert host_cuda.calls["cudaMalloc"] == made + 1
    for count in (3, 8, 0, 8):
        some[1][:] = [99] * count + [-99] * (8 - count)
        assert_right(session, some)
    assert host_cuda.calls["cudaMalloc"] == made + 1
    assert sum(memory.size for memory in host_cuda.live("device")) == held()[0]


def test_results_are_the_callers_own(session: Session) -> None:
    some = feeds(8)
    first = session.run(some)
    before = [array.copy() for array in first]
    session.run(feeds(8, 1))
    for kept, wanted in zip(first, before, strict=True):
        np.testing.assert_array_equal(kept, wanted)


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaHostAlloc"])
def test_no_memory_for_the_answers(session: Session, host_cuda: HostCuda, function: str) -> None:
    some = feeds(8, negative=True)
    assert_right(session, some)
    some[1][:] = 99
    for _ in range(2):
        host_cuda.fail(function, Status.cudaErrorMemoryAllocation)
        with pytest.raises(CudaError, match="MemoryAllocation") as caught:
            session.run(some)
        assert caught.value.out_of_memory
    assert_right(session, some)
    some[1][:] = -99
    assert_right(session, some)


def test_an_allocation_that_failed_leaves_nothing(host_cuda: HostCuda) -> None:
    memory = cuda.DeviceMemory(8)
    host_cuda.fail("cudaMalloc", Status.cudaErrorMemoryAllocation)
    with pytest.raises(CudaError):
        memory.grow(9)
    assert (memory.address, memory.size_bytes) == (0, 0)
    assert memory.grow(0)
    memory.close()


def test_rows_that_were_taken_to_be_independent(engine: PickingEngine) -> None:
    session = session_of(engine, independent=True)
    some = feeds(50)
    some[1][:] = 99
    assert_right(session, some)
    some[1][20] = -99
    with pytest.raises(RowsDependError):
        session.run(some)
    assert not session.rows_independent
    assert_right(session, some)
    session.close()


def test_measuring_shows_it(engine: PickingEngine) -> None:
    """No sum of zeros is above 0."""
    session = session_of(engine, independent=True)
    session.measure()
    assert (session.rows_independent, session.measured.costs) == (False, {})
    assert_right(session, feeds(50))
    session.close()


def test_out_on_the_gpu(session: Session, host_cuda: HostCuda) -> None:
    some = feeds(6)
    wanted = picked({"x": some[0], "k": some[1]})
    assert 0 < len(wanted[0]) < 6
    for rows in (len(wanted[0]), 6, 1):
        outs = [GpuArray(host_cuda, np.zeros(rows, "float32")), GpuArray(host_cuda, np.zeros((6, 5), "float32"))]
        given = [cuda.DeviceArray(out) for out in outs]
        with pytest.raises(InputError, match="`out`"):
            session.run(some, out=given)
        for out in outs:
            out.free()
    some[1][:] = 99
    outs = [GpuArray(host_cuda, np.zeros(6, "float32")), GpuArray(host_cuda, np.zeros((6, 5), "float32"))]
    session.run(some, out=[cuda.DeviceArray(out) for out in outs])
    for out, one in zip(outs, picked({"x": some[0], "k": some[1]}), strict=True):
        np.testing.assert_array_equal(out.content, one)
        out.free()


def test_eight_threads(engine: PickingEngine) -> None:
    session = session_of(engine)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for number in range(20):
                assert_right(session, feeds(1 + (seed + number) % 9, number, negative=number % 5 == 0))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    session.close()
    assert not failures


# TensorRT's own side, as far as it goes without a GPU: the callbacks of the real bindings.


class Asking:
    """What `TensorRTContext` needs of an execution context, which only a GPU has: it asks as TensorRT does."""

    def __init__(self, shape: tuple[int, ...] | None) -> None:
        self.shape = shape
        self.allocators: dict[str, Any] = {}
        self.given: list[int] = []

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self.allocators[name] = allocator
        return name != "refused"

    def execute_async_v3(self, stream: int) -> bool:
        for name, allocator in self.allocators.items():
            self.given = [
                allocator.reallocate_output(name, 0, 64, 256),
                allocator.reallocate_output_async(name, 0, 80, 256, stream),
            ]
            if 0 in self.given:
                return False
            if self.shape is not None:
                allocator.notify_shape(name, self.shape)
        return True


def test_what_tensorrt_asks_for() -> None:
    asking, sizes = Asking((3, 2)), []

    def allocate(size: int) -> int:
        sizes.append(size)
        return 4096

    context = TensorRTContext(flavor("tensorrt_rtx"), asking, ("places",))
    context.set_allocator("places", allocate)
    assert isinstance(asking.allocators["places"], flavor("tensorrt_rtx").trt.IOutputAllocator)
    assert context.enqueue(1) == {"places": (3, 2)}
    assert (sizes, asking.given) == ([64, 80], [4096, 4096])
    asking.shape = (0, 2)
    assert context.enqueue(1) == {"places": (0, 2)}
    asking.shape = None  # the one before does not count
    with pytest.raises(EngineLoadError, match=r"does not tell the shapes of \['places'\]"):
        context.enqueue(1)
    with pytest.raises(EngineLoadError, match="refused an allocator for 'refused'"):
        context.set_allocator("refused", allocate)


@pytest.mark.parametrize("error", [CudaError("no memory", name="cudaErrorMemoryAllocation"), KeyboardInterrupt()])
def test_what_an_allocator_raises_is_raised(error: BaseException) -> None:
    def allocate(_: int) -> int:
        raise error

    context = TensorRTContext(flavor("tensorrt_rtx"), Asking((3,)), ("places",))
    context.set_allocator("places", allocate)
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            context.enqueue(1)
        assert caught.value is error
    context.set_allocator("places", lambda _: 4096)
    assert context.enqueue(1) == {"places": (3,)}


def test_an_allocator_is_one_of_tensorrts() -> None:
    allocator = output_allocator(flavor("tensorrt_rtx").trt, lambda size: 4096 + size)
    assert (allocator.shape, allocator.failure) == (None, None)
    assert allocator.reallocate_output_async("places", 0, 1, 256, 7) == 4097
    allocator.notify_shape("places", (1, 2))
    assert allocator.shape == (1, 2)


def test_a_runner_of_its_own_frees_all(engine: PickingEngine, host_cuda: HostCuda) -> None:
    runner = GpuRunner(engine)
    runner.reserve({"x": (64, 5), "k": (64,)})
    runner.close()
    assert engine.closed
    host_cuda.check()
