"""An engine that runs on host memory in the place of a GPU's (see `host_cuda`)."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_trt.errors import EngineLoadError, InputError

from .host_cuda import HostCuda
from .host_parts import IllegalAccessError

#: From the name of an input or output to its type, as the engine has it.
DTYPES = {"x": np.dtype("float32"), "k": np.dtype("int32"), "sums": np.dtype("float32"), "y": np.dtype("float32")}


def expected(feeds: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """Return what `HostEngineOnDevice` answers, in its order: `sums`, `y`."""
    return [feeds["x"].sum(axis=1, dtype="float32") + feeds["k"].astype("float32"), 2 * feeds["x"] + 1]


class HostEngineOnDevice:
    """See `DeviceEngine`: `y = 2 x + 1` and `sums = x.sum(1) + k`, on the memory of a `HostCuda`.

    Attributes:
        contexts: all that were made.
        faults: methods of a context, by name, that are to fail: how many calls pass, and then what is raised.
        slow: seconds that an inference takes at most.
        can_capture: whether its inferences can become part of a graph.
    """

    input_names = ("x", "k")
    output_names = ("sums", "y")

    def __init__(self, cuda: HostCuda, device: int = 0) -> None:
        self.cuda = cuda
        self.device = device
        self.contexts: list[HostContext] = []
        self.faults: dict[str, tuple[int, Exception]] = {}
        self.slow = 0.0
        self.closed = False
        self.can_capture = True
        self._lock = threading.Lock()

    plan_bytes = 1000
    context_bytes = 300

    def dtype(self, name: str) -> np.dtype[Any]:
        return DTYPES[name]

    def create_context(self, stream: int) -> HostContext:
        self.strike("create_context")
        self.look_for_errors()
        assert self.cuda.streams[stream].device == self.device
        context = HostContext(self)
        context.set_up()
        with self._lock:
            self.contexts.append(context)
        return context

    def serialize(self) -> bytes:
        return b"plan of the double"

    def open_contexts(self) -> list[HostContext]:
        return [context for context in self.contexts if not context.closed]

    def close(self) -> None:
        assert not self.open_contexts()
        self.closed = True

    def look_for_errors(self) -> None:
        """Do as a library may that looks whether what it has launched could be."""
        if self.cuda.cudaPeekAtLastError() != (0,):
            raise EngineLoadError("TensorRT looks for failures of its own, and finds what was before.")

    def strike(self, method: str) -> None:
        with self._lock:
            if method not in self.faults:
                return
            left, error = self.faults[method]
            if left:
                self.faults[method] = (left - 1, error)
                return
            del self.faults[method]
        raise error


class HostContext:
    """See `DeviceContext`.

    As TensorRT's may be, it is set up on the default stream, which no other stream waits for, and the first inference
    of new shapes cannot be captured.
    """

    def __init__(self, engine: HostEngineOnDevice) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.shapes_set = 0
        self.addresses_set: Counter[str] = Counter()
        self.warm = False
        self.closed = False
        self._settings_up = 0
        self._in_use = threading.Lock()

    def set_up(self) -> None:
        self._settings_up += 1

        def done() -> None:
            self._settings_up -= 1

        self.engine.cuda.put(0, done)

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...] | None]:
        self.engine.strike("set_shapes")
        self.engine.look_for_errors()
        rows, width = shapes["x"]
        if width > 64:
            raise InputError("The engine was not built for this width.", input_name="x", received=shapes["x"])
        outputs = {"sums": (rows,), "y": (rows, width)}
        self.shapes, self.warm = {**shapes, **outputs}, False
        self.set_up()
        self.shapes_set += 1
        return outputs

    def set_address(self, name: str, address: int) -> None:
        self.engine.strike("set_address")
        self.addresses[name] = address
        self.addresses_set[name] += 1

    def enqueue(self, stream: int) -> dict[str, tuple[int, ...]]:
        self.engine.strike("enqueue")
        cuda = self.engine.cuda
        self.engine.look_for_errors()
        if cuda.is_capturing(stream) and not (self.warm and self.engine.can_capture):
            cuda.invalidate(stream)
            raise EngineLoadError("This inference cannot be captured.")
        self.warm = True
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        cuda.put(stream, lambda: self._infer(shapes, addresses))
        return {}

    def set_allocator(self, name: str, allocate: Callable[[int], int]) -> None:  # noqa: ARG002
        raise AssertionError(f"The shape of '{name}' depends on nothing.")

    def close(self) -> None:
        assert not self.closed
        self.closed = True

    def _infer(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        if self._settings_up:
            raise IllegalAccessError("an inference began before its context was set up")
        if self.closed or not self._in_use.acquire(blocking=False):
            raise IllegalAccessError("a context was used after its end, or twice at once")
        try:
            arrays = {}
            for name, shape in shapes.items():
                size = int(np.prod(shape)) * DTYPES[name].itemsize
                memory = self.engine.cuda.view(addresses[name], size, "device")
                arrays[name] = memory.view(DTYPES[name]).reshape(shape)
            if self.engine.slow:
                time.sleep(self.engine.slow * random.random())  # noqa: S311 (no secret)
            arrays["sums"][...], arrays["y"][...] = expected(arrays)
        finally:
            self._in_use.release()
