"""Arrays of others on the stand-in for a GPU (see `host_cuda`)."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .host_cuda import HostCuda


class GpuArray:
    """An array on the current GPU that someone else made, and that is right only once its owner's stream has run.

    Args:
        cuda: whose memory it takes.
        array: what it will hold.
    """

    def __init__(self, cuda: HostCuda, array: np.ndarray[Any, Any]) -> None:
        _, self.address = cuda.cudaMalloc(array.nbytes)
        self.device, self.thread = cuda.cudaGetDevice()[1], threading.get_ident()
        self.cuda, self.shape, self.dtype = cuda, array.shape, array.dtype
        self.strides: tuple[int, ...] | None = None
        self.readonly = False
        self._coming: np.ndarray[Any, Any] | None = array.copy()

    __cuda_array_interface__: Any = None  # that it is there says where the array lies

    @property
    def content(self) -> np.ndarray[Any, Any]:
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        return self.cuda.view(self.address, size, "device").view(self.dtype).reshape(self.shape)

    def finish(self) -> None:
        """Do what its owner has put on a stream."""
        if self._coming is not None:
            coming, self._coming = self._coming, None
            self.content[...] = coming

    def free(self) -> None:
        self.cuda.cudaFree(self.address)


def view_of(owner: GpuArray, stream: int) -> Any:
    """Stand for cuda-core and PyTorch: the stream waits for that which is current on this thread and GPU."""
    if stream != -1 and not owner.cuda.is_bound():
        raise RuntimeError("CUDA_ERROR_INVALID_CONTEXT")
    if stream != -1 and (owner.thread, owner.device) == (threading.get_ident(), owner.cuda.cudaGetDevice()[1]):
        owner.cuda.put(stream, owner.finish)
    return SimpleNamespace(
        ptr=owner.address,
        shape=owner.shape,
        strides=owner.strides,
        dtype=owner.dtype,
        readonly=owner.readonly,
        device_id=owner.device,
    )
