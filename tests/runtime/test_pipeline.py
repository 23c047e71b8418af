"""Many batches of one call, in slots that work at once (over host memory: see `host_cuda`)."""

from __future__ import annotations

import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_trt.errors import CudaError, EngineLoadError, FallbackWarning, InputError
from keras_trt.runtime import SLOTS, copying
from keras_trt.runtime.plan import Batch
from keras_trt.runtime.results import Results
from keras_trt.runtime.slots import Slot
from keras_trt.specs import Cost

from .helpers import assert_right, costs, in_threads, inputs, one_by_one, session
from .host_cuda import HostCuda, installed
from .host_engine import HostEngineOnDevice, expected
from .host_parts import Status

Array = np.ndarray[Any, Any]
OUT_OF_MEMORY = Status.cudaErrorMemoryAllocation


@given(
    calls=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 4)), min_size=1, max_size=4),
    smallest=st.integers(1, 4),
    more=st.integers(0, 8),
    costs=costs,
)
@settings(max_examples=40, deadline=None)
def test_any_rows_come_back_in_order(
    calls: list[tuple[int, int]], smallest: int, more: int, costs: dict[int, Cost]
) -> None:
    with installed() as cuda:
        engine = HostEngineOnDevice(cuda)
        one = session(engine, smallest=smallest, largest=smallest + more, costs=costs)
        for seed, (rows, width) in enumerate(calls):
            assert_right(one, inputs(rows, width, seed))
        assert len(engine.contexts) <= SLOTS
        one.close()


def test_batches_are_staged_while_others_compute(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    one = session(HostEngineOnDevice(host_cuda))
    waits: list[int] = []
    synchronize = host_cuda.cudaStreamSynchronize

    def watched(stream: Any) -> Any:
        waits.append(sum(bool(other.pending) for other in host_cuda.live_streams()))
        return synchronize(stream)

    monkeypatch.setattr(host_cuda, "cudaStreamSynchronize", watched)
    assert_right(one, inputs(8 * 12))
    assert max(waits) == SLOTS
    one.close()


def test_progress_counts_all_rows(host_cuda: HostCuda) -> None:
    one = session(HostEngineOnDevice(host_cuda))
    done: list[int] = []
    one.run(inputs(45), done.append)
    assert done == [8, 16, 24, 32, 40, 45]
    one.close()


def test_a_size_that_returns_has_a_graph_of_its_own(host_cuda: HostCuda) -> None:
    engine = HostEngineOnDevice(host_cuda)
    one = session(engine, costs=one_by_one({1: 1.0, 8: 1.5}))
    for number in range(4):
        assert_right(one, inputs(5, seed=number))
    assert {context.shapes["x"][0] for context in engine.contexts} == {8, 5}  # padded once, and then as it is
    one.close()


@pytest.mark.parametrize("passed", range(12))
def test_an_error_in_the_midst_leaves_nothing_behind(host_cuda: HostCuda, passed: int) -> None:
    engine = HostEngineOnDevice(host_cuda)
    one = session(engine)
    assert_right(one, inputs(8))
    engine.faults["enqueue"] = (passed % 8, EngineLoadError("TensorRT did not start."))
    host_cuda.fail("cudaMemcpyAsync", *[Status.cudaSuccess] * passed, Status.cudaErrorIllegalAddress)
    with pytest.raises((CudaError, EngineLoadError)):  # noqa: PT012 (graphs launch what was enqueued before)
        for _ in range(20):
            one.run(inputs(8 * 6 + 3))
    engine.faults.clear()
    host_cuda.injected.clear()
    for rows in (8, 51, 3):
        assert_right(one, inputs(rows))
    one.close()


@pytest.mark.parametrize("shift", [0, 33])
def test_out_may_lie_over_an_input(host_cuda: HostCuda, shift: int) -> None:
    """As in numpy: what is written does not change what is still to be read."""
    one = session(HostEngineOnDevice(host_cuda))
    x, k = inputs(8 * 20)
    room = np.concatenate([x, np.zeros((shift, 5), "float32")])
    host_cuda.fail("cudaStreamSynchronize", *[Status.cudaSuccess] * 12, OUT_OF_MEMORY)  # some rows are run again
    out = [room[shift:], np.empty(len(x), "float32")]
    with pytest.warns(FallbackWarning, match="running 4 at a time"):
        one.run([room[: len(x)], k], out=out)
    wanted = expected({"x": x, "k": k})
    np.testing.assert_array_equal(out[0], wanted[1])
    np.testing.assert_array_equal(out[1], wanted[0])
    one.close()


def test_integers_that_do_not_fit_in_a_later_batch(host_cuda: HostCuda) -> None:
    one = session(HostEngineOnDevice(host_cuda))
    x, k = inputs(30)
    wide = k.astype("int64")
    wide[25] = 2**40
    with pytest.raises(InputError, match="integers"):
        one.run([x, wide])
    assert_right(one, inputs(30))
    one.close()


def test_a_long_call_lets_others_go_between_its_batches(host_cuda: HostCuda) -> None:
    engine = HostEngineOnDevice(host_cuda)
    engine.slow = 0.002
    one = session(engine)
    short_ended, long_ended = threading.Event(), threading.Event()
    order: list[str] = []

    def long() -> None:
        assert_right(one, inputs(8 * 400))
        order.append("long")
        long_ended.set()

    def short() -> None:
        assert_right(one, inputs(3))
        order.append("short")
        short_ended.set()

    in_threads([long, short])
    assert order == ["short", "long"]
    one.close()


def test_threads_with_many_batches_each(host_cuda: HostCuda) -> None:
    engine = HostEngineOnDevice(host_cuda)
    engine.slow = 0.0005
    one = session(engine)

    def work(seed: int) -> Any:
        def calls() -> None:
            generator = np.random.default_rng(seed)
            for number in range(12):
                assert_right(one, inputs(int(generator.integers(1, 70)), int(generator.integers(1, 4)), number))

        return calls

    in_threads([work(seed) for seed in range(8)])
    assert len(engine.contexts) <= SLOTS
    assert not host_cuda.faults
    one.close()


@pytest.mark.parametrize(
    ("pattern", "changes"), [([128, 1], 0), ([128, 100], 0), ([128, 8, 128, 1], 2), ([128 * 9, 1], 2)]
)
def test_calls_by_turns_of_few_batches_leave_each_other_their_shapes(
    host_cuda: HostCuda, pattern: list[int], changes: int
) -> None:
    """Four slots for 128 rows took that of one row at each call, and it took one of theirs; no graph was used again."""
    costs = {1: Cost(0.43, 0.35), 8: Cost(0.9, 0.6), 32: Cost(2.7, 1.2), 128: Cost(9.2, 3.9)}
    engine = HostEngineOnDevice(host_cuda)
    one = session(engine, largest=128, costs=costs)
    for rows in pattern * 3:
        assert_right(one, inputs(rows))
    before = sum(context.shapes_set for context in engine.contexts)
    for rows in pattern:
        assert_right(one, inputs(rows))
    assert sum(context.shapes_set for context in engine.contexts) - before == changes
    one.close()


# Rows that depend on each other.


@pytest.mark.parametrize("shape", [(1, 2), (6, 2), ()])
def test_outputs_without_a_row_for_each_row_stay_whole(shape: tuple[int, ...]) -> None:
    given = np.arange(np.prod(shape), dtype="float32").reshape(shape)
    for owned in (False, True):
        results = Results(3, [np.dtype("float32")])
        results.put(Batch(0, 3, 3), [given], owned=owned)
        np.testing.assert_array_equal(results.arrays[0], given)
        assert (results.arrays[0] is given) == owned


# Memory that does not suffice.


def test_memory_that_runs_out_halves_the_batch(host_cuda: HostCuda) -> None:
    engine = HostEngineOnDevice(host_cuda)
    one = session(engine, largest=64)
    host_cuda.device_limit = 2500  # one slot of 16 rows of 64 numbers does not fit in and out, one of 4 does
    with pytest.warns(FallbackWarning, match="rows: running"):
        assert_right(one, inputs(150, 16))
    assert_right(one, inputs(150, 16, 1))  # without another warning
    one.close()


def test_what_is_told_is_the_batch_that_did_not_fit(host_cuda: HostCuda) -> None:
    one = session(HostEngineOnDevice(host_cuda), largest=64)
    host_cuda.device_limit = 8 * (2 * 16 + 2) * 4 - 1
    with pytest.warns(FallbackWarning) as warned:
        assert_right(one, inputs(8, 16))
    assert ["for 8 rows: running 4 at a time" in str(one.message) for one in warned] == [True]
    one.close()


def test_memory_that_does_not_suffice_for_the_smallest_batch(host_cuda: HostCuda) -> None:
    one = session(HostEngineOnDevice(host_cuda), smallest=4)
    host_cuda.device_limit = 16
    with pytest.raises(CudaError, match="cudaErrorMemoryAllocation"), pytest.warns(FallbackWarning):
        one.run(inputs(20))
    host_cuda.device_limit = 1 << 30
    assert_right(one, inputs(20))
    one.close()


# Costs.


def test_costs_are_measured_on_graphs(host_cuda: HostCuda) -> None:
    one = session(HostEngineOnDevice(host_cuda), largest=40)
    one.measure()
    costs = one.measured.costs
    assert set(costs) == {1, 8, 32, 40}
    assert all(cost.alone > 0 and cost.further > 0 for cost in costs.values())
    assert len(host_cuda.executables) == SLOTS * 4
    assert_right(one, inputs(97))
    one.close()


def test_costs_are_those_of_a_gpu_that_nobody_shares(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process takes the GPU for a while, the clock says."""
    engine = HostEngineOnDevice(host_cuda)
    now, runs, create = [0.0], Counter[int](), engine.create_context

    def create_context(stream: int) -> Any:
        context = create(stream)
        infer = context._infer

        def timed(shapes: Any, addresses: Any) -> None:
            rows = shapes["x"][0]
            runs[rows] += 1
            now[0] += rows + 1000 * (runs[rows] == 3)
            infer(shapes, addresses)

        context._infer = timed  # type: ignore[method-assign]
        return context

    engine.create_context = create_context  # type: ignore[method-assign]
    monkeypatch.setattr("keras_trt.runtime.measuring.time", SimpleNamespace(perf_counter=lambda: now[0]))
    one = session(engine)
    one.measure()
    assert one.measured.costs == {1: Cost(1, 1), 8: Cost(8, 8)}
    one.close()


def test_a_batch_is_its_rows() -> None:
    assert Batch(1, 3, 4) == Batch(start=1, stop=3, size=4)


def test_the_next_rows_are_copied_while_the_last_ones_are_waited_for(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    stage, wait = Slot.stage, Slot.wait

    def staged(slot: Slot, *arguments: Any, **keywords: Any) -> None:
        seen.append("stage")
        stage(slot, *arguments, **keywords)

    def waited(slot: Slot) -> None:
        seen.append("wait")
        wait(slot)

    monkeypatch.setattr(Slot, "stage", staged)
    monkeypatch.setattr(Slot, "wait", waited)
    one = session(HostEngineOnDevice(host_cuda), largest=8)
    assert_right(one, inputs(8 * 6))
    one.close()
    assert seen == ["stage"] * SLOTS + ["wait", "stage"] * 2 + ["wait"] * SLOTS


@pytest.mark.parametrize(("rows", "at_once", "begun"), [(8, 160, 0), (16, 160, 0), (8, 159, 1), (16, 159, 2)])
def test_what_one_thread_copies_is_copied_at_once(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, rows: int, at_once: int, begun: int
) -> None:
    monkeypatch.setattr("keras_trt.runtime.slots.ONE_THREADS", at_once)  # bytes; each batch has 160 of `x`
    begin, count = copying.Copy.begin, 0

    def counted(copy: copying.Copy) -> None:
        nonlocal count
        count += 1
        begin(copy)

    monkeypatch.setattr(copying.Copy, "begin", counted)
    one = session(HostEngineOnDevice(host_cuda))
    assert_right(one, inputs(rows))
    assert count == begun
    one.close()
