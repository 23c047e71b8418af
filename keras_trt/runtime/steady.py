"""A call like the one before, with almost nothing between numpy and the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import cuda
from ..backends.base import Array, DeviceEngine
from ..errors import CudaError
from .plan import BatchPlan
from .pool import SlotPool
from .slots import AT_ONCE, is_left_to_cuda


class Steady:
    """What was found out about a call of one batch: one that is like it need not find it out again.

    The usual way calls some 150 functions, which takes Python 20 µs while all they need is in the processor's caches.
    Rows of a few images push it out of them, and it takes over 100 µs then (measured on a host of an H200).

    Args:
        engine: a loaded engine.
        pool: its slots.
        plan: by which the call was cut. Where the session has another, this holds no more.
        feeds: names of the engine's inputs, and places of their arrays in a call.
        order: places of the wanted outputs in the engine's.
        dtypes: of the outputs, as the caller gets them.
        inputs: of the call.
    """

    def __init__(
        self,
        engine: DeviceEngine,
        pool: SlotPool,
        plan: BatchPlan,
        *,
        feeds: Sequence[tuple[int, str]],
        order: Sequence[int],
        dtypes: Sequence[np.dtype[Any]],
        inputs: Sequence[Array],
    ) -> None:
        self.plan = plan
        self._device, self._pool = engine.device, pool
        self._outputs = [(engine.output_names[place], dtype) for place, dtype in zip(order, dtypes, strict=True)]
        self._kinds = [(array.shape, array.dtype) for array in inputs]
        named = {name: place for place, name in feeds}
        self._feeds = [(named[name], name) for name in engine.input_names]
        self._shapes = tuple([(name, self._kinds[place][0]) for place, name in self._feeds])
        # Others are cast, or copied by several threads.
        self._is_simple = all(
            inputs[place].dtype == engine.dtype(name)
            and (inputs[place].nbytes <= AT_ONCE or is_left_to_cuda(inputs[place]))
            for place, name in self._feeds
        )
        self._direct = frozenset(name for place, name in self._feeds if is_left_to_cuda(inputs[place]))

    def is_like(self, inputs: Sequence[Any]) -> bool:
        """Tell whether a call is like the one that this was made of."""
        for array, (shape, dtype) in zip(inputs, self._kinds, strict=True):
            if (
                array.shape != shape
                or array.dtype != dtype
                or type(array) is not np.ndarray
                or not array.flags.c_contiguous
            ):
                return False
        return True

    def run(self, inputs: Sequence[Any]) -> list[Array] | None:
        """Return the outputs; `None` where the usual way must be taken, as others use the engine."""
        if not (self._is_simple and self.is_like(inputs)):
            return None
        slot = self._pool.take_last(self._shapes)
        if slot is None:
            return None
        try:
            arrays = {name: inputs[place] for place, name in self._feeds}
            done = cuda.is_current(self._device) and slot.repeat(arrays, self._direct)
            outputs = [slot.output(name).astype(dtype) for name, dtype in self._outputs] if done else None
            self._pool.give(slot)
        except BaseException as error:
            self._pool.give_up(slot)
            if isinstance(error, CudaError):
                return None  # the usual way knows what to do, or says what is wrong
            raise
        return outputs
