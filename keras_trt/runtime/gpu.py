"""numpy → pinned memory → GPU → pinned memory → numpy, for many threads at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import ExitStack

from .. import cuda
from ..backends.base import Array, DeviceEngine
from ..errors import CudaError, EngineLoadError
from .slots import Shapes, Slot

_logger = logging.getLogger("keras_trt")

#: Execution contexts of one engine. Each holds TensorRT's activation memory for the largest batch, so few of them:
#: enough for the batch sizes in use (the largest, the tail's, 1) or for as many threads.
MAX_SLOTS = 4


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
        self._idle: list[Slot] = []
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
                try:
                    slot.start(shapes, feeds)
                finally:
                    # Also after a failure: what was put on the stream must not run into the next call's memory.
                    slot.wait()
                return [output.copy() for output in slot.outputs]
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

    def _take(self, shapes: Shapes) -> Slot:
        while True:
            with self._changed:
                slot = self._idle_slot(shapes)
                if slot is not None:
                    return slot
                self._made += 1
            try:
                return Slot(self._engine)
            except BaseException as error:
                with self._changed:
                    self._made -= 1
                    self._changed.notify_all()
                    if self._made == 0 or not isinstance(error, CudaError | EngineLoadError):
                        raise
                    self._limit = self._made  # there is memory for so many; they serve all
                    _logger.info("The GPU has room for %d slots of this engine: %s", self._limit, error)

    def _idle_slot(self, shapes: Shapes) -> Slot | None:
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

    def _give(self, slot: Slot) -> None:
        with self._changed:
            self._idle.append(slot)
            self._changed.notify_all()
