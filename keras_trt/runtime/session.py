"""Rows → the engine's batches → rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..backends.base import Array, DeviceEngine, HostEngine
from ..specs import OptimizationProfile, Signature
from .gpu import GpuRunner


def batches(rows: int, smallest: int, largest: int) -> Iterator[tuple[int, int, int]]:
    """Cut `rows` rows into batches.

    Args:
        rows: how many there are.
        smallest: smallest batch that the engine takes.
        largest: largest one.

    Yields:
        `(start, stop, size)`: rows `start` to `stop` run in a batch of `size`, `size - (stop - start)` of whose
        rows are padding.
    """
    for start in range(0, rows, largest):
        stop = min(start + largest, rows)
        yield start, stop, max(stop - start, smallest)


@dataclass(frozen=True)
class Objection:
    """Why an engine cannot run a batch.

    Attributes:
        kind: the same for all batches that are refused for the same cause.
        text: the cause, with this batch's figures.
    """

    kind: str
    text: str


class Session:
    """Runs a loaded engine on any number of rows. Safe to call from many threads.

    Args:
        engine: a loaded engine. `close` closes it too.
        signature: names in it are the engine's.
        profile: the shapes that the engine was built for.
        rows_independent: whether a row's answer does not depend on the other rows of its batch. Where it does,
            batches are run as they come, never cut or padded.
    """

    def __init__(
        self,
        engine: HostEngine | DeviceEngine,
        signature: Signature,
        profile: OptimizationProfile,
        *,
        rows_independent: bool,
    ) -> None:
        self._runner: HostEngine | GpuRunner = GpuRunner(engine) if isinstance(engine, DeviceEngine) else engine
        self._inputs = signature.inputs
        self._names = [spec.name for spec in signature.inputs]
        self._outputs = signature.outputs
        order = list(self._runner.output_names)
        self._order = [order.index(spec.name) for spec in signature.outputs]
        self._smallest, _, self._largest = profile.batch
        self._users = 0
        self._closed = self._retired = False
        self._changed = threading.Condition()
        self.profile = profile
        self.rows_independent = rows_independent

    @property
    def keeps_state(self) -> bool:
        """Whether later runs of a shape take another way than the first: on a GPU, slots and CUDA graphs."""
        return isinstance(self._runner, GpuRunner)

    def reserve(self) -> None:
        """Take now the memory that the largest batch needs.

        Raises:
            CudaError, EngineLoadError: if there is not so much.
        """
        if isinstance(self._runner, GpuRunner):
            shapes = {name: self.profile.shapes[name].max for name in self._names}
            self._runner.reserve({name: shapes[name] for name in self._runner.input_names})

    def plan(self) -> bytes | None:
        """Return the engine as a plan, or `None` of an engine on the host, whose plan is its graph.

        Raises:
            EngineLoadError: if it cannot be written as one.
        """
        with self.in_use():
            return self._runner.plan() if isinstance(self._runner, GpuRunner) else None

    def takes(self, inputs: Sequence[Array]) -> Objection | None:
        """Return why the engine cannot run `inputs`, or `None` if it can.

        Args:
            inputs: standardized arrays with one number of rows.
        """
        rows = len(inputs[0])
        if not self.rows_independent and not self._smallest <= rows <= self._largest:
            return Objection(
                "rows",
                f"its rows depend on each other, so a batch of {rows} cannot be cut or padded to the engine's "
                f"{self._smallest} to {self._largest} rows (see `batch_sizes`)",
            )
        for spec, array in zip(self._inputs, inputs, strict=True):
            if array.dtype != spec.dtype:
                return Objection(
                    f"type {spec.name}",
                    f"input '{spec.name}' has the type {array.dtype}, and as the model does not say its types the "
                    f"engine was made for {spec.dtype} (see `sample`)",
                )
            allowed = self.profile.shapes[spec.name]
            for axis in range(1, array.ndim):
                if not allowed.min[axis] <= array.shape[axis] <= allowed.max[axis]:
                    return Objection(
                        f"axis {axis} {spec.name}",
                        f"axis {axis} of input '{spec.name}' has {array.shape[axis]} entries, and the engine was built "
                        f"for {allowed.min[axis]} to {allowed.max[axis]} (see `profiles`)",
                    )
        return None

    def run(self, inputs: Sequence[Array], progress: Callable[[int], None] | None = None) -> list[Array]:
        """Return the outputs for all rows, in the signature's order and types.

        Args:
            inputs: one array for each input of the signature; `takes` must have no objection.
            progress: called with the number of rows done, after each batch.
        """
        with self.in_use():
            return self._run(inputs, progress)

    def _run(self, inputs: Sequence[Array], progress: Callable[[int], None] | None) -> list[Array]:
        rows = len(inputs[0])
        results: list[Array] = []
        for start, stop, size in batches(rows, self._smallest, self._largest):
            whole = stop - start == rows == size
            feeds = inputs if whole else [_padded(array[start:stop], size) for array in inputs]
            outputs = self._infer(feeds)
            if stop - start == rows:
                results = outputs if whole else [output[:rows] for output in outputs]
            else:
                if not results:
                    results = [np.empty((rows, *output.shape[1:]), output.dtype) for output in outputs]
                for result, output in zip(results, outputs, strict=True):
                    result[start:stop] = output[: stop - start]
            if progress is not None:
                progress(stop)
        return results

    def retire(self) -> None:
        """Close once no call is under way: now, or when the last one ends. Does not wait."""
        with self._changed:
            self._retired = True
            closed = self._closed
        if not closed:
            with self.in_use():
                pass

    def close(self) -> None:
        """Free the engine and all memory that its calls used, after the calls under way."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._users == 0)
        self._runner.close()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the engine open while the block runs.

        Raises:
            RuntimeError: if it is closed.
        """
        with self._changed:
            if self._closed:
                raise RuntimeError("This engine is closed.")
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                last = self._retired and self._users == 0 and not self._closed
                self._closed |= last
                self._changed.notify_all()
            if last:
                self._runner.close()

    def _infer(self, feeds: Sequence[Array]) -> list[Array]:
        wanted = set(self._runner.input_names)  # a builder may drop an input that the model does not use
        outputs = self._runner.run(
            {name: feed for name, feed in zip(self._names, feeds, strict=True) if name in wanted}
        )
        return [
            outputs[position].astype(spec.dtype, copy=False)
            for position, spec in zip(self._order, self._outputs, strict=True)
        ]


def _padded(array: Array, size: int) -> Array:
    """Return `array` with its last row repeated up to `size` rows: real rows cannot make the padding overflow."""
    missing = size - len(array)
    return array if missing <= 0 else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
