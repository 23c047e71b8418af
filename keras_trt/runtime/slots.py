"""What one batch on a GPU needs: a context, a stream, pinned and device memory, and the graph that runs it."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from .. import cuda
from ..backends.base import Array, DeviceContext, DeviceEngine
from ..errors import CudaError, EngineLoadError, InputError
from . import copying

_logger = logging.getLogger("keras_trt")

#: Bytes that are copied in some µs, sooner than it is found out where they lie; and those that a single thread copies.
AT_ONCE, ONE_THREADS = 1 << 16, 2 * copying.PIECE - 1
#: Bytes of an input, about 20 µs of PCIe, from which a batch of several is launched only when they are on the GPU. Work
#: that waits there for its rows keeps that of other streams from running: ResNet50 lost a tenth (H100, batches of 32).
AHEAD = 1 << 20

# While one thread captures a graph, what another does with contexts and memory may be illegal (it may wait for the
# whole device) and break both.
_exclusive = threading.RLock()

_NOTHING: Set[str] = frozenset()

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
#: What CUDA copies from where it lies.
InPlace = cuda.DeviceArray | cuda.HostArray


def is_copied_at_once(nbytes: int) -> bool:
    """Tell whether so many bytes of an input are copied to the slot's own memory, wherever they lie."""
    return nbytes <= AT_ONCE


def is_left_to_cuda(nbytes: int) -> bool:
    """Tell whether so many bytes of a single batch are copied by CUDA from where they lie, if they fill it.

    Its copy overlaps with the GPU's, and that of a single thread does not: 2 MiB took 152 µs and 212, 600 KiB 53 and 55
    (on the host of an H200). More of them are copied faster by several threads.
    """
    return AT_ONCE < nbytes <= ONE_THREADS


class Slot:
    """A context with its stream, its memory for one set of shapes, and the graph that runs them.

    One shape to a context: what TensorRT prepares for a shape when it is set is not part of the graph.

    Args:
        engine: a loaded engine; its device must be current for all that a slot does.
    """

    def __init__(self, engine: DeviceEngine) -> None:
        self._engine = engine
        self.shapes: Shapes | None = None
        self.holder: int | None = None  # the thread that has it from its pool
        self._buffers: dict[str, _Buffer] = {}
        # By the names of what they do not copy; `None` where it cannot be recorded.
        self._graphs: dict[Set[str], cuda.Graph | None] = {}
        self._can_record = True
        self._given: Mapping[str, InPlace] = {}
        self._targets: Mapping[str, cuda.DeviceArray] = {}
        self._ahead: Sequence[str] = ()
        self._has_run = False
        with _exclusive, ExitStack() as undo:
            self._stream = cuda.Stream()
            undo.callback(self._stream.close)
            # Here and below: a library may look for failures of its own by CUDA's last error, which may be that there
            # was no memory, or what Ctrl-C kept from being forgotten.
            cuda.forget_error()
            self._context: DeviceContext = engine.create_context(self._stream.address)
            undo.callback(self._context.close)
            cuda.wait_for_default_stream()  # where a library may have set the context up
            undo.pop_all()

    def stage(
        self,
        feeds: Mapping[str, Array | InPlace | copying.Rows],
        targets: Mapping[str, cuda.DeviceArray] | None = None,
        *,
        threads: int = copying.THREADS,
        pieces_a_thread: int = 1,
    ) -> None:
        """Begin to bring in the rows of one inference. `launch` and `wait` must follow; after an error `wait` alone.

        Where other batches are under way, `send` comes before `launch`.

        Args:
            feeds: rows for each input. One with fewer rows than its shape is padded by its last.
            targets: where on a GPU the rows of an output go; all others go to the host.
            threads: how many copy a large input.
            pieces_a_thread: into how many pieces it is cut for each. The GPU is sent those that are there, while the
                others are copied.
        """
        self._given = {name: one for name, one in feeds.items() if isinstance(one, InPlace)}
        self._targets = targets or {}
        self._ahead = ()
        if self._given or self._targets:
            self._check_types()
        for name, array in feeds.items():
            if not isinstance(array, InPlace):
                self._buffers[name].begin(array, threads, pieces_a_thread)

    @property
    def is_staged(self) -> bool:
        """Whether `send` need not wait for other threads that still copy rows to the slot's own memory."""
        unfinished = [buffer for buffer in self._buffers.values() if buffer.copy and buffer.copy.is_under_way]
        return not unfinished

    @property
    def is_idle(self) -> bool:
        """Whether the GPU has done all that it was given: what was sent is there, and what was launched has run."""
        return self._stream.is_idle

    def send(self) -> None:
        """Begin to bring to the GPU, ahead of `launch`, what takes a while."""
        names = self._engine.input_names
        self._ahead = [name for name in names if self._buffers[name].array.nbytes >= AHEAD and self._is_on_host(name)]
        for name in self._ahead:
            self._bring(name)

    def launch(self) -> None:
        """Put the inference on the stream, with the copies of its rows that were not sent, as they are there."""
        given, targets, ahead = self._given, self._targets, self._ahead
        if ahead:
            self._stream.synchronize()
        names = self._engine.input_names
        coming = [name for name in names if self._buffers[name].comes_in_pieces]
        apart = frozenset((*given, *targets, *ahead, *coming)) if given or targets or ahead or coming else _NOTHING
        if self._has_run and self._can_record and apart not in self._graphs:
            self._record(apart)  # before anything is put on the stream, which must be idle
        for name in names:
            if name in ahead:
                continue
            if name in apart:
                self._bring(name)
            else:
                self._buffers[name].fill()
        for target in targets.values():
            target.order(self._stream)
        graph = self._graphs.get(apart)
        if graph is not None:
            graph.launch(self._stream)
        else:
            self._enqueue(apart)
        for name, target in targets.items():
            if target.nbytes <= self._buffers[name].array.nbytes:  # else there is less than was asked for
                target.copy_from(self._buffers[name].device, self._stream)
        self._has_run = True

    def repeat(self, arrays: Mapping[str, Array], direct: Set[str]) -> bool:
        """Run one inference to its end by the graph that was recorded for it; `False` where there is none.

        Args:
            arrays: each input, of its shape and type.
            direct: names of those that CUDA copies from where they lie.
        """
        graph = self._graphs.get(direct)
        if graph is None:
            return False
        for name, array in arrays.items():
            buffer = self._buffers[name]
            if name in direct:
                cuda.HostArray(array).copy_to(buffer.device, len(array), self._stream)
            else:
                np.copyto(buffer.array, array)
        graph.launch(self._stream)
        self._stream.synchronize()
        return True

    def wait(self) -> None:
        """Wait for all that was begun, and put on the stream. May be called again, as after Ctrl-C."""
        try:
            if unfinished := [buffer.finish for buffer in self._buffers.values() if buffer.copy is not None]:
                with ExitStack() as ending:  # all of them, whatever one raises
                    for finish in unfinished:
                        ending.callback(finish)
        finally:
            self._given = self._targets = {}
            self._stream.synchronize()

    @property
    def knows_shapes(self) -> bool:
        """Whether the shapes of its outputs follow from those of its inputs, and not from the data."""
        return self._can_record

    @property
    def buffer_bytes(self) -> tuple[int, int]:
        """How much its inputs and outputs take on the GPU, and on the host."""
        sizes = [(one.device.size_bytes, one.pinned.size_bytes) for one in self._buffers.values()]
        return sum(on_gpu for on_gpu, _ in sizes), sum(pinned for _, pinned in sizes)

    @property
    def outputs(self) -> list[Array]:
        """What was inferred: views of the slot's memory, right from `wait` until the next start."""
        return [self.output(name) for name in self._engine.output_names]

    def output(self, name: str) -> Array:
        """Return one of `outputs`."""
        return self._buffers[name].array

    def prepare(self, shapes: Shapes) -> None:
        """Take the shapes: memory for them, and the context's own preparations."""
        with _exclusive:
            self._drop_graphs()
            self.shapes = None
            self._has_run = False
            cuda.forget_error()
            outputs = self._context.set_shapes(dict(shapes))
            # What allocates, and waits for the GPU, while it is put on the stream cannot be part of a graph.
            self._can_record = None not in outputs.values()
            for name, shape in (*shapes, *outputs.items()):
                dtype = self._engine.dtype(name)
                size = 0 if shape is None else math.prod(shape) * dtype.itemsize
                buffer = self._buffers.get(name)
                if buffer is None:
                    buffer = self._buffers[name] = _Buffer(size, dtype)
                if shape is None:
                    self._context.set_allocator(name, buffer.allocate)
                else:
                    self._context.set_address(name, buffer.allocate(size))
                    buffer.take(shape)
            cuda.wait_for_default_stream()
            self.shapes = shapes

    def close(self) -> None:
        """Free all of it. It must be idle."""
        with _exclusive, ExitStack() as closing:
            closing.callback(self._stream.close)
            for buffer in self._buffers.values():
                closing.callback(buffer.close)
            closing.callback(self._context.close)
            closing.callback(self._drop_graphs)
        self._buffers = {}

    def _check_types(self) -> None:
        for name, one in (*self._given.items(), *self._targets.items()):
            if one.dtype != self._engine.dtype(name):
                expected = str(self._engine.dtype(name))
                raise InputError(
                    f"The engine has {expected} for '{name}', and only what lies on the host is cast. "
                    f"Received: {one.dtype} on a GPU.",
                    input_name=name,
                    expected=expected,
                    received=str(one.dtype),
                )

    def _is_on_host(self, name: str) -> bool:
        return not isinstance(self._given.get(name), cuda.DeviceArray)

    def _bring(self, name: str) -> None:
        """Put the copy of an input to the GPU on the stream, from where it lies or from the slot's own memory."""
        buffer, array = self._buffers[name], self._given.get(name)
        if array is None:
            buffer.bring(self._stream)
        else:
            array.order(self._stream)
            array.copy_to(buffer.device, len(buffer.array), self._stream)

    def _enqueue(self, apart: Set[str] = _NOTHING) -> None:
        """Put copies and inference on the stream, without the copies of what is brought and fetched apart from them."""
        for name in self._engine.input_names:
            if name not in apart:
                buffer = self._buffers[name]
                cuda.copy_to_device(buffer.device, buffer.pinned, buffer.array.nbytes, self._stream)
        cuda.forget_error()
        for name, shape in self._context.enqueue(self._stream.address).items():
            self._buffers[name].take(shape)
        for name in self._engine.output_names:
            if name not in apart:
                buffer = self._buffers[name]
                cuda.copy_to_host(buffer.pinned, buffer.device, buffer.array.nbytes, self._stream)

    def _record(self, apart: Set[str]) -> None:
        # The first run, without a graph, was the warm-up that a capture needs.
        try:
            with _exclusive:
                self._graphs[apart] = cuda.capture(self._stream, partial(self._enqueue, apart))
        except (CudaError, EngineLoadError) as error:
            # Some layers (loops, conditionals) cannot be captured. They run as well without, only slower.
            self._graphs[apart] = None
            _logger.debug("No CUDA graph for %s: %s", self.shapes, error)

    def _drop_graphs(self) -> None:
        while self._graphs:
            _, graph = self._graphs.popitem()
            if graph is not None:
                graph.close()


class _Buffer:
    """One tensor's pinned and device memory, which grows and is kept, and its view as an array of the shape in use."""

    def __init__(self, size: int, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self.copy: copying.Copy | None = None
        self._rows = 0
        self.array: Array = np.empty(0, dtype)
        self.device = cuda.DeviceMemory(size)
        try:
            self.pinned = cuda.PinnedMemory(size)
        except BaseException:
            self.device.close()
            raise

    def allocate(self, size: int) -> int:
        """Return the address of device memory of that size."""
        with _exclusive:
            return self.device.grow(size)

    def take(self, shape: tuple[int, ...]) -> None:
        """Take a shape, which the device memory has room for."""
        self.finish()
        size = math.prod(shape) * self._dtype.itemsize
        self.array = np.empty(0, self._dtype)
        with _exclusive:
            self.pinned.grow(size)
        self.array = self.pinned.array[:size].view(self._dtype).reshape(shape)

    def begin(self, source: Array | copying.Rows, threads: int, pieces_a_thread: int) -> None:
        """Begin to copy rows to pinned memory by so many threads; what a single one copies is copied at once."""
        self.finish()
        self._rows = len(source)
        target = self.array[: self._rows]
        if target.nbytes <= ONE_THREADS:
            copying.put(target, source)
        else:
            self.copy = copying.Copy(target, source, threads, pieces_a_thread)
            self.copy.begin()

    @property
    def comes_in_pieces(self) -> bool:
        """Whether other threads may still copy rows of it, in several pieces."""
        return self.copy is not None and self.copy.begun

    def finish(self, there: Callable[[int], None] | None = None) -> None:
        """Wait until the rows are there: also those of a call that a second Ctrl-C kept from it. See `Copy.finish`."""
        if self.copy is not None:
            self.copy.finish(there)
            self.copy = None  # not before: whoever is interrupted here finishes again

    def fill(self) -> None:
        """Wait until the rows are there, and repeat the last one up to the buffer's size."""
        if self.copy is not None:
            self.finish()
        if self._rows < len(self.array):
            self.array[self._rows :] = self.array[self._rows - 1]  # a real row cannot overflow where the others do not

    def bring(self, stream: cuda.Stream) -> None:
        """Wait until the rows are there, and put their copy to the GPU on the stream: of each piece as it is there."""
        row, sent = self.array.nbytes // len(self.array), 0

        def arrived(rows: int) -> None:
            nonlocal sent
            cuda.copy_to_device(self.device, self.pinned, (rows - sent) * row, stream, start=sent * row)
            sent = rows

        self.finish(arrived)
        self.fill()
        if sent < len(self.array):
            arrived(len(self.array))

    def close(self) -> None:
        with ExitStack() as closing:
            closing.callback(self.pinned.close)
            closing.callback(self.device.close)
            closing.callback(self.finish)
            self.array = np.empty(0, self._dtype)
