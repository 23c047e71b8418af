"""A call like those before, with almost nothing between numpy and the GPU."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import cuda
from ..backends.base import Array, DeviceEngine
from .plan import SHORT, BatchPlan
from .pool import SlotPool
from .slots import ONE_THREADS, is_copied_at_once, is_left_to_cuda


class Steady:
    """What was found out about calls of one batch: one that is like them need not find it out again.

    The usual way calls some 150 functions, which takes Python 20 µs while all they need is in the processor's caches.
    Rows of a few images push it out of them, and it takes over 60 µs then (on the host of an H200).

    Args:
        engine: a loaded engine.
        pool: its slots.
        plan: by which the calls were cut. Where the session has another, this holds no more.
        places: of the engine's inputs in a call, by their names.
        order: places of the wanted outputs in the engine's.
        dtypes: of the outputs, as the caller gets them.
        inputs: of such a call.
    """

    def __init__(
        self,
        engine: DeviceEngine,
        pool: SlotPool,
        plan: BatchPlan,
        *,
        places: Mapping[str, int],
        order: Sequence[int],
        dtypes: Sequence[np.dtype[Any]],
        inputs: Sequence[Array],
    ) -> None:
        self.plan = plan
        # Whether two at once would take longer than one after the other: by what was measured, when others may have
        # used the GPU, or by any of these calls that was alone.
        self.is_short = plan.is_short(len(inputs[0]))
        self._device, self._pool = engine.device, pool
        self._outputs = [(engine.output_names[place], dtype) for place, dtype in zip(order, dtypes, strict=True)]
        self._kinds = [(array.shape, array.dtype) for array in inputs]
        self._places = [(name, places[name]) for name in engine.input_names]
        self._shapes = tuple([(name, inputs[place].shape) for name, place in self._places])
        self._direct = frozenset(name for name, place in self._places if is_left_to_cuda(inputs[place].nbytes))

    @staticmethod
    def is_for(engine: DeviceEngine, places: Mapping[str, int], call: Sequence[Any], outputs: Sequence[Array]) -> bool:
        """Tell whether calls can be run so: none of it lies on a GPU, is cast, or is copied by several threads."""
        return (
            all(map(_is_plain, call))
            and all(call[place].dtype == engine.dtype(name) for name, place in places.items())
            and all(is_copied_at_once(one.nbytes) or is_left_to_cuda(one.nbytes) for one in call)
            and sum(output.nbytes for output in outputs) <= ONE_THREADS
        )

    def is_like(self, call: Sequence[Any]) -> bool:
        """Tell whether a call is like those that this was made of."""
        for array, (shape, dtype) in zip(call, self._kinds, strict=True):
            if not _is_plain(array) or array.shape != shape or array.dtype != dtype:
                return False
        return True

    def run(self, call: Sequence[Any]) -> list[Array] | None:
        """Return the outputs of a call that is like it; `None` where others use the engine."""
        began = time.perf_counter()  # before there is a slot, which Ctrl-C must not lose
        slot = self._pool.take_last(self._shapes)
        if slot is None:
            return None
        try:
            with cuda.current_device(self._device):
                done = slot.repeat({name: call[place] for name, place in self._places}, self._direct)
            outputs = [slot.output(name).astype(dtype) for name, dtype in self._outputs] if done else None
            if done and time.perf_counter() - began < SHORT:
                self.is_short = True
            self._pool.give(slot)
        except BaseException:
            self._pool.give_up(slot)
            raise
        return outputs


def _is_plain(array: Any) -> bool:
    return type(array) is np.ndarray and array.flags.c_contiguous
