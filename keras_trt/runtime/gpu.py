"""numpy → pinned memory → GPU → pinned memory → numpy, for many threads at once."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, overload

from .. import cuda
from ..backends.base import Array, DeviceEngine
from ..errors import CudaError, EngineLoadError
from .plan import Batch
from .results import Results
from .slots import Shapes, Slot

_logger = logging.getLogger("keras_trt")

#: Execution contexts of one engine. Each holds TensorRT's activation memory for the largest batch, so few of them:
#: enough for the batch sizes in use (the largest, the tail's, 1) or for as many threads.
MAX_SLOTS = 4


@dataclass(frozen=True)
class Usage:
    """What an engine holds on one GPU, and on the host for it.

    Attributes:
        device: the GPU, as `"cuda:0"`.
        slots: how many batches can be under way.
        engine_bytes: the size of the plan, most of which are weights.
        context_bytes: memory for activations, of all slots.
        buffer_bytes: inputs and outputs on the GPU. Outputs whose shape depends on the data take what the largest took.
        pinned_bytes: inputs and outputs on the host, page-locked.
    """

    device: str
    slots: int
    engine_bytes: int
    context_bytes: int
    buffer_bytes: int
    pinned_bytes: int


class GpuRunner:
    """Runs a `DeviceEngine` batch by batch on numpy arrays. Safe to call from many threads.

    It keeps up to `MAX_SLOTS` slots, each with a context, a stream and memory of its own. A batch takes an idle
    slot that last ran its shapes, else a new one, else another whose shapes are changed. The second call of a slot
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
        self._waiting = 0
        self._limit = MAX_SLOTS
        self._closed = False
        self._changed = threading.Condition()

    def run(
        self,
        feeds: Mapping[str, Array | cuda.DeviceArray],
        batches: Iterable[Batch],
        order: Sequence[int],
        results: Results,
    ) -> None:
        """Run batches of rows: while the GPU computes one, the next is copied in, and the one before copied out.

        Args:
            feeds: all rows of each input, on the host or on a GPU.
            batches: which rows run together; their shapes must lie in the engine's profile.
            order: places in `output_names` of the outputs that are wanted.
            results: takes them.

        Raises:
            InputError: if a shape is outside the profile, or an integer does not fit the engine's type.
            CudaError, EngineLoadError: if CUDA or TensorRT fails, as for want of memory.
        """
        wanted = [self.output_names[place] for place in order]
        under_way: deque[tuple[Slot, Batch]] = deque()

        def finish() -> None:
            slot, batch = under_way[0]
            slot.wait()
            outputs = slot.outputs
            results.put(batch, [outputs[place] for place in order])
            under_way.popleft()
            self._give(slot)

        with cuda.current_device(self._engine.device):
            try:
                for batch in batches:
                    shapes: Shapes = tuple((name, (batch.size, *feeds[name].shape[1:])) for name in self.input_names)
                    # Who holds slots must not wait for another: two calls might wait for each other.
                    while (slot := self._take(shapes, wait=not under_way)) is None:
                        finish()
                    under_way.append((slot, batch))
                    rows = {name: feeds[name][batch.start : batch.stop] for name in self.input_names}
                    slot.start(rows, results.targets(batch, wanted))
                while under_way:
                    finish()
            finally:
                # After a failure: what was put on a stream must not run into the next call's memory.
                with ExitStack() as leaving:
                    for slot, _ in under_way:
                        leaving.callback(self._give, slot)
                        leaving.callback(slot.wait)

    def reserve(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Take now what a call with these shapes will need, so that want of memory shows now.

        Raises:
            CudaError, EngineLoadError: if there is not so much.
        """
        wanted: Shapes = tuple((name, shapes[name]) for name in self.input_names)
        with cuda.current_device(self._engine.device):
            self._give(self._take(wanted, wait=True))

    def usage(self) -> list[Usage]:
        """Return what is held on the GPU; slots that are in use now count as those that are idle."""
        with self._changed:  # nobody takes a slot and changes its buffers meanwhile
            made, held = self._made, [slot.buffer_bytes for slot in self._idle]
        on_gpu, pinned = (sum(sizes) * made // len(held) for sizes in zip(*held, strict=True)) if held else (0, 0)
        return [
            Usage(
                f"cuda:{self._engine.device}",
                made,
                self._engine.plan_bytes,
                made * self._engine.context_bytes,
                on_gpu,
                pinned,
            )
        ]

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

    @overload
    def _take(self, shapes: Shapes, *, wait: Literal[True]) -> Slot: ...
    @overload
    def _take(self, shapes: Shapes, *, wait: bool) -> Slot | None: ...
    def _take(self, shapes: Shapes, *, wait: bool) -> Slot | None:
        """Return a slot with the shapes, or `None` where there is none to be had now."""
        while True:
            with self._changed:
                while True:
                    if self._closed:
                        raise RuntimeError("This engine is closed.")
                    if self._waiting and not wait:
                        return None  # who has slots lets others go first
                    slot = self._idle_slot(shapes)
                    if slot is not None or self._made < self._limit:
                        break
                    if not wait:
                        return None
                    self._waiting += 1
                    try:
                        self._changed.wait()
                    finally:
                        self._waiting -= 1
                self._made += slot is None
            prepared = self._prepared(slot, shapes)
            if prepared is not None:
                return prepared

    def _prepared(self, slot: Slot | None, shapes: Shapes) -> Slot | None:
        """Return a slot, a new one where none is given, with the shapes; `None` where others are left to wait for.

        A slot that finds no memory is given up, with all that it holds: there are fewer from now on.
        """
        try:
            if slot is None:
                slot = Slot(self._engine)
            if slot.shapes != shapes:
                slot.prepare(shapes)
        except BaseException as error:
            if slot is not None and not (isinstance(error, CudaError) and error.out_of_memory):
                self._give(slot)
                raise
            if not self._drop(slot) or not isinstance(error, CudaError | EngineLoadError):
                raise
            _logger.info("The GPU has room for %d slots of this engine: %s", self._limit, error)
            return None
        return slot

    def _drop(self, slot: Slot | None) -> bool:
        """Do with one slot less from now on; `False` where none is left."""
        try:
            if slot is not None:
                slot.close()
        finally:
            with self._changed:
                self._made -= 1
                self._limit = max(self._made, 1)
                self._changed.notify_all()
        return self._made > 0

    def _idle_slot(self, shapes: Shapes) -> Slot | None:
        """Return an idle slot that has the shapes, or is to change its own as no more may be made."""
        for slot in self._idle:
            if slot.shapes == shapes:
                self._idle.remove(slot)
                return slot
        if self._idle and self._made >= self._limit:
            return self._idle.pop(0)  # the one that has been idle longest
        return None

    def _give(self, slot: Slot) -> None:
        with self._changed:
            self._idle.append(slot)
            self._changed.notify_all()
