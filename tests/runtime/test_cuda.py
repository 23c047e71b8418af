"""Memory, graphs and devices themselves (over host memory: see `host_cuda`)."""

from __future__ import annotations

import pytest

from keras_trt import cuda
from keras_trt.errors import CudaError

from .helpers import in_threads
from .host_cuda import HostCuda
from .host_parts import Status


def test_no_address_is_null(host_cuda: HostCuda) -> None:
    device, pinned = cuda.DeviceMemory(0), cuda.PinnedMemory(0)
    assert device.address
    assert pinned.address
    for memory in (device, pinned, device, pinned):
        memory.close()  # a second time does nothing
    assert host_cuda.calls["cudaFree"] == host_cuda.calls["cudaFreeHost"] == 1


def test_out_of_memory_says_so(host_cuda: HostCuda) -> None:
    host_cuda.device_limit = 10
    with pytest.raises(CudaError, match="cudaErrorMemoryAllocation") as caught:
        cuda.DeviceMemory(11)
    assert caught.value.name == "cudaErrorMemoryAllocation"


def test_a_capture_runs_nothing(host_cuda: HostCuda) -> None:
    ran: list[int] = []
    with cuda.Stream() as stream:
        graph = cuda.capture(stream, lambda: host_cuda.put(stream.address, lambda: ran.append(1)))
        stream.synchronize()
        assert ran == []
        for _ in range(2):
            graph.launch(stream)
        stream.synchronize()
        assert ran == [1, 1]
        graph.close()
        graph.close()


def test_a_capture_that_raises_leaves_a_usable_stream(host_cuda: HostCuda) -> None:
    def work() -> None:
        host_cuda.put(stream.address, lambda: None)
        raise ValueError("no")

    with cuda.Stream() as stream:
        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                cuda.capture(stream, work)
        stream.synchronize()


def test_a_capture_in_one_thread_lets_others_allocate(host_cuda: HostCuda) -> None:
    def work() -> None:
        def allocate() -> None:
            cuda.DeviceMemory(8).close()

        in_threads([allocate])

    with cuda.Stream() as stream:
        cuda.capture(stream, work).close()
    assert host_cuda.calls["cudaMalloc"] == 1


@pytest.mark.parametrize("status", [Status.cudaErrorNoDevice, Status.cudaErrorInsufficientDriver])
def test_no_gpu_is_none_and_no_error(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, status: Status) -> None:
    host_cuda.driver = 0
    monkeypatch.setattr(host_cuda, "cudaGetDeviceCount", lambda: (status, None))
    assert cuda.device_count() == 0


def test_a_driver_that_is_too_old(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    host_cuda.driver = 12040
    monkeypatch.setattr(host_cuda, "cudaGetDeviceCount", lambda: (Status.cudaErrorInsufficientDriver, None))
    with pytest.raises(CudaError) as caught:
        cuda.device_count()
    assert caught.value.name == "cudaErrorInsufficientDriver"
    for part in ("12.4", "13.0", "keras-trt[cu12]"):
        assert part in str(caught.value)


def test_a_broken_driver_is_an_error(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_cuda, "cudaGetDeviceCount", lambda: (Status.cudaErrorIllegalAddress, None))
    with pytest.raises(CudaError, match="cudaErrorIllegalAddress"):
        cuda.device_count()


def test_the_current_device_is_put_back_after_an_error(host_cuda: HostCuda) -> None:
    def work() -> None:
        with cuda.current_device(1):
            assert host_cuda.cudaGetDevice()[1] == 1
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        work()
    assert host_cuda.cudaGetDevice()[1] == 0
    with pytest.raises(CudaError), cuda.current_device(7):
        pass
