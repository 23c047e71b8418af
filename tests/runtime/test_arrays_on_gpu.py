"""Inputs and outputs that lie on the GPU already (over host memory: see `host_cuda`; cuda-core is stood for)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_trt.cuda import DeviceArray, is_on_gpu
from keras_trt.errors import InputError
from keras_trt.inputs import standardize, standardize_out
from keras_trt.specs import Signature, TensorSpec

from .host_cuda import Copy, GpuArray, HostCuda, HostEngineOnDevice, expected, installed
from .test_pipeline import OUTPUTS, inputs, session

Array = np.ndarray[Any, Any]


@pytest.fixture
def arrays(host_cuda: HostCuda) -> Iterator[Any]:
    made: list[GpuArray] = []

    def make(array: Array) -> GpuArray:
        made.append(GpuArray(host_cuda, array))
        return made[-1]

    yield make
    for one in made:
        one.free()


def test_what_lies_on_a_gpu(arrays: Any) -> None:
    assert is_on_gpu(arrays(np.zeros(3, "float32")))
    assert not is_on_gpu(np.zeros(3))
    assert not is_on_gpu([1, 2])


def test_inputs_are_read_where_they_lie(host_cuda: HostCuda, arrays: Any) -> None:
    one = session(HostEngineOnDevice(host_cuda))
    for seed in range(4):
        x, k = inputs(8, seed=seed)
        y, sums = one.run([DeviceArray(arrays(x)), k])
        wanted = expected({"x": x, "k": k})
        np.testing.assert_array_equal(y, wanted[1])
        np.testing.assert_array_equal(sums, wanted[0])
    assert host_cuda.copies[Copy.cudaMemcpyHostToDevice] == 4  # of k alone
    assert host_cuda.copies[Copy.cudaMemcpyDefault] == 4
    assert host_cuda.executables
    one.close()


def test_outputs_stay_on_the_gpu(host_cuda: HostCuda, arrays: Any) -> None:
    one = session(HostEngineOnDevice(host_cuda))
    for seed in range(4):
        x, k = inputs(8, seed=seed)
        out = [arrays(np.full_like(x, np.nan)), arrays(np.full(8, np.nan, "float32"))]
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

        one = session(HostEngineOnDevice(cuda), costs={1: 1.0, 8: 1.5})
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


def test_rows_and_copies_to_the_host(arrays: Any) -> None:
    content = np.arange(24, dtype="float32").reshape(6, 4)
    whole = DeviceArray(arrays(content))
    np.testing.assert_array_equal(np.asarray(whole[2:5]), content[2:5])
    np.testing.assert_array_equal(np.asarray(whole[4:9], "int64"), content[4:])
    assert (len(whole[2:5]), whole[2:5].shape, whole.ndim, whole.nbytes) == (3, (3, 4), 2, 96)
    whole[1:3].assign(np.full((2, 4), 7, "float64"))
    np.testing.assert_array_equal(whole.owner.content[1:3], np.full((2, 4), 7))
    with pytest.raises(ValueError, match="copy"):
        np.array(whole, copy=False)


def test_only_dense_arrays_are_taken(arrays: Any) -> None:
    owner = arrays(np.zeros((4, 6), "float32"))
    owner.strides = (1, 4)
    with pytest.raises(InputError, match="C-contiguous"):
        DeviceArray(owner)
    owner.shape, owner.strides = (1, 24), (99, 1)  # one row: where the next would be does not matter
    assert DeviceArray(owner).shape == (1, 24)


def test_types_are_not_cast_on_a_gpu(host_cuda: HostCuda, arrays: Any) -> None:
    signature = Signature((TensorSpec("x", (None, 5), "float32"),), OUTPUTS, 0, {"list": [0, 1]})
    with pytest.raises(InputError, match="nothing is cast"):
        standardize(arrays(np.zeros((3, 5), "float64")), signature)
    one = session(HostEngineOnDevice(host_cuda))
    x, k = inputs(8)
    with pytest.raises(InputError, match="only what lies on the host is cast"):
        one.run([x, DeviceArray(arrays(k.astype("int64")))])
    y, _ = one.run([x, k])
    np.testing.assert_array_equal(y, expected({"x": x, "k": k})[1])
    one.close()


@pytest.mark.parametrize(
    ("shapes", "dtype"),
    [([(3, 5)], "float32"), ([(3, 5), (4,)], "float32"), ([(3, 5), (3,)], "float64"), ([(3, 5, 1), (3,)], "float32")],
)
@pytest.mark.parametrize("on_gpu", [False, True])
def test_out_must_fit(arrays: Any, shapes: list[tuple[int, ...]], dtype: str, on_gpu: bool) -> None:
    out = [np.zeros(shape, dtype) for shape in shapes]
    with pytest.raises(InputError, match="out"):
        standardize_out([arrays(array) for array in out] if on_gpu else out, OUTPUTS, 3)


def test_out_must_be_writable(arrays: Any) -> None:
    out = [np.zeros((3, 5), "float32"), np.zeros(3, "float32")]
    assert [one.shape for one in standardize_out(out, OUTPUTS, 3)] == [(3, 5), (3,)]
    out[1].flags.writeable = False
    with pytest.raises(InputError, match="read-only"):
        standardize_out(out, OUTPUTS, 3)
    owner = arrays(np.zeros(3, "float32"))
    owner.readonly = True
    with pytest.raises(InputError, match="read-only"):
        standardize_out([out[0], owner], OUTPUTS, 3)
