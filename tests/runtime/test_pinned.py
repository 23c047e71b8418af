"""Inputs that lie in page-locked memory already, which is the caller's (over host memory: see `host_cuda`)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from keras_trt import cuda

from .helpers import inputs, session
from .host_arrays import GpuArray
from .host_cuda import NEW, HostCuda
from .host_engine import HostEngineOnDevice, expected

Array = np.ndarray[Any, Any]


@pytest.fixture
def pinned(host_cuda: HostCuda) -> Iterator[Any]:
    made: list[int] = []

    def make(array: Array, more: int = 0) -> Array:
        """Return a copy of an array in page-locked memory; so many bytes less are locked than it has."""
        _, address = host_cuda.cudaHostAlloc(array.nbytes, 0)
        made.append(address)
        locked = np.ctypeslib.as_array((ctypes.c_ubyte * array.nbytes).from_address(address))
        copy = locked.view(array.dtype).reshape(array.shape)
        copy[...] = array
        host_cuda.memory[address].size -= more
        return copy

    yield make
    for address in made:
        host_cuda.cudaFreeHost(address)


@pytest.fixture(autouse=True)
def _however_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras_trt.runtime.slots.AT_ONCE", 0)


def untouched(one: Any, name: str) -> bool:
    """Tell whether nothing was ever copied to a slot's own page-locked memory for an input."""
    idle = one._runner._pool._idle
    return bool(idle) and all((slot._buffers[name].pinned.array == NEW).all() for slot in idle)


@pytest.mark.parametrize("rows", [1, 8, 20, 43])
def test_rows_are_read_where_they_lie(host_cuda: HostCuda, pinned: Any, rows: int) -> None:
    one = session(HostEngineOnDevice(host_cuda))
    for seed in range(4):  # a graph is recorded at the second, and padded rows are behind the last
        x, k = inputs(rows, seed=seed)
        y, sums = one.run([pinned(x), k])
        np.testing.assert_array_equal(y, expected({"x": x, "k": k})[1])
        np.testing.assert_array_equal(sums, expected({"x": x, "k": k})[0])
    assert untouched(one, "x")
    assert untouched(one, "k") == (rows <= 8)  # of a single batch that is full the driver takes its own copy
    assert (host_cuda.pageable > 0) == (rows <= 8)
    assert host_cuda.executables
    one.close()


@pytest.mark.parametrize("where", ["page-locked", "on the GPU"])
def test_behind_the_last_row_it_is_repeated(host_cuda: HostCuda, pinned: Any, where: str) -> None:
    """A real row cannot overflow where the others do not."""
    one = session(HostEngineOnDevice(host_cuda), smallest=8)
    x, k = inputs(3)
    there = GpuArray(host_cuda, x)
    for _ in range(3):
        y, _ = one.run([pinned(x) if where == "page-locked" else cuda.DeviceArray(there), k])
        np.testing.assert_array_equal(y, expected({"x": x, "k": k})[1])
        (slot,) = one._runner._pool._idle  # type: ignore[union-attr]
        memory = slot._buffers["x"].device
        held = host_cuda.view(memory.address, 8 * x[0].nbytes, "device").view("float32").reshape(8, -1)
        np.testing.assert_array_equal(held, x[[0, 1, 2, 2, 2, 2, 2, 2]])
    there.free()
    one.close()


def test_rows_here_and_there_by_turns(host_cuda: HostCuda, pinned: Any) -> None:
    one = session(HostEngineOnDevice(host_cuda))
    for seed in range(12):
        x, k = inputs(11, seed=seed)
        given = [pinned(x) if seed % 2 else x, pinned(k) if seed % 3 else k]
        y, sums = one.run(given)
        np.testing.assert_array_equal(y, expected({"x": x, "k": k})[1])
        np.testing.assert_array_equal(sums, expected({"x": x, "k": k})[0])
    one.close()


def test_what_is_not_as_the_engine_has_it_is_copied(host_cuda: HostCuda, pinned: Any) -> None:
    one = session(HostEngineOnDevice(host_cuda))
    x, k = inputs(8)
    wanted = expected({"x": x, "k": k})[1]
    wide = pinned(np.repeat(x, 2, axis=1))
    for given in (pinned(x, more=4), wide[:, ::2], pinned(x.astype("float64"))):
        y, _ = one.run([given, k])
        np.testing.assert_array_equal(y, wanted)
        assert not untouched(one, "x")
    one.close()


def test_what_lies_in_page_locked_memory(host_cuda: HostCuda, pinned: Any) -> None:
    x = np.ones((4, 3), "float32")
    with cuda.current_device(0):
        assert cuda.in_pinned_memory(pinned(x))
        assert cuda.in_pinned_memory(pinned(x)[1:3])
        assert cuda.in_pinned_memory(pinned(x, more=1)) is None
        assert not cuda.in_pinned_memory(pinned(x)[:, 1:])
        assert not cuda.in_pinned_memory(pinned(x)[:0])
        assert not cuda.in_pinned_memory(x)
    assert host_cuda.calls["cudaHostAlloc"]
