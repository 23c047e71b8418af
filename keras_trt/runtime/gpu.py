"""numpy → pinned memory → GPU → pinned memory → numpy, for many threads at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import cuda
from .._interrupts import deferred
from ..backends.base import Array, DeviceEngine
from ..errors import InputError
from ..specs import Pipelining
from . import copying
from .pipeline import Pipeline
from .plan import Batch, BatchPlan
from .pool import SlotPool
from .results import Results
from .slots import InPlace, Shapes, Slot, is_copied_at_once, is_left_to_cuda
from .steady import Steady

#: Rows are copied, on their way or computed, and copied back: a call of a few batches that has so many slots lets the
#: others keep their shapes. To change them takes longer than it gains, also for whose shapes they were.
ENOUGH, FEW = 3, 8
#: Of a call of one batch, so that the GPU is sent what is there while the rest is copied: 32 images of 600 kB took
#: ResNet50 2.5 ms for 2.9 with one piece. Several batches overlap anyway, and had 2 % less throughput so (on an H200).
PIECES_A_THREAD = 4

Feed = Array | InPlace | copying.Rows
Feeds = Mapping[str, Feed]


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

    Each batch under way has a slot of its own: a context, a stream and memory. The second call of a slot with the same
    shapes records a CUDA graph, and all further ones launch that.

    Args:
        engine: a loaded engine. `close` closes it too.
    """

    def __init__(self, engine: DeviceEngine) -> None:
        self.input_names = engine.input_names
        self.output_names = engine.output_names
        self._engine = engine
        self._pool = SlotPool(engine)
        self._threads = copying.THREADS
        self.joins = False  # whether a batch may hold rows of several calls, as is known after the first

    def run(
        self,
        feeds: Feeds,
        batches: Iterable[Batch],
        order: Sequence[int],
        results: Results,
        *,
        nested: bool = False,
    ) -> None:
        """Run batches of rows: while the GPU computes one, the next is copied in, and the one before copied out.

        Args:
            feeds: all rows of each input, on the host or on a GPU. What lies there or in page-locked memory is not
                copied on the host.
            batches: which rows run together; their shapes must lie in the engine's profile.
            order: places in `output_names` of the outputs that are wanted.
            results: takes them.
            nested: whether the thread has another call under way, as in a handler of a signal: it may hold all slots.

        Raises:
            InputError: if a shape is outside the profile, or an integer does not fit the engine's type.
            CudaError, EngineLoadError: if CUDA or TensorRT fails, as for want of memory.
        """
        wanted = [self.output_names[place] for place in order]
        self.check(feeds)
        with cuda.current_device(self._engine.device):
            one = batches[0] if isinstance(batches, list) and len(batches) == 1 else None
            feeds = {name: self._in_place(name, array, one.size if one else 0) for name, array in feeds.items()}
            if one is not None:
                self._run_one(feeds, one, order, wanted, results, nested=nested)
            else:
                self._pipeline(feeds, batches, order, wanted, results, nested=nested)

    def steady(
        self,
        plan: BatchPlan,
        call: Sequence[Any],
        outputs: Sequence[Array],
        *,
        places: Mapping[str, int],
        order: Sequence[int],
        dtypes: Sequence[np.dtype[Any]],
    ) -> Steady | None:
        """Return what runs calls like one that gave these outputs, if they can be: arguments as of `Steady`."""
        if not (self.joins and Steady.is_for(self._engine, places, call, outputs)):
            return None
        return Steady(self._engine, self._pool, plan, places=places, order=order, dtypes=dtypes, inputs=call)

    def _run_one(
        self, feeds: Feeds, batch: Batch, order: Sequence[int], wanted: Sequence[str], results: Results, *, nested: bool
    ) -> None:
        """Run a single batch, with as little as can be between the rows and the GPU."""
        slot = self._pool.take(self._shapes(feeds, batch), wait=True, nested=nested)
        try:
            targets = results.targets(batch, wanted)
            slot.stage(feeds, targets, threads=self._threads, pieces_a_thread=PIECES_A_THREAD)
            slot.launch()
            slot.wait()
            outputs = slot.outputs
            results.put(batch, [outputs[place] for place in order])
            # Outputs whose shape depends on the data would be those of all rows, which shows in single calls alone.
            self.joins = slot.knows_shapes
            self._pool.give(slot)
        except BaseException:
            self._pool.give_up(slot)
            raise

    def _pipeline(
        self,
        feeds: Feeds,
        batches: Iterable[Batch],
        order: Sequence[int],
        wanted: Sequence[str],
        results: Results,
        *,
        nested: bool,
    ) -> None:
        """Run batches over as many slots as can be had."""
        few = isinstance(batches, list) and len(batches) <= FEW

        def take(batch: Batch, held: int) -> Slot | None:
            # Who holds slots must not wait for another: two calls might wait for each other.
            shapes, change = self._shapes(feeds, batch), not few or held < ENOUGH
            return self._pool.take(shapes, wait=not held, change=change, nested=nested and not held)

        def stage(slot: Slot, batch: Batch) -> None:
            rows = {name: feeds[name][batch.start : batch.stop] for name in self.input_names}
            slot.stage(rows, results.targets(batch, wanted), threads=self._threads)

        def give(slot: Slot, batch: Batch) -> None:
            outputs = slot.outputs
            results.put(batch, [outputs[place] for place in order])
            self._pool.give(slot)

        pipeline = Pipeline(batches, take=take, stage=stage, give=give)
        try:
            pipeline.run()
        except BaseException:
            with deferred(), ExitStack() as leaving:  # a second Ctrl-C must lose none of them
                for slot, _ in pipeline.under_way:
                    leaving.callback(self._pool.give_up, slot)
            raise

    def check(self, feeds: Feeds) -> None:
        """Raise an `InputError` where integers on the host do not fit the engine's type: TensorRT 8.6 has no int64."""
        for name, array in feeds.items():
            dtype = self._engine.dtype(name)
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or np.can_cast(array.dtype, dtype):
                continue
            limits = np.iinfo(dtype)
            low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
            if low < limits.min or high > limits.max:
                raise InputError(
                    f"Input '{name}' holds integers that this engine, whose type is {dtype}, cannot take.",
                    input_name=name,
                    expected=f"{limits.min} to {limits.max}",
                    received=f"{low} to {high}",
                )

    def _in_place(self, name: str, array: Feed, alone: int) -> Feed:
        """Return an array as what CUDA reads where it lies, if that is possible; small ones are copied faster.

        Args:
            name: of the input.
            array: its rows.
            alone: in which size a single batch is run; 0 where there are several.
        """
        if not isinstance(array, np.ndarray) or is_copied_at_once(array.nbytes):
            return array
        if array.dtype != self._engine.dtype(name) or not array.flags.c_contiguous:
            return array
        locked = cuda.in_pinned_memory(array)
        left = locked is False and is_left_to_cuda(array.nbytes) and len(array) == alone
        return cuda.HostArray(array) if locked or left else array

    def _shapes(self, feeds: Feeds, batch: Batch) -> Shapes:
        return tuple([(name, (batch.size, *feeds[name].shape[1:])) for name in self.input_names])

    def pipeline(self, how: Pipelining) -> None:
        """Run pipelines so from now on."""
        self._threads = how.threads
        with cuda.current_device(self._engine.device):
            self._pool.resize(how.slots)

    def reserve(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Take now what a call with these shapes will need, so that want of memory shows now.

        Raises:
            CudaError, EngineLoadError: if there is not so much.
        """
        wanted: Shapes = tuple((name, shapes[name]) for name in self.input_names)
        with cuda.current_device(self._engine.device):
            self._pool.give(self._pool.take(wanted, wait=True))

    def usage(self) -> list[Usage]:
        """Return what is held on the GPU; slots that are in use now count as those that are idle."""
        made, on_gpu, pinned = self._pool.held()
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
        idle = self._pool.close()
        with cuda.current_device(self._engine.device), ExitStack() as closing:
            closing.callback(self._engine.close)  # the last: contexts must be gone
            for slot in idle:
                closing.callback(slot.close)
