"""Device memory, pinned host memory, and the copies between them.

Both kinds are freed by `close()`, never by the garbage collector: at interpreter exit it may run after CUDA is
gone, and a call into CUDA then crashes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from .runtime import Stream, bindings, check, wait_for_default_stream


class DeviceMemory:
    """Memory on the current GPU.

    Args:
        size_bytes: how much; at least one byte is taken, so that an address is never null.

    Raises:
        CudaError: if there is not so much (it is `out_of_memory`).
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = self.address = 0
        self.grow(size_bytes)

    def grow(self, size_bytes: int) -> int:
        """Return its address, once it is at least so large. Where it was not, what it held is lost.

        Raises:
            CudaError: if there is not so much. Nothing is held then.
        """
        size_bytes = max(size_bytes, 1)
        if size_bytes > self.size_bytes:
            self.close()
            cudart = bindings()
            self.address = int(check(cudart.cudaMalloc(size_bytes)))
            self.size_bytes = size_bytes
        return self.address

    def close(self) -> None:
        """Free the memory. Nothing on the GPU may use it any more."""
        if self.address:
            cudart = bindings()
            address, self.address, self.size_bytes = self.address, 0, 0
            check(cudart.cudaFree(address))


class PinnedMemory:
    """Page-locked host memory, which the GPU reads and writes without a copy by the driver.

    Args:
        size_bytes: how much; at least one byte is taken.

    Attributes:
        address: where it begins.
        array: the memory as a numpy array of bytes; not to be used after `close`.

    Raises:
        CudaError: if the system cannot lock so much.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = self.address = 0
        self.array: np.ndarray[Any, np.dtype[np.uint8]] = np.empty(0, np.uint8)
        self.grow(size_bytes)

    def grow(self, size_bytes: int) -> None:
        """Make it at least so large. Where it was not, what it held is lost.

        Raises:
            CudaError: if the system cannot lock so much. Nothing is held then.
        """
        size_bytes = max(size_bytes, 1)
        if size_bytes > self.size_bytes:
            self.close()
            cudart = bindings()
            self.address = int(check(cudart.cudaHostAlloc(size_bytes, cudart.cudaHostAllocDefault)))
            self.size_bytes = size_bytes
            self.array = np.ctypeslib.as_array((ctypes.c_ubyte * size_bytes).from_address(self.address))

    def close(self) -> None:
        """Free the memory. No copy may be under way, and `array` is gone."""
        if self.address:
            cudart = bindings()
            address, self.address, self.size_bytes = self.address, 0, 0
            self.array = np.empty(0, np.uint8)
            check(cudart.cudaFreeHost(address))


def copy_to_device(
    target: DeviceMemory, source: PinnedMemory, size_bytes: int, stream: Stream, *, start: int = 0
) -> None:
    """Put a copy of `size_bytes` bytes, from byte `start` on, to the same place on the stream."""
    copy_from_host(target.address + start, source.address + start, size_bytes, stream)


def copy_to_host(target: PinnedMemory, source: DeviceMemory, size_bytes: int, stream: Stream) -> None:
    """Put a copy of the first `size_bytes` bytes on the stream."""
    cudart = bindings()
    kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
    check(cudart.cudaMemcpyAsync(target.address, source.address, size_bytes, kind, stream.handle))


def copy_from_host(target: int, source: int, size_bytes: int, stream: Stream) -> None:
    """Put a copy from an address on the host to one on the GPU on the stream."""
    cudart = bindings()
    kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
    check(cudart.cudaMemcpyAsync(target, source, size_bytes, kind, stream.handle))


def copy_between(target: int, source: int, size_bytes: int, stream: Stream) -> None:
    """Put a copy from one place on a GPU to another, of the same or another GPU, on the stream."""
    cudart = bindings()
    kind = cudart.cudaMemcpyKind.cudaMemcpyDefault  # where each lies follows from its address
    check(cudart.cudaMemcpyAsync(target, source, size_bytes, kind, stream.handle))


def copy_padded(
    copy: Callable[[int, int, int, Stream], None],
    target: DeviceMemory,
    source: int,
    size_bytes: int,
    stream: Stream,
    *,
    count: int,
    rows: int,
) -> None:
    """Put a copy of `count` rows on a stream by `copy`, with the last one again and again up to `rows` rows."""
    copy(target.address, source, size_bytes, stream)
    row = size_bytes // count
    for place in range(count, rows):
        copy(target.address + place * row, source + size_bytes - row, row, stream)


def to_host(target: np.ndarray[Any, Any], source: int) -> None:
    """Copy from a GPU to an array, and wait for it."""
    cudart = bindings()
    kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
    check(cudart.cudaMemcpy(target.ctypes.data, source, target.nbytes, kind))


def to_device(target: int, source: np.ndarray[Any, Any]) -> None:
    """Copy from an array to the current GPU, and wait for it."""
    cudart = bindings()
    kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
    check(cudart.cudaMemcpy(target, source.ctypes.data, source.nbytes, kind))
    wait_for_default_stream()  # the copy returns when all is read, which is before all is written
