"""Rows → the engine's batches → rows."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .. import cuda
from .._warn import warn
from ..backends.base import Array, DeviceEngine, HostEngine
from ..cuda import DeviceArray
from ..errors import CudaError, FallbackWarning, PlanError
from ..specs import Measured, OptimizationProfile, Signature
from . import measuring
from .copying import Rows
from .gpu import GpuRunner, Usage
from .host import HostRunner
from .lifetime import Lifetime, Use
from .objections import Objection, objection
from .plan import USUAL_SIZES, WORTH_WAKING, Batch, BatchPlan
from .replicas import Replicas
from .results import Results, RowsDependError, apart, deliver, onwards
from .steady import Steady
from .turns import Call, Turns

_logger = logging.getLogger("keras_trt")


class Session:
    """Runs a loaded engine on any number of rows. Safe to call from many threads.

    Args:
        engines: a loaded engine, or one on each of several GPUs. `close` closes them too.
        signature: names in it are the engine's.
        profile: the shapes that the engine was built for.
        rows_independent: whether a row's answer does not depend on the other rows of its batch. Where it does,
            batches are run as they come, never cut or padded. An output that has not one row for each of its batch
            shows it too.
        measured: what another session of the engine has found out. Defaults to `None`: nothing is known.

    Raises:
        PlanError: if the engine has other inputs or outputs.
    """

    def __init__(
        self,
        engines: Sequence[HostEngine | DeviceEngine],
        signature: Signature,
        profile: OptimizationProfile,
        *,
        rows_independent: bool,
        measured: Measured | None = None,
    ) -> None:
        self._runner = _runner(engines)
        self._inputs = signature.inputs
        self._names = [spec.name for spec in signature.inputs]
        wanted = set(self._runner.input_names)  # a builder may drop an input that the model does not use
        self._places = {name: place for place, name in enumerate(self._names) if name in wanted}
        self._dtypes = [np.dtype(spec.dtype) for spec in signature.outputs]
        order = list(self._runner.output_names)
        if not (wanted <= {*self._names} and {*order} >= {spec.name for spec in signature.outputs}):
            raise PlanError(f"The engine has inputs {sorted(wanted)} and outputs {order}: it is not one of this model.")
        self._order = [order.index(spec.name) for spec in signature.outputs]
        self._smallest, _, self._largest = profile.batch
        self._costs = dict(measured.costs) if measured and rows_independent else {}
        self._pipelining = measured.pipelining if measured else None
        if self._pipelining and not isinstance(self._runner, HostRunner):
            self._runner.pipeline(self._pipelining)
        self._plan = BatchPlan(self._smallest, self._largest, self._costs)
        self._rows_before = 0
        self._kinds_before: Sequence[object] = ()  # shapes and types of the last call of one batch
        self._steady: Steady | None = None
        self._life = Lifetime(self._runner.close)
        self._turns = Turns()
        self._halving = threading.Lock()
        self.profile = profile
        self.rows_independent = rows_independent

    @property
    def keeps_state(self) -> bool:
        """Whether later runs of a shape take another way than the first: on a GPU, slots and CUDA graphs."""
        return not isinstance(self._runner, HostRunner)

    def reserve(self) -> None:
        """Take now the memory that the largest batch needs.

        Raises:
            CudaError, EngineLoadError: if there is not so much.
        """
        if not isinstance(self._runner, HostRunner):
            shapes = {name: self.profile.shapes[name].max for name in self._names}
            self._runner.reserve({name: shapes[name] for name in self._runner.input_names})

    def plan(self) -> bytes | None:
        """Return the engine as a plan, or `None` of an engine on the host, whose plan is its graph.

        Raises:
            EngineLoadError: if it cannot be written as one.
        """
        with self._life.use(block=False):
            return None if isinstance(self._runner, HostRunner) else self._runner.plan()

    def usage(self) -> list[Usage]:
        """Return what is held on each GPU; nothing of an engine on the host."""
        return [] if isinstance(self._runner, HostRunner) else self._runner.usage()

    def takes(self, inputs: Sequence[Array | DeviceArray]) -> Objection | None:
        """Return why the engine cannot run `inputs`, or `None` if it can.

        Args:
            inputs: standardized arrays with one number of rows.
        """
        return objection(inputs, self._inputs, self.profile, rows_independent=self.rows_independent)

    def run(
        self,
        inputs: Sequence[Array | DeviceArray],
        progress: Callable[[int], None] | None = None,
        out: Sequence[Array | DeviceArray] | None = None,
    ) -> list[Any]:
        """Return the outputs for all rows, in the signature's order and types.

        Args:
            inputs: one array for each input of the signature; `takes` must have no objection.
            progress: called with the number of rows done, after each batch.
            out: arrays that take the outputs and are returned. Defaults to `None`: new ones on the host. Those on the
                host may lie over inputs.

        Raises:
            RowsDependError: if rows that were taken to be independent are seen not to be. From then on batches are
                run as they come.
        """
        progress = None if progress is None else onwards(progress)
        # Rows are written while others, or the same once more, are still to be read.
        if out and (written := [array for array in out if isinstance(array, np.ndarray)]):
            inputs = [apart(array, written) for array in inputs]
        use = self._life.use(block=False)
        try:
            with use:
                if progress is None and out is None and (outputs := self._again(inputs)) is not None:
                    return outputs
                return self._run(inputs, progress, out)
        except BaseException:
            use.__exit__()  # Ctrl-C may have come before it could end
            raise

    def _again(self, inputs: Sequence[Array | DeviceArray]) -> list[Array] | None:
        """Run a call that is like those before; `None` of others, where it fails, and where a slot is in use.

        Where several threads call, short ones take turns; those that are long may be run as one batch instead.
        """
        steady = self._steady
        if steady is None or steady.plan is not self._plan or not steady.is_like(inputs):
            return None
        if self._life.calls == 1:
            return self._run_steady(steady, inputs)
        if not (steady.is_short and self._are_others()):
            return None
        with self._turns.wait():
            outputs = self._run_steady(steady, inputs)
            return self._run(inputs, None, None) if outputs is None else outputs  # within the same turn

    def _run_steady(self, steady: Steady, inputs: Sequence[Array | DeviceArray]) -> list[Array] | None:
        try:
            return steady.run(inputs)
        except CudaError as error:  # the usual way knows what to do, or says what is wrong
            _logger.debug("A call like those before has failed: %r", error)
            cuda.forget_error()
            self._steady = None
            return None

    def _run(
        self,
        inputs: Sequence[Array | DeviceArray],
        progress: Callable[[int], None] | None,
        out: Sequence[Array | DeviceArray] | None,
    ) -> list[Any]:
        may_join = True
        while True:
            plan, regrouped = self._plan, self.rows_independent
            rows = len(inputs[0])
            batches = self._batches(plan, inputs) if regrouped else [Batch(0, rows, rows)]
            if regrouped and len(batches) == 1 and progress is None and out is None:
                run = partial(self._run_one, plan, inputs, batches)
            else:
                run = partial(self._run_batches, inputs, batches, progress, out, regrouped=regrouped)
            try:
                if len(batches) > 1 or progress is not None or not self._are_others():
                    return run()
                call = self._call(plan, inputs) if regrouped and out is None and may_join else None
                if call is None and not plan.is_short(batches[0].size):
                    return run()
                if (outputs := self._run_in_turn(plan, call, run)) is not None:
                    return outputs
                may_join = False  # whoever could not be run along is run alone
            except CudaError as error:
                if not error.out_of_memory or not self._halve(plan, max(batch.size for batch in batches)):
                    raise
            except RowsDependError as error:
                self._depend(error)
                raise

    def _run_one(self, plan: BatchPlan, inputs: Sequence[Array | DeviceArray], batches: Sequence[Batch]) -> list[Any]:
        """Run one batch, and be prepared for more calls like it where it is the second of just that size."""
        outputs, runner = self._run_batches(inputs, batches, regrouped=True), self._runner
        if not isinstance(runner, GpuRunner) or batches[0].size != len(inputs[0]):
            return outputs
        kinds, known = [(array.shape, array.dtype) for array in inputs], self._steady
        if kinds != self._kinds_before:
            self._kinds_before, self._steady = kinds, None
        elif known is None or known.plan is not plan:
            self._steady = runner.steady(
                plan, inputs, outputs, places=self._places, order=self._order, dtypes=self._dtypes
            )
        return outputs

    def _are_others(self) -> bool:
        # Who is alone need not wait for a turn; who comes meanwhile may run beside it, once. A handler of a signal must
        # not, as it might wait for its own thread. Of several GPUs all calls would run on the first.
        return self._life.calls > 1 and not self._life.is_nested and not isinstance(self._runner, Replicas)

    def _call(self, plan: BatchPlan, inputs: Sequence[Array | DeviceArray]) -> Call | None:
        """Return what others may run along; `None` where that is no gain, or some of it lies on a GPU.

        Raises:
            InputError: if the engine cannot take it.
        """
        runner = self._runner
        if not (plan.is_joined(len(inputs[0]), self._life.calls) and isinstance(runner, GpuRunner) and runner.joins):
            return None
        arrays = [array for array in inputs if isinstance(array, np.ndarray)]
        if len(arrays) < len(inputs):
            return None
        runner.check({name: inputs[place] for name, place in self._places.items()})
        return Call(arrays)

    def _run_in_turn(self, plan: BatchPlan, call: Call | None, alone: Callable[[], list[Any]]) -> list[Any] | None:
        """Run a call when its turn comes, or let another run it along.

        Args:
            plan: by which it was cut.
            call: what others may run along; `None` where they may not.
            alone: runs it.

        Returns:
            `None` where it was not run: there is another plan by now, or whoever took it along could not run it.
        """
        with self._turns.wait(call) as has_come:
            if has_come:
                together = self._run_together(plan, call) if call is not None and plan is self._plan else None
                return together or (alone() if plan is self._plan else None)
        return None if call is None or call.outputs is None else [output.copy() for output in call.outputs]

    def _run_together(self, plan: BatchPlan, call: Call) -> list[Any] | None:
        """Run a call as one batch with others that wait, and give those their outputs.

        Returns:
            Its own outputs; `None` where no others wait, or it failed: one of them may be the cause, which each finds
            out alone.
        """
        size = 0

        def count(rows: Iterable[int]) -> int:
            nonlocal size
            calls, size = plan.together(rows)
            return calls

        if self._turns.waiting < WORTH_WAKING - 1 or not (others := self._turns.along(call, count)):
            return None
        calls = [call, *others]
        stops = list(itertools.accumulate(one.rows for one in calls))
        inputs = [Rows(parts) for parts in zip(*(one.inputs for one in calls), strict=True)]
        try:
            outputs = self._run_batches(inputs, [Batch(0, stops[-1], size)], regrouped=True)
        except Exception as error:
            _logger.info("%d calls are run one by one, as together they fail: %r", len(calls), error)
            if isinstance(error, RowsDependError):
                self._depend(error)
            elif isinstance(error, CudaError) and error.out_of_memory:
                self._halve(plan, size)
            return None
        for one, start, stop in zip(others, stops, stops[1:], strict=False):
            one.outputs = [output[start:stop] for output in outputs]
        return [output[: call.rows].copy() for output in outputs]

    @property
    def measured(self) -> Measured:
        """What was found out about the engine here."""
        return Measured(dict(self._costs), self._pipelining)

    def measure(self) -> None:
        """Find out how pipelines of the largest batches run best and how long batches take then, and go by that.

        Batches of zeros are run, with the smallest, the usual and the largest size. Without a GPU nothing is measured:
        no graph, and no size, is better prepared there.
        """
        if isinstance(self._runner, HostRunner) or not self.rows_independent:
            return
        sizes = {self._smallest, *USUAL_SIZES, self._largest}
        sizes = {size for size in sizes if self._smallest <= size <= self._largest}
        shapes = [self.profile.shapes[spec.name].opt[1:] for spec in self._inputs]
        zeros = partial(measuring.zeros, shapes, [np.dtype(spec.dtype) for spec in self._inputs])
        run = partial(self._run_batches, regrouped=True)
        self._runner.pipeline(measuring.USUAL)  # whatever was found before
        try:
            largest = measuring.costs(run, zeros, [self._largest])
            use, cost = self._runner.pipeline, largest[self._largest]
            self._pipelining = measuring.pipelining(run, zeros, use, self._largest, cost)
            known = {} if self._pipelining else largest  # another pipeline, other costs
            self._costs = measuring.costs(run, zeros, sorted(sizes - known.keys())) | known
        except RowsDependError as error:
            self._depend(error)
            return
        self._plan = BatchPlan(self._smallest, self._largest, self._costs)

    def _batches(self, plan: BatchPlan, inputs: Sequence[Array | DeviceArray]) -> list[Batch]:
        rows = len(inputs[0])
        if isinstance(inputs[0], DeviceArray) and all(isinstance(array, DeviceArray) for array in inputs):
            plan = plan.on_gpu
        # Who calls with the same few rows again and again gets a graph of just that size.
        steady = rows == self._rows_before and plan.is_whole(rows)
        self._rows_before = rows
        return [Batch(0, rows, rows)] if steady else list(plan.cut(rows))

    def _run_batches(
        self,
        inputs: Sequence[Array | DeviceArray | Rows],
        batches: Iterable[Batch],
        progress: Callable[[int], None] | None = None,
        out: Sequence[Array | DeviceArray] | None = None,
        *,
        regrouped: bool,
    ) -> list[Any]:
        feeds = {name: inputs[place] for name, place in self._places.items()}
        if not isinstance(self._runner, HostRunner):
            results = Results(len(inputs[0]), self._dtypes, progress, out, rows_independent=regrouped)
            self._runner.run(feeds, batches, self._order, results, nested=self._life.is_nested)
            return results.arrays
        results = Results(len(inputs[0]), self._dtypes, progress, rows_independent=regrouped)
        on_host = {name: np.asarray(array) for name, array in feeds.items()}
        self._runner.run(on_host, batches, self._order, results)
        return results.arrays if out is None else deliver(results.arrays, out)

    def _depend(self, error: RowsDependError) -> None:
        """Run batches as they come from now on."""
        _logger.info("Rows depend on each other, so that batches are run as they come from now on: %s", error)
        self.rows_independent, self._costs = False, {}
        self._plan = BatchPlan(self._smallest, self._largest)

    def _halve(self, plan: BatchPlan, tried: int) -> bool:
        """Run smaller batches from now on; `False` where they cannot be any smaller.

        Args:
            plan: by which there was too little memory; where another call has halved it meanwhile, that is enough.
            tried: the largest batch of it that was run.
        """
        with self._halving:
            if self._plan is not plan:
                return True
            if not self.rows_independent or tried <= self._smallest:
                return False
            largest = max(tried // 2, self._smallest)
            self._plan = BatchPlan(self._smallest, largest, self._costs)
        warn(f"The GPU's memory does not suffice for {tried} rows: running {largest} at a time.", FallbackWarning)
        return True

    def in_use(self) -> Use:
        """Return a context in which the engine stays open: for all that runs in it, in any thread.

        Raises:
            RuntimeError: on entering, if it is closed.
        """
        return self._life.use()

    def retire(self) -> None:
        """Close once no call is under way: now, or when the last one ends. Does not wait."""
        self._life.retire()

    def close(self, *, cut_short: bool = False) -> None:
        """Free the engine and all memory that its calls used, after the calls under way.

        From within a block of `in_use` it does not wait for that, but retires.

        Args:
            cut_short: whether a block of `in_use` may run nothing more, so that only what runs now is waited for, and
                not the end of the block.
        """
        self._life.close(cut_short=cut_short)


def _runner(engines: Sequence[HostEngine | DeviceEngine]) -> HostRunner | GpuRunner | Replicas:
    on_gpus = [GpuRunner(engine) for engine in engines if isinstance(engine, DeviceEngine)]
    if on_gpus:
        return Replicas(on_gpus) if len(on_gpus) > 1 else on_gpus[0]
    (engine,) = (engine for engine in engines if not isinstance(engine, DeviceEngine))
    return HostRunner(engine)
