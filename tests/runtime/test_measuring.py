"""How many batches and threads a pipeline gets, by a clock of the test's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_trt.errors import CudaError
from keras_trt.runtime import copying, measuring
from keras_trt.runtime.pool import SLOTS
from keras_trt.specs import Cost, Pipelining

from .helpers import assert_right, inputs, runner_of, session
from .host_cuda import HostCuda
from .host_engine import HostEngineOnDevice
from .host_parts import Status

Seconds = Callable[[Pipelining], float]


class Machine:
    """A machine on which a pipeline takes what a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Seconds, cores: int, row: int = 1 << 20) -> None:
        self.now, self.tried, self._seconds, self._row = 0.0, list[Pipelining](), seconds, row
        monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(copying, "cores", lambda: cores)

    def best(self, further: float = 1e-4) -> Pipelining | None:
        return measuring.pipelining(self._run, self._zeros, self.tried.append, 8, Cost(1e-3, further))

    def _run(self, rows: Any, batches: Any) -> list[Any]:  # noqa: ARG002
        if self.tried:
            self.now += self._seconds(self.tried[-1])
        return []

    def _zeros(self, rows: int) -> list[Any]:
        return [np.zeros((rows, self._row), np.uint8)]


@pytest.mark.parametrize(
    ("seconds", "cores", "best"),
    [
        (lambda how: 1 / how.threads, 16, Pipelining(SLOTS, 8)),
        (lambda how: 1 / how.threads, 6, Pipelining(SLOTS, 6)),
        (lambda how: float(how.threads), 16, Pipelining(SLOTS, 4)),
        (lambda how: 1 / how.slots, 2, Pipelining(SLOTS + 4, 2)),
        (lambda how: 1 / how.slots / how.threads, 16, Pipelining(SLOTS + 4, 8)),
        (lambda how: 1 / min(how.slots, SLOTS + 2), 16, Pipelining(SLOTS + 2, 4)),
        (lambda how: 1 - how.slots * how.threads * 1e-4, 16, Pipelining(SLOTS, 4)),
    ],
)
def test_the_fewest_that_are_nearly_as_fast_as_the_best(
    monkeypatch: pytest.MonkeyPatch, seconds: Seconds, cores: int, best: Pipelining
) -> None:
    machine = Machine(monkeypatch, seconds, cores)
    assert machine.best() == best
    assert machine.tried[-1] == best  # it is in use


@pytest.mark.parametrize(("row", "further"), [(1 << 10, 1e-4), (1 << 20, 1.0), (1 << 27, 1e-4)])
def test_where_it_does_not_matter_nothing_is_tried(monkeypatch: pytest.MonkeyPatch, row: int, further: float) -> None:
    """Small rows, a slow model, and rows that would take too long."""
    machine = Machine(monkeypatch, lambda _: 1.0, 16, row)
    assert machine.best(further) is None
    assert not machine.tried


@given(
    fill=st.floats(1e-6, 1.0),
    each=st.floats(1e-6, 0.1),
    size=st.integers(1, 64),
    output=st.integers(0, 1 << 29),
    disturbed=st.integers(0, 2),
)
def test_what_a_batch_costs_behind_others(fill: float, each: float, size: int, output: int, disturbed: int) -> None:
    """Of a pipeline that takes a while to fill, whatever disturbs one of three runs; it takes neither long nor much."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        machine = Machine(monkeypatch, lambda _: 0.0, 16, row=8)
        runs, most = Counter[int](), max(1 << 29, size * (8 + output))

        def run(rows: Any, batches: Any) -> list[Any]:
            assert all(batch.stop <= len(rows[0]) for batch in batches)
            assert len(rows[0]) * (8 + output) <= most
            # Batches lie apart, as far as that goes: no cache holds what is copied.
            assert len({batch.start for batch in batches}) == len(rows[0]) // size
            runs[len(batches)] += 1
            machine.now += fill + len(batches) * each + 10 * (runs[len(batches)] == 3 + disturbed and len(batches) > 1)
            return [SimpleNamespace(nbytes=size * output)]

        ((found, cost),) = measuring.costs(run, machine._zeros, [size]).items()
        assert found == size
        assert cost.alone == pytest.approx(fill + each)
        assert cost.further == pytest.approx(max(each, cost.alone / 24), rel=1e-3)
        took = sum(times * (fill + count * each) for count, times in runs.items())
        assert took <= 5 * 0.25 + 16 * cost.alone + 3 * 0.02


def test_what_disturbs_many_runs_of_a_short_batch_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, runs = Machine(monkeypatch, lambda _: 0.0, 16, row=8), Counter[int]()

    def run(rows: Any, batches: Any) -> Any:
        runs[len(batches)] += 1
        first = 1.0 * (runs[len(batches)] == 1)  # makes a context, and loads kernels
        machine.now += first + len(batches) * (1e-4 if runs[len(batches)] > 20 else 5e-4)
        return rows

    assert measuring.costs(run, machine._zeros, [8])[8].alone == pytest.approx(1e-4)


@pytest.mark.parametrize("disturbed", [1, 2])
def test_what_disturbs_a_way_for_a_while_counts_for_nothing(monkeypatch: pytest.MonkeyPatch, disturbed: int) -> None:
    def seconds(how: Pipelining) -> float:
        if how == Pipelining(SLOTS, 8):
            return 1.0 if machine.tried.count(how) == disturbed else 0.1
        return 0.2

    machine = Machine(monkeypatch, seconds, 16)
    assert machine.best() == Pipelining(SLOTS, 8)


@pytest.mark.parametrize("missing", [1, 2])
def test_a_way_that_once_found_no_memory_is_not_chosen(monkeypatch: pytest.MonkeyPatch, missing: int) -> None:
    def seconds(how: Pipelining) -> float:
        if how.slots > SLOTS and machine.tried.count(how) == missing:
            raise CudaError("There is no memory.", name="cudaErrorMemoryAllocation")
        return 1 / how.slots

    machine = Machine(monkeypatch, seconds, 16)
    assert machine.best() == Pipelining(SLOTS, 4)
    assert machine.tried.count(Pipelining(SLOTS + 4, 8)) == missing  # and not tried again


def test_no_more_slots_are_tried_than_batches_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda how: 1 / how.slots, 16)
    cost = Cost(0.25 / (SLOTS + 2), 1e-4)
    assert measuring.pipelining(machine._run, machine._zeros, machine.tried.append, 8, cost) == Pipelining(SLOTS + 2, 4)


def test_where_there_is_no_memory_for_several_none_is_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda _: 0.0, 16)

    def run(rows: Any, batches: Any) -> Any:
        machine.now += 1e-3
        if len(batches) > 1:
            raise CudaError("There is no memory.", name="cudaErrorMemoryAllocation")
        return rows

    assert measuring.costs(run, machine._zeros, [8]) == {8: Cost(pytest.approx(1e-3), pytest.approx(1e-3))}


def test_where_memory_runs_out_there_are_no_more_batches(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "PIECE", 32)
    monkeypatch.setattr(measuring, "_ONE_THREADS", 1.0)
    one = session(HostEngineOnDevice(host_cuda))
    use = one._runner.pipeline  # type: ignore[union-attr]

    def used(how: Pipelining) -> None:
        use(how)
        if how.slots > SLOTS:
            host_cuda.fail("cudaGraphLaunch", *[Status.cudaSuccess] * 9, Status.cudaErrorMemoryAllocation)

    monkeypatch.setattr(one._runner, "pipeline", used)
    one.measure()
    assert one.measured.costs
    assert one.measured.pipelining is not None
    assert one.measured.pipelining.slots == SLOTS
    assert_right(one, inputs(300))
    one.close()


def test_a_session_measures_it_and_goes_by_it(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "PIECE", 32)
    monkeypatch.setattr(measuring, "_ONE_THREADS", 1.0)
    engine = HostEngineOnDevice(host_cuda)
    one = session(engine)
    one.measure()
    found = one.measured
    assert found.pipelining is not None
    for seed in range(3):
        assert_right(one, inputs(300, seed=seed))
    assert sum(not context.closed for context in engine.contexts) <= found.pipelining.slots
    one.close()
    again = session(HostEngineOnDevice(host_cuda), measured=found)
    assert again.measured == found
    assert runner_of(again)._pool._limit == found.pipelining.slots
    monkeypatch.setattr(measuring, "_ONE_THREADS", 1e12)  # on another day it does not matter
    again.measure()
    assert again.measured.pipelining is None
    assert (runner_of(again)._pool._limit, runner_of(again)._threads) == (SLOTS, copying.THREADS)
    again.close()
