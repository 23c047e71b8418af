"""Arrays on a GPU that others made (CuPy, PyTorch, JAX, TensorFlow), read and written where they lie."""

from __future__ import annotations

import functools
import math
from importlib.util import find_spec
from typing import Any

import numpy as np

from .._require import require
from ..errors import InputError
from .memory import DeviceMemory, copy_between, copy_padded, to_device, to_host
from .runtime import Stream, current_device

#: DLPack's number for CUDA's device memory.
_DLPACK_CUDA = 2
#: Libraries whose arrays never change, which the capsules that they give do not say.
_IMMUTABLE = ("jax", "jaxlib", "tensorflow")


def is_on_gpu(x: Any) -> bool:
    """Tell whether an array lies on a GPU and can be read there; it is not touched."""
    if not _readable():
        return False
    if hasattr(x, "__cuda_array_interface__"):
        return True
    try:
        return hasattr(x, "__dlpack_device__") and int(x.__dlpack_device__()[0]) == _DLPACK_CUDA
    except BufferError:  # it is spread over several devices
        return False


def wait_for_owner(owner: Any) -> None:
    """Wait for what the owner of an array on a GPU has put on its stream.

    That is, with most libraries, one for each thread: before another thread takes an array, this is to be called.
    """
    with current_device(_view(owner, -1).device_id), Stream() as stream:
        _view(owner, stream.address)
        stream.synchronize()


class DeviceArray:
    """An array of someone else's on a GPU, or some rows of it; looks to numpy like a copy on the host.

    Args:
        owner: an object with `__dlpack__` or `__cuda_array_interface__`, C-contiguous. It is kept alive.

    Attributes:
        shape, dtype: as in numpy.
        address: where it begins.
        device: index of its GPU.
        readonly: whether it must not be written to.

    Raises:
        InputError: if its elements do not lie one after the other.
    """

    def __init__(self, owner: Any) -> None:
        view = _view(owner, -1)
        self.owner = owner
        self.shape: tuple[int, ...] = tuple(view.shape)
        self.dtype: np.dtype[Any] = np.dtype(view.dtype)
        self.address = int(view.ptr)
        self.device = int(view.device_id)
        self.readonly = bool(view.readonly) or _library(owner) in _IMMUTABLE
        strides = tuple(view.strides) if view.strides is not None else None
        dense = tuple(math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))
        if strides is not None and any(
            size > 1 and one != two for size, one, two in zip(self.shape, strides, dense, strict=True)
        ):
            raise InputError(
                f"An array on a GPU must be C-contiguous. Received: shape {self.shape} with strides {strides}.",
                expected="a contiguous array",
                received=strides,
            )

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> DeviceArray:
        """Return consecutive rows."""
        start, stop, _ = rows.indices(len(self))
        part = object.__new__(DeviceArray)
        part.owner, part.dtype, part.device, part.readonly = self.owner, self.dtype, self.device, self.readonly
        part.shape = (max(stop - start, 0), *self.shape[1:])
        part.address = self.address + start * math.prod(self.shape[1:]) * self.dtype.itemsize
        return part

    def order(self, stream: Stream) -> None:
        """Let a stream, of any GPU, wait for what its owner has put on this thread's."""
        with current_device(self.device):  # a library's current stream is also that of the current GPU
            _view(self.owner, stream.address)

    def wait(self) -> None:
        """Wait for what its owner has put on this thread's stream."""
        wait_for_owner(self.owner)

    def copy_to(self, target: DeviceMemory, rows: int, stream: Stream) -> None:
        """Put a copy to device memory on a stream, with the last row again and again up to `rows` rows."""
        copy_padded(copy_between, target, self.address, self.nbytes, stream, count=len(self), rows=rows)

    def copy_from(self, source: DeviceMemory, stream: Stream) -> None:
        """Put a copy from device memory on a stream."""
        copy_between(self.address, source.address, self.nbytes, stream)

    def assign(self, source: np.ndarray[Any, Any]) -> None:
        """Copy an array of the host to it, once its owner's work on it is done."""
        self.wait()
        with current_device(self.device):
            to_device(self.address, np.ascontiguousarray(source, self.dtype))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """Return a copy on the host, once its owner's work on it is done."""
        if copy is False:
            raise ValueError("An array on a GPU cannot be seen from the host without a copy.")
        host: np.ndarray[Any, Any] = np.empty(self.shape, self.dtype)
        self.wait()
        to_host(host, self.address)
        return host if dtype is None else host.astype(dtype, copy=False)


@functools.cache
def _readable() -> bool:
    return find_spec("cuda") is not None and find_spec("cuda.core") is not None


def _library(owner: Any) -> str:
    return type(owner).__module__.partition(".")[0]


def _view(owner: Any, stream: int) -> Any:
    # cuda-core reads both protocols, and orders streams as each of them says.
    utils = require("cuda.core.utils", package="cuda-core", extra="cu13", purpose="An array on a GPU")
    if _library(owner) == "tensorflow" or (_library(owner) in _IMMUTABLE and stream == -1):
        # TensorFlow takes no stream, and JAX takes -1 for the address of one. Without any, they wait on the host.
        stream = 0  # which cuda-core makes None of
    return utils.StridedMemoryView.from_any_interface(owner, stream_ptr=stream)
