"""A stand-in for the CUDA runtime on host memory.

It shows the logic of the slots: who takes which, what is reused, what is left after an error. It shows nothing about
CUDA: whether a driver accepts these calls, how long they take and what TensorRT does can only be seen on a GPU.

It is made so that mistakes show. Work on a stream runs no sooner than the stream is synchronized, so a forgotten
synchronize leaves old data. New memory is filled with 0xCB and freed memory with 0xDD, and every access is checked:
it must lie in live memory of the right kind. `check` tells of everything that went wrong, and of what was not freed.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from .host_arrays import view_of
from .host_parts import (
    Attributes,
    Capture,
    Copy,
    GraphHandle,
    IllegalAccessError,
    Kind,
    Memory,
    Status,
    StreamHandle,
    Work,
)

NEW, FREED = 0xCB, 0xDD
PATIENCE = 64


class HostCuda:
    """What keras_trt uses of `cuda.bindings.runtime` and `cuda.bindings.utils`.

    Attributes:
        calls: how often each function was called.
        copies: how many asynchronous copies of each kind have run.
        faults: what was done that CUDA would not forgive.
        device_limit: device memory that there is, in bytes.
        driver: the CUDA that the driver supports; 0 where there is none.
        injected: from the name of a function to what its next calls return; `Status.cudaSuccess` lets one pass.
        is_quick: says whether what is on a stream has run by the time that somebody asks; by default it has not. It has
            when `PATIENCE` questions were asked, whatever this says.
    """

    cudaHostAllocDefault = 0  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaError_t = Status  # noqa: N815
    cudaStreamCaptureMode = Capture  # noqa: N815
    cudaMemcpyKind = Copy  # noqa: N815
    cudaMemoryType = Kind  # noqa: N815

    def __init__(self, devices: int = 2) -> None:
        self.devices = devices
        self.driver = 13000
        self.calls: Counter[str] = Counter()
        self.copies: Counter[Copy] = Counter()
        self.pageable = 0  # how many of them were from pageable memory, each of which waits for a copy by the driver
        self.faults: list[str] = []
        self.device_limit = 1 << 30
        self.injected: dict[str, list[Status]] = {}
        self.is_quick: Callable[[StreamHandle], bool] = lambda _: False
        self.memory: dict[int, Memory] = {}
        self.streams: dict[int, StreamHandle] = {}
        self.default_stream = StreamHandle(0, 0)
        self.graphs: list[GraphHandle] = []
        self.executables: list[GraphHandle] = []
        self._addresses = itertools.count(1)
        self._current = threading.local()
        self._lock = threading.RLock()

    # What tests ask.

    def fail(self, function: str, *statuses: Status) -> None:
        """Let the next calls of a function return these statuses and do nothing else."""
        self.injected[function] = list(statuses)

    def live(self, kind: str) -> list[Memory]:
        return [memory for memory in self.memory.values() if memory.kind == kind and not memory.freed]

    def live_streams(self) -> list[StreamHandle]:
        return [stream for stream in self.streams.values() if not stream.destroyed]

    def check(self) -> None:
        """Assert that nothing was done that must not be, and that everything is freed."""
        assert not self.faults, self.faults
        left = {
            "device memory": len(self.live("device")),
            "pinned memory": len(self.live("pinned")),
            "streams": len(self.live_streams()),
            "graphs": sum(not graph.destroyed for graph in self.graphs),
            "executable graphs": sum(not graph.destroyed for graph in self.executables),
        }
        assert not any(left.values()), f"not freed: {left}"

    def view(self, address: int, size: int, kind: str) -> np.ndarray[Any, Any]:
        """Return live memory as bytes; raises `IllegalAccessError` where there is none of that kind."""
        with self._lock:
            # No bytes at all may also be at the end of what lies in front.
            found = [(at, one) for at, one in self.memory.items() if at <= address and address + size <= at + one.size]
        for start, memory in found:
            if memory.kind == kind and not memory.freed:
                return np.ctypeslib.as_array(memory.raw)[address - start : address - start + size]
        for _, memory in found:
            raise IllegalAccessError(f"{size} bytes of {memory.kind} memory, freed: {memory.freed}")
        raise IllegalAccessError(f"{size} bytes at {address:#x}, where nothing is")

    def _is_known(self, address: int) -> bool:
        with self._lock:
            return any(at <= address <= at + one.size for at, one in self.memory.items())

    def put(self, stream_address: int, work: Work) -> None:
        """Put work on a stream, as a kernel launch does; 0 is the default stream, which no other waits for."""
        self._put(self.streams[stream_address] if stream_address else self.default_stream, work)

    def is_bound(self) -> bool:
        """Tell whether this thread has a context, which the driver API needs and `cudaGetDevice` does not give it."""
        return hasattr(self._current, "bound")

    def is_capturing(self, stream_address: int) -> bool:
        return self.streams[stream_address].captured is not None

    def invalidate(self, stream_address: int) -> None:
        """Do as a call does that cannot be captured."""
        self.streams[stream_address].invalid = True

    # The runtime API.

    def cudaGetErrorName(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, Status(status).name.encode()

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, f"status {int(status)} of the stand-in".encode()

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:  # noqa: N802
        return Status.cudaSuccess, self.devices

    def cudaGetDevice(self) -> tuple[Any, ...]:  # noqa: N802
        return Status.cudaSuccess, self._device()

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:  # noqa: N802
        if not 0 <= device < self.devices:
            return (Status.cudaErrorInvalidDevice,)
        self._current.device = device
        self._current.bound = True
        return (Status.cudaSuccess,)

    def cudaGetLastError(self) -> tuple[Any, ...]:  # noqa: N802
        error, self._current.error = self.cudaPeekAtLastError(), Status.cudaSuccess
        return error

    def cudaPeekAtLastError(self) -> tuple[Any, ...]:  # noqa: N802
        return (getattr(self._current, "error", Status.cudaSuccess),)

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:  # noqa: N802
        return Status.cudaSuccess, self.driver

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:  # noqa: N802
        return Status.cudaSuccess, 13000

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:  # noqa: N802
        return self._allocate("cudaMalloc", "device", size)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:  # noqa: ARG002, N802
        return self._allocate("cudaHostAlloc", "pinned", size)

    def cudaFree(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        return self._free("cudaFree", "device", address)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        return self._free("cudaFreeHost", "pinned", address)

    def cudaPointerGetAttributes(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        kinds = {"device": Kind.cudaMemoryTypeDevice, "pinned": Kind.cudaMemoryTypeHost}
        with self._lock:
            within = [
                kinds[one.kind] for at, one in self.memory.items() if at <= address < at + one.size and not one.freed
            ]
        return Status.cudaSuccess, Attributes(within[0] if within else Kind.cudaMemoryTypeUnregistered)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Copy, stream: StreamHandle) -> tuple[Any, ...]:  # noqa: N802
        if status := self._begin("cudaMemcpyAsync"):
            return (status,)
        to_kind, from_kind = {
            Copy.cudaMemcpyHostToDevice: ("device", "pinned"),
            Copy.cudaMemcpyDeviceToHost: ("pinned", "device"),
            Copy.cudaMemcpyDefault: ("device", "device"),
        }[kind]

        staged: np.ndarray[Any, Any] | None = None
        if kind == Copy.cudaMemcpyHostToDevice and not self._is_known(source):
            # Of what is pageable the driver takes its own copy before it returns.
            staged = np.frombuffer(ctypes.string_at(source, size), np.uint8)
            self.pageable += 1

        def copy() -> None:
            self.copies[kind] += 1
            self.view(to, size, to_kind)[:] = self.view(source, size, from_kind) if staged is None else staged

        return (self._put(stream, copy),)

    def cudaMemcpy(self, to: int, source: int, size: int, kind: Copy) -> tuple[Any, ...]:  # noqa: N802
        """Between device memory and an array of the host, which is pageable: to the device it may return too early."""
        if kind == Copy.cudaMemcpyHostToDevice:
            staged = np.frombuffer(ctypes.string_at(source, size), np.uint8)

            def arrive() -> None:
                self.view(to, size, "device")[:] = staged

            self.put(0, arrive)
        else:
            ctypes.memmove(to, self.view(source, size, "device").ctypes.data, size)
        return (Status.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:  # noqa: ARG002, N802
        if status := self._begin("cudaStreamCreateWithFlags"):
            return status, None
        with self._lock:
            stream = StreamHandle(next(self._addresses), self._device())
            self.streams[stream.address] = stream
        return Status.cudaSuccess, stream

    def get_cuda_native_handle(self, stream: StreamHandle) -> int:
        return stream.address

    def cudaStreamSynchronize(self, stream: StreamHandle | int) -> tuple[Any, ...]:  # noqa: N802
        if isinstance(stream, int):
            return self._synchronize_default(stream)
        if status := self._begin("cudaStreamSynchronize"):
            stream.pending.clear()  # as work that ran and failed
            return (status,)
        if stream.captured is not None:
            stream.invalid = True
            return (Status.cudaErrorStreamCaptureUnsupported,)
        if not stream.busy.acquire(blocking=False):
            return (self._fault("two threads synchronize one stream"),)
        stream.asked = 0
        try:
            while stream.pending:
                stream.pending[0][0]()
                stream.pending.pop(0)
        except IllegalAccessError as error:
            stream.pending.clear()
            self._fault(str(error))
            return (Status.cudaErrorIllegalAddress,)
        finally:
            stream.busy.release()
        return (Status.cudaSuccess,)

    def cudaStreamQuery(self, stream: StreamHandle) -> tuple[Any, ...]:  # noqa: N802
        if status := self._begin("cudaStreamQuery"):
            stream.pending.clear()  # as work that ran and failed
            return (status,)
        stream.asked += 1
        if stream.pending and stream.asked % PATIENCE and not self.is_quick(stream):
            self._current.error = Status.cudaErrorNotReady
            return (self._current.error,)
        return self.cudaStreamSynchronize(stream) if stream.pending else (Status.cudaSuccess,)

    def cudaStreamDestroy(self, stream: StreamHandle) -> tuple[Any, ...]:  # noqa: N802
        self.calls["cudaStreamDestroy"] += 1
        if stream.destroyed or stream.pending or stream.captured is not None:
            return (self._fault("a stream that is destroyed already, or not idle, was destroyed"),)
        stream.destroyed = True
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: StreamHandle, mode: Capture) -> tuple[Any, ...]:  # noqa: N802
        if status := self._begin("cudaStreamBeginCapture"):
            return (status,)
        if stream.captured is not None or stream.pending:
            return (self._fault("a capture was begun on a stream that is not idle"),)
        stream.captured, stream.mode, stream.invalid = [], mode, False
        stream.captured_by = threading.get_ident()
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: StreamHandle) -> tuple[Any, ...]:  # noqa: N802
        status = self._begin("cudaStreamEndCapture")
        work, stream.captured = stream.captured, None
        if work is None:
            return Status.cudaErrorIllegalState, None
        if status or stream.invalid:
            return status or Status.cudaErrorStreamCaptureInvalidated, None
        graph = GraphHandle(work)
        self.graphs.append(graph)
        return Status.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph: GraphHandle, flags: int) -> tuple[Any, ...]:  # noqa: ARG002, N802
        if status := self._begin("cudaGraphInstantiate"):
            return status, None
        executable = GraphHandle(list(graph.work))
        self.executables.append(executable)
        return Status.cudaSuccess, executable

    def cudaGraphLaunch(self, executable: GraphHandle, stream: StreamHandle) -> tuple[Any, ...]:  # noqa: N802
        if status := self._begin("cudaGraphLaunch"):
            return (status,)
        if executable.destroyed:
            return (self._fault("a destroyed graph was launched"),)
        for work in executable.work:
            self._put(stream, work, executable)
        return (Status.cudaSuccess,)

    def cudaGraphDestroy(self, graph: GraphHandle) -> tuple[Any, ...]:  # noqa: N802
        return self._destroy(graph)

    def cudaGraphExecDestroy(self, executable: GraphHandle) -> tuple[Any, ...]:  # noqa: N802
        if any(owner is executable for stream in self.live_streams() for _, owner in stream.pending):
            return (self._fault("a graph was destroyed while it ran"),)
        return self._destroy(executable)

    # Their parts.

    def _synchronize_default(self, stream: int) -> tuple[Any, ...]:
        assert stream == 0
        with self._lock:
            while self.default_stream.pending:
                self.default_stream.pending.pop(0)[0]()
        return (Status.cudaSuccess,)

    def _begin(self, function: str) -> Status | None:
        """Count a call, and return the error that it was told to have."""
        self._current.bound = True
        with self._lock:
            self.calls[function] += 1
            waiting = self.injected.get(function)
            status = waiting.pop(0) if waiting else Status.cudaSuccess
        if status:
            self._current.error = status
        return status or None

    def _device(self) -> int:
        return int(getattr(self._current, "device", 0))

    def _fault(self, what: str) -> Status:
        with self._lock:
            self.faults.append(what)
        return Status.cudaErrorInvalidValue

    def _put(self, stream: StreamHandle, work: Work, owner: Any = None) -> Status:
        if stream.destroyed:
            return self._fault("work was put on a destroyed stream")
        if stream.captured is not None:
            stream.captured.append(work)
        else:
            stream.pending.append((work, owner))
        return Status.cudaSuccess

    def _breaks_capture(self) -> bool:
        """Tell whether allocating is forbidden now, and break the captures that it breaks."""
        with self._lock:
            broken = [
                stream
                for stream in self.live_streams()
                if stream.captured is not None
                and (
                    stream.mode == Capture.cudaStreamCaptureModeGlobal
                    or (
                        stream.mode == Capture.cudaStreamCaptureModeThreadLocal
                        and stream.captured_by == threading.get_ident()
                    )
                )
            ]
            for stream in broken:
                stream.invalid = True
            return bool(broken)

    def _allocate(self, function: str, kind: str, size: int) -> tuple[Any, ...]:
        if status := self._begin(function):
            return status, None
        if self._breaks_capture():
            return Status.cudaErrorStreamCaptureUnsupported, None
        with self._lock:
            if kind == "device" and sum(memory.size for memory in self.live(kind)) + size > self.device_limit:
                self._current.error = Status.cudaErrorMemoryAllocation
                return self._current.error, None
            raw = (ctypes.c_ubyte * size)()
            ctypes.memset(raw, NEW, size)
            address = ctypes.addressof(raw)
            self.memory[address] = Memory(kind, self._device(), size, raw)
        return Status.cudaSuccess, address

    def _free(self, function: str, kind: str, address: int) -> tuple[Any, ...]:
        with self._lock:
            self.calls[function] += 1
            memory = self.memory.get(address)
            if memory is None or memory.freed or memory.kind != kind:
                return (self._fault(f"{function} of memory that is not there"),)
            memory.freed = True  # kept, so that a use after this does no harm and is seen
            ctypes.memset(memory.raw, FREED, memory.size)
        return (Status.cudaSuccess,)

    def _destroy(self, graph: GraphHandle) -> tuple[Any, ...]:
        if graph.destroyed:
            return (self._fault("a graph was destroyed twice"),)
        graph.destroyed = True
        return (Status.cudaSuccess,)


@contextlib.contextmanager
def installed() -> Iterator[HostCuda]:
    """Put keras_trt.cuda on host memory; at the end everything must be freed."""
    from keras_trt.cuda import arrays, graph, host, memory, runtime

    cuda = HostCuda()
    with pytest.MonkeyPatch.context() as monkeypatch:
        for module in (runtime, memory, graph, host):
            monkeypatch.setattr(module, "bindings", lambda: cuda)
        monkeypatch.setattr(runtime, "require", lambda *_, **__: cuda)
        monkeypatch.setattr(arrays, "_view", view_of)
        yield cuda
        cuda.check()
