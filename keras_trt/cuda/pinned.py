"""Arrays in page-locked memory that others made (PyTorch, CuPy, Numba), which the GPU reads where they lie."""

from __future__ import annotations

from typing import Any

import numpy as np

from .memory import DeviceMemory, copy_from_pinned, copy_padded
from .runtime import Stream, bindings, check


class PinnedArray:
    """Rows of a C-contiguous array in page-locked memory.

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

    def __getitem__(self, rows: slice) -> PinnedArray:
        """Return consecutive rows."""
        return PinnedArray(self._array[rows])

    def order(self, stream: Stream) -> None:
        """Do nothing: what the processor has written is there."""

    def copy_to(self, target: DeviceMemory, rows: int, stream: Stream) -> None:
        """Put a copy to device memory on a stream, with the last row again and again up to `rows` rows."""
        source = self._array.ctypes.data
        copy_padded(copy_from_pinned, target, source, self.nbytes, stream, count=len(self), rows=rows)


def in_pinned_memory(array: np.ndarray[Any, Any]) -> bool:
    """Tell whether an array lies in page-locked memory, of whoever, with one element behind the other."""
    if not (array.size and array.flags.c_contiguous):
        return False
    cudart, first = bindings(), array.ctypes.data
    wanted = cudart.cudaMemoryType.cudaMemoryTypeHost
    return all(check(cudart.cudaPointerGetAttributes(at)).type == wanted for at in (first, first + array.nbytes - 1))
