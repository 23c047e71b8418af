"""numpy → pinned memory → GPU → pinned memory → numpy, for many threads at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from .. import cuda
from ..backends.base import Array, DeviceContext, DeviceEngine
from ..errors import CudaError, EngineLoadError, InputError

_logger = logging.getLogger("keras_trt")

#: Execution contexts of one engine. Each holds TensorRT's activation memory for the largest batch, so few of them:
#: enough for the batch sizes in use (the largest, the tail's, 1) or for as many threads.
MAX_SLOTS = 4

# While one thread captures a graph, what another does with contexts and memory may be illegal (it may wait for the
# whole device) and break both.
_exclusive = threading.RLock()

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class GpuRunner:
    """Runs a `DeviceEngine` on numpy arrays. Safe to call from many threads.

    It keeps up to `MAX_SLOTS` slots, each with a context, a stream and memory of its own. A call takes an idle
    slot that last ran its shapes, else makes one, else gives another one its shapes. The second call of a slot
    with the same shapes records a CUDA graph, and all further ones launch that.

    Args:
        engine: a loaded engine. `close` closes it too.
    """

    def __init__(self, engine: DeviceEngine) -> None:
        self.input_names = engine.input_names
        self.output_names = engine.output_names
        self._engine = engine
        self._idle: list[_Slot] = []
        self._made = 0
        self._limit = MAX_SLOTS
        self._closed = False
        self._changed = threading.Condition()

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs for `feeds`, in the order of `output_names`.

        Args:
            feeds: an array for each input; shapes must lie in the engine's profile.

        Raises:
            InputError: if a shape is outside the profile, or an integer does not fit the engine's type.
            CudaError, EngineLoadError: if CUDA or TensorRT fails, as for want of memory.
        """
        shapes: Shapes = tuple((name, feeds[name].shape) for name in self.input_names)
        with cuda.current_device(self._engine.device):
            slot = self._take(shapes)
            try:
                return slot.run(shapes, feeds)
            finally:
                self._give(slot)

    def reserve(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Take now what a call with these shapes will need, so that want of memory shows now.

        Raises:
            CudaError, EngineLoadError: if there is not so much.
        """
        wanted: Shapes = tuple((name, shapes[name]) for name in self.input_names)
        with cuda.current_device(self._engine.device):
            slot = self._take(wanted)
            try:
                slot.prepare(wanted)
            finally:
                self._give(slot)

    def plan(self) -> bytes:
        """Return the engine as a plan.

        Raises:
            EngineLoadError: if it cannot be written as one.
        """
        with cuda.current_device(self._engine.device):
            return self._engine.serialize()

    def close(self) -> None:
        """Free all that is held on the GPU, after the calls under way."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()  # those who wait for a slot must hear of it
            self._changed.wait_for(lambda: len(self._idle) == self._made)
            idle, self._idle, self._made = self._idle, [], 0
        with cuda.current_device(self._engine.device), ExitStack() as closing:
            closing.callback(self._engine.close)  # the last: contexts must be gone
            for slot in idle:
                closing.callback(slot.close)

    def _take(self, shapes: Shapes) -> _Slot:
        while True:
            with self._changed:
                slot = self._idle_slot(shapes)
                if slot is not None:
                    return slot
                self._made += 1
            try:
                return _Slot(self._engine)
            except BaseException as error:
                with self._changed:
                    self._made -= 1
                    self._changed.notify_all()
                    if self._made == 0 or not isinstance(error, CudaError | EngineLoadError):
                        raise
                    self._limit = self._made  # there is memory for so many; they serve all
                    _logger.info("The GPU has room for %d slots of this engine: %s", self._limit, error)

    def _idle_slot(self, shapes: Shapes) -> _Slot | None:
        """Return a slot to use, waiting for one if need be, or `None` if one more may be made."""
        while True:
            if self._closed:
                raise RuntimeError("This engine is closed.")
            for slot in self._idle:
                if slot.shapes == shapes:
                    self._idle.remove(slot)
                    return slot
            if self._made < self._limit:
                return None
            if self._idle:
                return self._idle.pop(0)  # the one that has been idle longest
            self._changed.wait()

    def _give(self, slot: _Slot) -> None:
        with self._changed:
            self._idle.append(slot)
            self._changed.notify_all()


class _Slot:
    """A context with its stream, its memory for one set of shapes, and the graph that runs them."""

    def __init__(self, engine: DeviceEngine) -> None:
        self._engine = engine
        self.shapes: Shapes | None = None
        self._buffers: dict[str, _Buffer] = {}
        self._graph: cuda.Graph | None = None
        self._runs = 0
        with _exclusive, ExitStack() as undo:
            self._stream = cuda.Stream()
            undo.callback(self._stream.close)
            self._context: DeviceContext = engine.create_context(self._stream.address)
            undo.callback(self._context.close)
            cuda.wait_for_default_stream()  # where a library may have set the context up
            undo.pop_all()

    def run(self, shapes: Shapes, feeds: Mapping[str, Array]) -> list[Array]:
        if shapes != self.shapes:
            self.prepare(shapes)
        for name, _ in shapes:
            self._buffers[name].fill(name, feeds[name])
        try:
            if self._runs == 1 and self._graph is None:
                self._record()
            if self._graph is not None:
                self._graph.launch(self._stream)
            else:
                self._enqueue()
        finally:
            # Also after a failure: what was put on the stream must not run into the next call's memory.
            self._stream.synchronize()
        self._runs += 1
        return [self._buffers[name].array.copy() for name in self._engine.output_names]

    def prepare(self, shapes: Shapes) -> None:
        """Take the shapes: memory for them, and the context's own preparations."""
        with _exclusive:
            self._drop_graph()
            self.shapes = None
            self._runs = 0
            outputs = self._context.set_shapes(dict(shapes))
            for name, shape in (*shapes, *outputs.items()):
                buffer = self._buffers.get(name)
                if buffer is None or not buffer.reshape(shape):
                    if buffer is not None:
                        del self._buffers[name]
                        buffer.close()
                    buffer = self._buffers[name] = _Buffer(shape, self._engine.dtype(name))
                self._context.set_address(name, buffer.device.address)
            cuda.wait_for_default_stream()
            self.shapes = shapes

    def close(self) -> None:
        with _exclusive, ExitStack() as closing:
            closing.callback(self._stream.close)
            for buffer in self._buffers.values():
                closing.callback(buffer.close)
            closing.callback(self._context.close)
            closing.callback(self._drop_graph)
        self._buffers = {}

    def _enqueue(self) -> None:
        for name in self._engine.input_names:
            buffer = self._buffers[name]
            cuda.copy_to_device(buffer.device, buffer.pinned, buffer.array.nbytes, self._stream)
        self._context.enqueue(self._stream.address)
        for name in self._engine.output_names:
            buffer = self._buffers[name]
            cuda.copy_to_host(buffer.pinned, buffer.device, buffer.array.nbytes, self._stream)

    def _record(self) -> None:
        # The first run, without a graph, was the warm-up that a capture needs.
        try:
            with _exclusive:
                self._graph = cuda.capture(self._stream, self._enqueue)
        except (CudaError, EngineLoadError) as error:
            # Some layers (loops, conditionals) cannot be captured. They run as well without, only slower.
            _logger.debug("No CUDA graph for %s: %s", self.shapes, error)

    def _drop_graph(self) -> None:
        if self._graph is not None:
            graph, self._graph = self._graph, None
            graph.close()


class _Buffer:
    """One tensor's pinned and device memory, and its view as an array of the shape in use."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        size = int(np.prod(shape)) * dtype.itemsize
        self.device = cuda.DeviceMemory(size)
        try:
            self.pinned = cuda.PinnedMemory(size)
        except BaseException:
            self.device.close()
            raise
        self.array: Array = np.empty(0, dtype)
        self.reshape(shape)

    def reshape(self, shape: tuple[int, ...]) -> bool:
        """Take another shape in the memory at hand; `False` if it is too small."""
        size = int(np.prod(shape)) * self._dtype.itemsize
        if size > self.device.size_bytes:
            return False
        self.array = self.pinned.array[:size].view(self._dtype).reshape(shape)
        return True

    def fill(self, name: str, source: Array) -> None:
        if source.dtype.kind in "iu" and source.size and not np.can_cast(source.dtype, self._dtype):
            # TensorRT 8.6 has no int64: the engine's input is int32.
            limits = np.iinfo(self._dtype)
            low, high = int(source.min()), int(source.max())
            if low < limits.min or high > limits.max:
                raise InputError(
                    f"Input '{name}' holds integers that this engine, whose type is {self._dtype}, cannot take.",
                    input_name=name,
                    expected=f"{limits.min} to {limits.max}",
                    received=f"{low} to {high}",
                )
        np.copyto(self.array, source, casting="unsafe")

    def close(self) -> None:
        self.array = np.empty(0, self._dtype)
        self.device.close()
        self.pinned.close()
