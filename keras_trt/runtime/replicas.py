"""One engine on several GPUs."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, islice

from .._interrupts import deferred
from ..cuda import DeviceArray
from ..specs import Pipelining
from .gpu import Feeds, GpuRunner, Usage
from .plan import Batch
from .results import Results


class Replicas:
    """Runs batches on whichever GPU is free. Safe to call from many threads.

    Args:
        runners: one for each GPU. `close` closes them too.
    """

    def __init__(self, runners: Sequence[GpuRunner]) -> None:
        self.input_names = runners[0].input_names
        self.output_names = runners[0].output_names
        self._runners = list(runners)
        self._calls = [0] * len(runners)
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(4 * len(runners), thread_name_prefix="keras_trt-replica")

    def run(
        self, feeds: Feeds, batches: Iterable[Batch], order: Sequence[int], results: Results, *, nested: bool = False
    ) -> None:
        """Run batches of rows, as `GpuRunner.run` does; each GPU takes the next one when it has begun with the last."""
        given = iter(batches)
        first = list(islice(given, 2))
        if len(first) < 2:
            with self._least_busy() as runner:
                runner.run(feeds, first, order, results, nested=nested)
            return
        for one_array in (*feeds.values(), *results.arrays):
            if isinstance(one_array, DeviceArray):
                one_array.wait()  # its owner's stream is this thread's, which the others know nothing of
        shared = _Shared(chain(first, given))

        def one(runner: GpuRunner) -> None:
            try:
                runner.run(feeds, shared, order, results, nested=nested)
            except BaseException:
                shared.end()  # the others need not go on
                raise

        others: list[Future[None]] = []
        try:
            with suppress(RuntimeError):  # no further thread can be started, as at exit: fewer GPUs do it
                for runner in self._runners[1:]:
                    others.append(self._pool.submit(one, runner))
            one(self._runners[0])
        except BaseException:
            shared.end()  # also after Ctrl-C
            raise
        finally:
            with deferred():
                # Where all workers are busy, one may not have begun, and there is nothing left for it.
                begun = [other for other in others if not other.cancel()]
                wait(begun)  # all of them, before anyone may use the results
        for other in begun:
            other.result()

    def pipeline(self, how: Pipelining) -> None:
        """Run pipelines so from now on, on each GPU."""
        for runner in self._runners:
            runner.pipeline(how)

    def reserve(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Take what a call with these shapes will need on each GPU.

        Raises:
            CudaError, EngineLoadError: if there is not so much.
        """
        for runner in self._runners:
            runner.reserve(shapes)

    def plan(self) -> bytes:
        """Return the engine as a plan.

        Raises:
            EngineLoadError: if it cannot be written as one.
        """
        return self._runners[0].plan()

    def usage(self) -> list[Usage]:
        """Return what is held on each GPU."""
        return [use for runner in self._runners for use in runner.usage()]

    def close(self) -> None:
        """Free all that is held on the GPUs, after the calls under way."""
        with ExitStack() as closing:
            for runner in self._runners:
                closing.callback(runner.close)
            closing.callback(self._pool.shutdown)

    @contextmanager
    def _least_busy(self) -> Iterator[GpuRunner]:
        with self._lock:
            place = self._calls.index(min(self._calls))
            self._calls[place] += 1
        try:
            yield self._runners[place]
        finally:
            with self._lock:
                self._calls[place] -= 1


class _Shared:
    """An iterator that several threads take from."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._lock = threading.Lock()

    def __iter__(self) -> _Shared:
        return self

    def __next__(self) -> Batch:
        with self._lock:
            return next(self._batches)

    def end(self) -> None:
        """Give nothing more."""
        with self._lock:
            self._batches = iter(())
