"""Arrays on the host that CUDA reads where they lie, as those in page-locked memory of PyTorch, CuPy or Numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from .memory import DeviceMemory, copy_from_host, copy_padded
from .runtime import Stream, bindings, check


class HostArray:
    """Rows of a C-contiguous array.

    The GPU reads them itself in page-locked memory. Elsewhere the driver copies them first, before a call that puts a
    copy on a stream returns.

    Attributes:
        shape, dtype, nbytes: as in numpy.
    """

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = array.dtype
        self.nbytes: int = array.nbytes

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> HostArray:
        """Return consecutive rows."""
        return HostArray(self._array[rows])

    def order(self, stream: Stream) -> None:
        """Do nothing: what the processor has written is there."""

    def copy_to(self, target: DeviceMemory, rows: int, stream: Stream) -> None:
        """Put a copy to device memory on a stream, with the last row again and again up to `rows` rows."""
        source = _address(self._array)
        copy_padded(copy_from_host, target, source, self.nbytes, stream, count=len(self), rows=rows)


def in_pinned_memory(array: np.ndarray[Any, Any]) -> bool | None:
    """Tell whether an array lies in page-locked memory, of whoever, with one element behind the other.

    Returns:
        `None` where only a part of it does, which CUDA refuses to copy.
    """
    if not (array.size and array.flags.c_contiguous):
        return False
    cudart, first = bindings(), _address(array)
    wanted = cudart.cudaMemoryType.cudaMemoryTypeHost
    ends = [check(cudart.cudaPointerGetAttributes(at)).type == wanted for at in (first, first + array.nbytes - 1)]
    return ends[0] if ends[0] == ends[1] else None


def _address(array: np.ndarray[Any, Any]) -> int:
    address: int = array.__array_interface__["data"][0]  # `ctypes.data` takes as long as a call into CUDA
    return address
