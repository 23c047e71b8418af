"""Status codes, devices and streams of the CUDA runtime."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from .._require import require
from ..errors import CudaError


@functools.cache  # each import, of what is imported long since, takes some µs of a call
def bindings() -> Any:
    """Return `cuda.bindings.runtime`.

    Raises:
        MissingDependencyError: if cuda-python is not installed.
    """
    return require("cuda.bindings.runtime", package="cuda-python", extra="cu13", purpose="Running on a GPU")


def check(result: tuple[Any, ...]) -> Any:
    """Return the values of a cuda-python call, after its status.

    Args:
        result: what the call returned: the status and then its values, if any.

    Returns:
        `None`, the one value, or a tuple of the values.

    Raises:
        CudaError: if the status is not success.
    """
    status = result[0]
    if int(status) != 0:
        cudart = bindings()
        _, name = cudart.cudaGetErrorName(status)
        _, text = cudart.cudaGetErrorString(status)
        raise CudaError(f"CUDA failed: {name.decode()}: {text.decode()}.", name=name.decode())
    if len(result) == 1:
        return None
    return result[1] if len(result) == 2 else result[1:]


@dataclass(frozen=True)
class DeviceInfo:
    """What identifies a GPU to an engine.

    Attributes:
        name: the product name, such as `"NVIDIA H100 80GB HBM3"`.
        compute_capability: such as `(9, 0)`.
        multiprocessors: number of streaming multiprocessors; a MIG slice has fewer than its GPU.
        memory_bytes: size of its memory.
        driver: the newest CUDA that the installed driver supports, as 1000 * major + 10 * minor.
    """

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int
    driver: int


def device_count() -> int:
    """Return the number of usable GPUs: 0 without a driver, without a GPU, or where all are hidden.

    Raises:
        MissingDependencyError: if cuda-python is not installed.
        CudaError: if the driver is too old for this cuda-python, or CUDA fails in another way.
    """
    cudart = bindings()
    status, count = cudart.cudaGetDeviceCount()
    if status == cudart.cudaError_t.cudaErrorNoDevice:
        return 0
    if status == cudart.cudaError_t.cudaErrorInsufficientDriver:
        driver, needed = check(cudart.cudaDriverGetVersion()), check(cudart.cudaRuntimeGetVersion())
        if not driver:
            return 0
        raise CudaError(
            f"The GPU's driver supports CUDA {driver // 1000}.{driver % 1000 // 10}, and this cuda-python needs "
            f"{needed // 1000}.{needed % 1000 // 10}. Update the driver, or install 'keras-trt[cu{driver // 1000}]'.",
            name="cudaErrorInsufficientDriver",
        )
    return int(check((status, count)))


def device_info(device: int) -> DeviceInfo:
    """Describe GPU number `device`.

    Raises:
        CudaError: if there is no such GPU.
    """
    cudart = bindings()
    properties = check(cudart.cudaGetDeviceProperties(device))
    return DeviceInfo(
        name=properties.name.split(b"\0")[0].decode(),
        compute_capability=(int(properties.major), int(properties.minor)),
        multiprocessors=int(properties.multiProcessorCount),
        memory_bytes=int(properties.totalGlobalMem),
        driver=int(check(cudart.cudaDriverGetVersion())),
    )


def free_memory(device: int) -> tuple[int, int]:
    """Return the free and the total memory of a GPU, in bytes."""
    cudart = bindings()
    with current_device(device):
        free, total = check(cudart.cudaMemGetInfo())
    return int(free), int(total)


class current_device:  # noqa: N801 (used as a function; a generator would take as long again as CUDA's calls)
    """Make `device` the calling thread's current GPU, and put back what was: the thread is not ours."""

    __slots__ = ("_before", "_cudart", "_device")

    def __init__(self, device: int) -> None:
        self._device = device

    def __enter__(self) -> None:
        self._cudart = cudart = bindings()
        self._before = int(check(cudart.cudaGetDevice()))
        # Also where it is that: a thread that has called nothing has no context yet.
        check(cudart.cudaSetDevice(self._device))

    def __exit__(self, *exception: object) -> None:
        if self._before != self._device:
            check(self._cudart.cudaSetDevice(self._before))


def forget_error() -> None:
    """Let nobody whom the calling thread asks for CUDA's last error be told of one that was dealt with."""
    bindings().cudaGetLastError()


def wait_for_default_stream() -> None:
    """Wait for what libraries have put on the current GPU's default stream, which our own streams do not wait for."""
    cudart = bindings()
    check(cudart.cudaStreamSynchronize(0))


class Stream:
    """A CUDA stream that does not wait for the default stream.

    Attributes:
        handle: the `cudaStream_t`, for cuda-python.
        address: the same as an integer, for TensorRT.
    """

    def __init__(self) -> None:
        cudart = bindings()
        native = require("cuda.bindings.utils", package="cuda-python", extra="cu13", purpose="Running on a GPU")
        self.handle = check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        self.address = int(native.get_cuda_native_handle(self.handle))

    def synchronize(self) -> None:
        """Wait until all that was put on the stream has run.

        Raises:
            CudaError: if any of it failed.
        """
        cudart = bindings()
        check(cudart.cudaStreamSynchronize(self.handle))

    @property
    def is_idle(self) -> bool:
        """Whether all that was put on the stream has run, so that `synchronize` takes no time.

        Raises:
            CudaError: if any of it failed.
        """
        cudart = bindings()
        (status,) = cudart.cudaStreamQuery(self.handle)
        if status == cudart.cudaError_t.cudaErrorNotReady:
            forget_error()  # which is no failure
            return False
        check((status,))
        return True

    def close(self) -> None:
        """Free the stream. It must be idle."""
        if self.handle is not None:
            cudart = bindings()
            handle, self.handle = self.handle, None
            check(cudart.cudaStreamDestroy(handle))

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
