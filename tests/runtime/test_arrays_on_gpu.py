"""Inputs and outputs that lie on the GPU already (over host memory: see `host_cuda`; cuda-core is stood for)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_trt.cuda import DeviceArray, arrays, current_device, is_on_gpu
from keras_trt.errors import InputError
from keras_trt.inputs import standardize, standardize_out
from keras_trt.specs import Cost, Signature, TensorSpec

from .helpers import OUTPUTS, in_threads, inputs, one_by_one, session
from .host_arrays import GpuArray
from .host_cuda import HostCuda, installed
from .host_engine import HostEngineOnDevice, expected
from .host_parts import Copy

Array = np.ndarray[Any, Any]


@pytest.fixture
def on_gpu(host_cuda: HostCuda) -> Iterator[Any]:
    made: list[GpuArray] = []

    def make(array: Array) -> GpuArray:
        made.append(GpuArray(host_cuda, array))
        return made[-1]

    yield make
    for one in made:
        one.free()


def test_what_lies_on_a_gpu(on_gpu: Any) -> None:
    assert is_on_gpu(on_gpu(np.zeros(3, "float32")))
    assert not is_on_gpu(np.zeros(3))
    assert not is_on_gpu([1, 2])


def test_inputs_are_read_where_they_lie(host_cuda: HostCuda, on_gpu: Any) -> None:
    one = session(HostEngineOnDevice(host_cuda))
    for seed in range(4):
        x, k = inputs(8, seed=seed)
        y, sums = one.run([DeviceArray(on_gpu(x)), k])
        wanted = expected({"x": x, "k": k})
        np.testing.assert_array_equal(y, wanted[1])
        np.testing.assert_array_equal(sums, wanted[0])
    assert host_cuda.copies[Copy.cudaMemcpyHostToDevice] == 4  # of k alone
    assert host_cuda.copies[Copy.cudaMemcpyDefault] == 4
    assert host_cuda.executables
    one.close()


def test_rows_on_the_gpu_are_not_cut_for_copies_that_nobody_makes(host_cuda: HostCuda, on_gpu: Any) -> None:
    """Half of what a large batch takes alone is its copy; without it, four of a quarter take longer."""
    costs = {1: Cost(0.43, 0.35), 8: Cost(0.9, 0.6), 32: Cost(2.7, 1.2), 128: Cost(9.2, 3.9)}
    x, k = inputs(128)
    for there in (True, False):
        engine = HostEngineOnDevice(host_cuda)
        one = session(engine, largest=128, costs=costs)
        y, _ = one.run([DeviceArray(on_gpu(x)), DeviceArray(on_gpu(k)) if there else k])
        np.testing.assert_array_equal(y, expected({"x": x, "k": k})[1])
        assert {context.shapes["x"][0] for context in engine.contexts} == {128 if there else 32}
        one.close()


def test_outputs_stay_on_the_gpu(host_cuda: HostCuda, on_gpu: Any) -> None:
    one = session(HostEngineOnDevice(host_cuda))
    for seed in range(4):
        x, k = inputs(8, seed=seed)
        out = [on_gpu(np.full_like(x, np.nan)), on_gpu(np.full(8, np.nan, "float32"))]
        one.run([x, k], out=[DeviceArray(each) for each in out])
        wanted = expected({"x": x, "k": k})
        np.testing.assert_array_equal(out[0].content, wanted[1])
        np.testing.assert_array_equal(out[1].content, wanted[0])
    assert not host_cuda.copies[Copy.cudaMemcpyDeviceToHost]
    one.close()


@given(calls=st.lists(st.tuples(st.integers(1, 40), *[st.booleans()] * 4), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_any_mixture(calls: list[tuple[int, bool, bool, bool, bool]]) -> None:
    with installed() as cuda:
        made: list[GpuArray] = []

        def place(array: Array, on_gpu: bool) -> Any:
            if not on_gpu:
                return array
            made.append(GpuArray(cuda, array))
            return DeviceArray(made[-1])

        one = session(HostEngineOnDevice(cuda), costs=one_by_one({1: 1.0, 8: 1.5}))
        for seed, (rows, *where) in enumerate(calls):
            x, k = inputs(rows, seed=seed)
            empty = [np.full_like(x, np.nan), np.full(rows, np.nan, "float32")]
            out = [place(array, on_gpu) for array, on_gpu in zip(empty, where[2:], strict=True)]
            given_inputs = [place(array, on_gpu) for array, on_gpu in zip((x, k), where[:2], strict=True)]
            one.run(given_inputs, out=out)
            wanted = expected({"x": x, "k": k})
            np.testing.assert_array_equal(np.asarray(out[0]), wanted[1])
            np.testing.assert_array_equal(np.asarray(out[1]), wanted[0])
        one.close()
        for array in made:
            array.free()


def test_rows_and_copies_to_the_host(on_gpu: Any) -> None:
    content = np.arange(24, dtype="float32").reshape(6, 4)
    whole = DeviceArray(on_gpu(content))
    np.testing.assert_array_equal(np.asarray(whole[2:5]), content[2:5])
    np.testing.assert_array_equal(np.asarray(whole[4:9], "int64"), content[4:])
    assert (len(whole[2:5]), whole[2:5].shape, whole.ndim, whole.nbytes) == (3, (3, 4), 2, 96)
    whole[1:3].assign(np.full((2, 4), 7, "float64"))
    np.testing.assert_array_equal(whole.owner.content[1:3], np.full((2, 4), 7))
    with pytest.raises(ValueError, match="copy"):
        np.array(whole, copy=False)


def test_only_dense_arrays_are_taken(on_gpu: Any) -> None:
    owner = on_gpu(np.zeros((4, 6), "float32"))
    owner.strides = (1, 4)
    with pytest.raises(InputError, match="C-contiguous"):
        DeviceArray(owner)
    owner.shape, owner.strides = (1, 24), (99, 1)  # one row: where the next would be does not matter
    assert DeviceArray(owner).shape == (1, 24)


def test_types_are_not_cast_on_a_gpu(host_cuda: HostCuda, on_gpu: Any) -> None:
    signature = Signature((TensorSpec("x", (None, 5), "float32"),), OUTPUTS, 0, {"list": [0, 1]})
    with pytest.raises(InputError, match="nothing is cast"):
        standardize(on_gpu(np.zeros((3, 5), "float64")), signature)
    one = session(HostEngineOnDevice(host_cuda))
    x, k = inputs(8)
    with pytest.raises(InputError, match="only what lies on the host is cast"):
        one.run([x, DeviceArray(on_gpu(k.astype("int64")))])
    y, _ = one.run([x, k])
    np.testing.assert_array_equal(y, expected({"x": x, "k": k})[1])
    one.close()


@pytest.mark.parametrize(
    ("shapes", "dtype"),
    [([(3, 5)], "float32"), ([(3, 5), (4,)], "float32"), ([(3, 5), (3,)], "float64"), ([(3, 5, 1), (3,)], "float32")],
)
@pytest.mark.parametrize("there", [False, True])
def test_out_must_fit(on_gpu: Any, shapes: list[tuple[int, ...]], dtype: str, there: bool) -> None:
    out = [np.zeros(shape, dtype) for shape in shapes]
    with pytest.raises(InputError, match="out"):
        standardize_out([on_gpu(array) for array in out] if there else out, OUTPUTS, 3)


def test_out_must_be_writable(on_gpu: Any) -> None:
    out = [np.zeros((3, 5), "float32"), np.zeros(3, "float32")]
    assert [one.shape for one in standardize_out(out, OUTPUTS, 3)] == [(3, 5), (3,)]
    out[1].flags.writeable = False
    with pytest.raises(InputError, match="read-only"):
        standardize_out(out, OUTPUTS, 3)
    owner = on_gpu(np.zeros(3, "float32"))
    owner.readonly = True
    with pytest.raises(InputError, match="read-only"):
        standardize_out([out[0], owner], OUTPUTS, 3)


# Several threads and GPUs: what a library calls its current stream is a thread's and a GPU's own.


def test_work_on_another_gpu_is_waited_for(host_cuda: HostCuda, on_gpu: Any) -> None:
    one = session(HostEngineOnDevice(host_cuda, device=1))
    x, k = inputs(8)
    y, _ = one.run([DeviceArray(on_gpu(x)), k])
    np.testing.assert_array_equal(y, expected({"x": x, "k": k})[1])
    with current_device(1):
        np.testing.assert_array_equal(np.asarray(DeviceArray(on_gpu(x))), x)
        whole = DeviceArray(on_gpu(x))
    whole.assign(2 * x)
    np.testing.assert_array_equal(whole.owner.content, 2 * x)
    one.close()


def test_a_thread_that_has_not_called_cuda(host_cuda: HostCuda) -> None:
    one = session(HostEngineOnDevice(host_cuda))
    x, k = inputs(8)
    made = GpuArray(host_cuda, x)

    def work() -> None:
        y, _ = one.run([DeviceArray(made), k])
        np.testing.assert_array_equal(y, expected({"x": x, "k": k})[1])

    for _ in range(2):  # the first call without a graph, and the one that records it
        work()
    in_threads([work])
    made.free()
    one.close()


def test_replicas_wait_for_the_callers_stream(host_cuda: HostCuda, on_gpu: Any) -> None:
    engines = [HostEngineOnDevice(host_cuda, device) for device in range(2)]
    begun, strike = threading.Event(), engines[0].strike

    def after_the_other(method: str) -> None:
        assert method != "enqueue" or begun.wait(30)
        strike(method)

    engines[0].strike = after_the_other  # type: ignore[method-assign]
    one = session(*engines)
    x, k = inputs(8 * 40)
    out = [on_gpu(np.full_like(x, np.nan)), on_gpu(np.full(len(x), np.nan, "float32"))]
    one.run([DeviceArray(on_gpu(x)), k], lambda _: begun.set(), [DeviceArray(each) for each in out])
    wanted = expected({"x": x, "k": k})
    np.testing.assert_array_equal(out[0].content, wanted[1])
    np.testing.assert_array_equal(out[1].content, wanted[0])
    one.close()


# JAX and TensorFlow, whose arrays never change (the real libraries, and the real cuda-core).


class SaidToBeOnGpu:
    """An array of the host that says it lies on a GPU, so that cuda-core reads it as one that does."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **arguments: Any) -> Any:
        return self._array.__dlpack__(**arguments)


def of_a_library(name: str, values: Any) -> Any:
    made = pytest.importorskip("jax.numpy").asarray(values) if name == "jax" else tf.constant(values)
    return type("Array", (SaidToBeOnGpu,), {"__module__": type(made).__module__})(made)


@pytest.mark.parametrize("name", ["jax", "tensorflow"])
def test_arrays_of_jax_and_tensorflow_are_read(name: str) -> None:
    owner = of_a_library(name, np.ones((4, 3), "float32"))
    assert is_on_gpu(owner)
    read = DeviceArray(owner)
    assert (read.shape, read.dtype, read.device) == ((4, 3), np.dtype("float32"), 0)
    assert read[1:].device == 0
    if name == "tensorflow":  # it takes no stream, and waits for its own work
        assert arrays._view(owner, 0x1234).ptr == read.address


@pytest.mark.parametrize("name", ["jax", "tensorflow"])
def test_arrays_of_jax_and_tensorflow_are_not_written_to(name: str) -> None:
    out = [np.zeros((3, 5), "float32"), of_a_library(name, np.zeros(3, "float32"))]
    with pytest.raises(InputError, match="read-only"):
        standardize_out(out, OUTPUTS, 3)


def test_an_array_on_several_devices_is_gathered() -> None:
    """In a process of its own: JAX takes the number of devices when it starts."""
    code = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from keras_trt.inputs import standardize
from keras_trt.specs import Cost, Signature, TensorSpec
x = np.arange(12, dtype="float32").reshape(4, 3)
spread = jax.device_put(x, NamedSharding(Mesh(np.array(jax.devices()), ("d",)), PartitionSpec("d")))
assert len(spread.sharding.device_set) == 2
signature = Signature((TensorSpec("x", (None, 3), "float32"),), (TensorSpec("y", (None, 3), "float32"),), 0, 0)
np.testing.assert_array_equal(standardize(spread, signature)[0], x)
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **flags})
    assert done.returncode == 0, done.stderr
