"""Many batches of one call: how rows are cut, and slots that work at once (over host memory: see `host_cuda`)."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_trt.errors import CudaError, EngineLoadError, FallbackWarning, InputError
from keras_trt.runtime import MAX_SLOTS, Session, copying
from keras_trt.runtime.plan import WORTH, Batch, BatchPlan
from keras_trt.runtime.results import Results
from keras_trt.runtime.slots import Slot
from keras_trt.specs import Cost, OptimizationProfile, ShapeRange, Signature, TensorSpec, costs_in, listed_costs

from .host_cuda import HostCuda, HostEngineOnDevice, Status, expected, installed
from .test_gpu_runner import in_threads

Array = np.ndarray[Any, Any]
OUT_OF_MEMORY = Status.cudaErrorMemoryAllocation

sizes = st.integers(1, 12)
seconds = st.floats(0.01, 100)
a_cost = st.builds(Cost, seconds, seconds)
costs = st.dictionaries(st.integers(1, 24), a_cost, max_size=4)


def one_by_one(costs: dict[int, float]) -> dict[int, Cost]:
    """Return the costs of batches of which none is brought in while another is computed."""
    return {size: Cost(alone, alone) for size, alone in costs.items()}


# How rows are cut.


@given(rows=st.integers(0, 400), smallest=st.integers(1, 40), more=st.integers(0, 40), costs=costs)
def test_batches_hold_all_rows_in_order(rows: int, smallest: int, more: int, costs: dict[int, Cost]) -> None:
    cut = list(BatchPlan(smallest, smallest + more, costs).cut(rows))
    assert [row for batch in cut for row in range(batch.start, batch.stop)] == list(range(rows))
    for batch in cut:
        assert batch.start < batch.stop <= batch.start + batch.size
        assert smallest <= batch.size <= smallest + more
    assert all(batch.stop - batch.start == batch.size for batch in cut[:-1])  # padding is at the end


@given(rows=st.integers(1, 200), smallest=st.integers(1, 40), more=st.integers(0, 40))
def test_without_costs_batches_are_few_and_not_padded(rows: int, smallest: int, more: int) -> None:
    cut = list(BatchPlan(smallest, smallest + more).cut(rows))
    assert len(cut) == -(-rows // (smallest + more))
    assert all(batch.size == max(batch.stop - batch.start, smallest) for batch in cut)


@given(rows=st.integers(1, 24), costs=st.dictionaries(st.integers(1, 12), a_cost, min_size=1, max_size=3))
def test_no_other_batches_cost_less(rows: int, costs: dict[int, Cost]) -> None:
    def total(sizes: Sequence[int]) -> float:
        return costs[sizes[0]].alone + sum(costs[size].further for size in sizes[1:])

    largest = max(costs)
    if rows > 2 * largest:
        return  # the first of very many batches are of the size that is best for a row
    cost = total([batch.size for batch in BatchPlan(1, largest, costs).cut(rows)])
    for count in range(1, rows + 1):
        for others in itertools.combinations_with_replacement(sorted(costs, reverse=True), min(count, 6)):
            if sum(others) >= rows:
                assert cost <= total(others) * (1 + 1e-9)


@given(rows=st.integers(1, 12), costs=st.dictionaries(st.integers(1, 12), a_cost, min_size=1, max_size=3))
def test_rows_are_one_batch_unless_several_are_faster(rows: int, costs: dict[int, Cost]) -> None:
    plan = BatchPlan(1, 12, costs)
    sizes = [batch.size for batch in plan.cut(rows)]
    several = costs[sizes[0]].alone + sum(costs[size].further for size in sizes[1:])
    alone = plan.seconds(rows)
    assert alone is None or min(cost.alone for cost in costs.values()) <= alone
    assert plan.is_whole(rows) == (alone is None or WORTH * alone <= several)
    assert not plan.is_whole(13)


def test_a_large_batch_is_cut_where_that_is_faster() -> None:
    """What ResNet50 was seen to take on an H200, in ms: half of the time of a large batch is its copy to the GPU."""
    plan = BatchPlan(1, 128, {1: Cost(0.43, 0.35), 8: Cost(0.9, 0.6), 32: Cost(2.7, 1.2), 128: Cost(9.2, 3.9)})
    assert [batch.size for batch in plan.cut(128)] == [32] * 4
    assert not plan.is_whole(128)
    assert plan.is_whole(1)
    assert plan.is_whole(40)
    assert {batch.size for batch in plan.cut(128 * 9)} == {128}  # of many rows, what a further one takes counts
    assert plan.seconds(20) == pytest.approx(1.8)


@given(costs=costs)
def test_costs_are_kept_as_json(costs: dict[int, Cost]) -> None:
    assert costs_in(json.loads(json.dumps(listed_costs(costs)))) == costs


def test_a_tail_is_padded_split_or_run_by_what_it_costs() -> None:
    def cut(rows: int, costs: dict[int, float]) -> list[int]:
        return [batch.size for batch in BatchPlan(1, 128, one_by_one(costs)).cut(rows)]

    steep = {1: 1.5, 8: 9.0, 32: 32.0, 128: 100.0}
    assert cut(128 + 40, steep) == [128, 32, 8]
    flat = {1: 9.0, 8: 9.5, 32: 10.0, 128: 11.0}
    assert cut(128 + 40, flat) == [128, 128]
    assert cut(5, flat) == [8]
    assert cut(1000, {1: 1.0, 32: 2.0, 128: 100.0})[:30] == [32] * 30


# Copies.


@given(rows=st.integers(0, 40), width=st.integers(0, 70_000), pieces=st.integers(1, 16))
@settings(max_examples=20, deadline=None)
def test_copies_in_pieces(rows: int, width: int, pieces: int) -> None:
    source = np.random.default_rng(rows).integers(-99, 99, (rows, width))
    target = np.full((rows, width), np.nan, "float32")
    in_pieces = copying.Copy(target, source, min(pieces, max(rows, 1)))
    in_pieces.begin()
    in_pieces.finish()
    np.testing.assert_array_equal(target, source)
    again = np.full((rows, width), np.nan, "float32")
    copying.copy(again, source)
    np.testing.assert_array_equal(again, source)


def test_scalars_and_errors_of_a_copy() -> None:
    target = np.zeros((), "float32")
    copying.copy(target, np.array(3))
    assert target == 3
    with pytest.raises(ValueError, match="broadcast"):
        copying.copy(np.zeros((4, 1 << 20), "float32"), np.zeros((4, 3), "float32"))
    assert copying.threads() >= 1


def test_a_source_that_does_not_fit_is_refused_before_anything_is_copied() -> None:
    target = np.zeros((4, 2))
    for source in (np.ones((8, 2)), np.ones(2), np.ones((4, 1))):
        one = copying.Copy(target, source, 4)
        with pytest.raises(ValueError, match="does not fit"):
            one.begin()
    assert not target.any()


def test_ctrl_c_during_a_copy_waits_for_all_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one of them would write into what the next call has put there."""
    run, begun = copying._Piece.run, threading.Event()

    def late(self: copying._Piece) -> None:
        if threading.current_thread() is threading.main_thread():
            assert begun.wait(20)
        else:
            begun.set()
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        run(self)

    monkeypatch.setattr(copying._Piece, "run", late)
    monkeypatch.setattr(copying, "PIECE", 1)
    monkeypatch.setattr(copying, "threads", lambda: 2)
    source, target = np.array([1.0, 2.0]), np.zeros(2)
    with pytest.raises(KeyboardInterrupt):
        copying.copy(target, source)
    np.testing.assert_array_equal(target, source)


def test_a_handler_that_raises_loses_no_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of SIGTERM, which may come just before a piece is copied: who finishes again does it, and does not wait."""
    monkeypatch.setattr(copying, "_help_with", lambda *_: None)
    run = copying._Piece.run

    def terminated(_: copying._Piece) -> None:
        monkeypatch.setattr(copying._Piece, "run", run)
        raise SystemExit

    source, target = np.arange(1.0, 5.0), np.zeros(4)
    one = copying.Copy(target, source, 4)
    one.begin()
    monkeypatch.setattr(copying._Piece, "run", terminated)
    with pytest.raises(SystemExit):
        one.finish()
    one.finish()
    np.testing.assert_array_equal(target, source)


def test_a_thread_that_outlives_the_main_one_still_copies() -> None:
    """From 3.12 on no thread can be started then."""
    code = """
import threading, numpy as np
from keras_trt.runtime import copying
copying.threads = lambda: 2
def late():
    threading.main_thread().join()
    source, target = np.ones((8, 1 << 20), "float32"), np.zeros((8, 1 << 20), "float32")
    copying.copy(target, source)
    print((target == source).all())
threading.Thread(target=late).start()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_without_further_threads_one_copies_all_and_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(copying, "_started", [])
    monkeypatch.setattr(threading.Thread, "start", refuses)
    source, target = np.arange(1.0, 5.0), np.zeros(4)
    one = copying.Copy(target, source, 2)
    one.begin()
    one.finish()
    np.testing.assert_array_equal(target, source)
    assert copying._jobs().empty()


def test_a_thread_that_is_late_copies_nothing_again() -> None:
    """The target may be someone else's by then."""
    source, target = np.arange(1.0, 5.0), np.zeros(4)
    one = copying.Copy(target, source, 2)
    one.begin()
    one.finish()
    np.testing.assert_array_equal(target, source)
    target[:] = 7
    assert not one.help()
    np.testing.assert_array_equal(target, np.full(4, 7.0))


# Slots that work at once.

INPUTS = (TensorSpec("x", (None, None), "float32"), TensorSpec("k", (None,), "int32"))
OUTPUTS = (TensorSpec("y", (None, None), "float32"), TensorSpec("sums", (None,), "float32"))


def session(*engines: Any, smallest: int = 1, largest: int = 8, costs: dict[int, Cost] | None = None) -> Session:
    profile = OptimizationProfile(
        {
            "x": ShapeRange((smallest, 1), (largest, 5), (largest, 64)),
            "k": ShapeRange((smallest,), (largest,), (largest,)),
        }
    )
    signature = Signature(INPUTS, OUTPUTS, {"list": [0, 1]}, {"list": [0, 1]})
    return Session(engines, signature, profile, rows_independent=True, costs=costs)


def inputs(rows: int, width: int = 5, seed: int = 0) -> list[Array]:
    generator = np.random.default_rng([rows, width, seed])
    return [
        generator.standard_normal((rows, width)).astype("float32"),
        generator.integers(-9, 9, rows).astype("int32"),
    ]


def assert_right(one: Session, given: list[Array]) -> None:
    y, sums = one.run(given)
    wanted = expected({"x": given[0], "k": given[1]})
    np.testing.assert_array_equal(y, wanted[1])
    np.testing.assert_array_equal(sums, wanted[0])


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
        assert len(engine.contexts) <= MAX_SLOTS
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
    assert max(waits) == MAX_SLOTS
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


@pytest.mark.parametrize("rows", [8, 48])
def test_ctrl_c_in_front_of_a_wait_leaves_nothing_running(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    one = session(HostEngineOnDevice(host_cuda))
    wait = Slot.wait

    def interrupted(_: Slot) -> None:
        monkeypatch.setattr(Slot, "wait", wait)
        raise KeyboardInterrupt

    monkeypatch.setattr(Slot, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.run(inputs(rows))
    assert not any(stream.pending for stream in host_cuda.live_streams())
    assert_right(one, inputs(rows))
    one.close()


@pytest.mark.parametrize("rows", [8, 48])
def test_ctrl_c_in_front_of_the_end_of_a_copy_leaves_nothing_copying(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr("keras_trt.runtime.slots.AT_ONCE", 0)  # however few rows there are
    one = session(HostEngineOnDevice(host_cuda))
    assert_right(one, inputs(rows))
    finish, unfinished = copying.Copy.finish, set[int]()
    begin = copying.Copy.begin

    def begun(self: copying.Copy) -> None:
        unfinished.add(id(self._target.base))
        begin(self)

    def finished(self: copying.Copy) -> None:
        finish(self)
        unfinished.discard(id(self._target.base))

    def interrupted(_: copying.Copy) -> None:
        monkeypatch.setattr(copying.Copy, "finish", finished)
        raise KeyboardInterrupt

    monkeypatch.setattr(copying.Copy, "begin", begun)
    monkeypatch.setattr(copying.Copy, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.run(inputs(rows))
    assert not unfinished
    assert_right(one, inputs(rows))
    one.close()


def test_several_gpus_without_a_thread_for_each(engines: list[HostEngineOnDevice]) -> None:
    """After the main thread's end no pool takes work."""
    one = session(*engines)
    one._runner._pool.shutdown()  # type: ignore[union-attr]
    assert_right(one, inputs(100))
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
    assert len(engine.contexts) <= MAX_SLOTS
    assert not host_cuda.faults
    one.close()


# Several GPUs.


@pytest.fixture
def engines(host_cuda: HostCuda) -> list[HostEngineOnDevice]:
    return [HostEngineOnDevice(host_cuda, device) for device in range(2)]


@given(calls=st.lists(st.integers(1, 150), min_size=1, max_size=4), costs=costs)
@settings(max_examples=20, deadline=None)
def test_rows_from_several_gpus_come_back_in_order(calls: list[int], costs: dict[int, Cost]) -> None:
    with installed() as cuda:
        engines = [HostEngineOnDevice(cuda, device) for device in range(2)]
        one = session(*engines, costs=costs)
        for seed, rows in enumerate(calls):
            assert_right(one, inputs(rows, seed=seed))
        one.close()
        assert all(engine.closed for engine in engines)


def test_batches_are_spread_over_gpus(host_cuda: HostCuda, engines: list[HostEngineOnDevice]) -> None:
    for engine in engines:
        engine.slow = 0.001
    one = session(*engines)
    done: list[int] = []
    one.run(inputs(8 * 40), done.append)
    assert done == [8 * count for count in range(1, 41)]
    assert all(engine.contexts for engine in engines)
    assert {host_cuda.streams[stream].device for stream in host_cuda.streams} == {0, 1}
    one.close()


def test_single_batches_go_to_the_gpu_that_is_free(engines: list[HostEngineOnDevice]) -> None:
    for engine in engines:
        engine.slow = 0.002
    one = session(*engines)

    def work(seed: int) -> Any:
        def calls() -> None:
            for number in range(10):
                assert_right(one, inputs(8, seed=100 * seed + number))

        return calls

    in_threads([work(seed) for seed in range(6)])
    assert all(engine.contexts for engine in engines)
    one.close()


def test_a_call_does_not_wait_for_what_others_keep_the_replicas_busy_with(engines: list[HostEngineOnDevice]) -> None:
    one = session(*engines)
    busy = threading.Event()
    others = [one._runner._pool.submit(busy.wait) for _ in range(8)]  # type: ignore[union-attr]
    try:
        in_threads([lambda: assert_right(one, inputs(8 * 6))], 10)
        assert not any(other.done() for other in others)
    finally:
        busy.set()
    one.close()


def test_of_three_gpus_all_have_ended_when_one_fails(host_cuda: HostCuda) -> None:
    host_cuda.devices = 3
    engines = [HostEngineOnDevice(host_cuda, device) for device in range(3)]
    engines[2].slow = 0.1
    one = session(*engines)
    for other in engines[:2]:
        other.slow = 0.02  # so that the third has begun
    engines[1].faults["enqueue"] = (2, CudaError("CUDA failed.", name="cudaErrorIllegalAddress"))
    with pytest.raises(CudaError, match="CUDA failed"):
        one.run(inputs(8 * 60))
    before = host_cuda.calls["cudaStreamSynchronize"]
    assert not any(stream.pending for stream in host_cuda.live_streams())
    time.sleep(0.2)
    assert host_cuda.calls["cudaStreamSynchronize"] == before
    assert_right(one, inputs(100))
    one.close()


@pytest.mark.parametrize("place", [0, 1])
def test_an_error_on_one_gpu_ends_the_call(engines: list[HostEngineOnDevice], place: int) -> None:
    one = session(*engines)
    engines[place].faults["enqueue"] = (0, EngineLoadError("TensorRT did not start."))
    with pytest.raises(EngineLoadError, match="did not start"):  # noqa: PT012 (the other GPU may take all of a call)
        for _ in range(50):
            one.run(inputs(8 * 30))
    assert_right(one, inputs(100))
    one.close()


def test_memory_on_each_gpu_is_told(host_cuda: HostCuda, engines: list[HostEngineOnDevice]) -> None:
    one = session(*engines)
    assert [use.slots for use in one.usage()] == [0, 0]
    one.reserve()
    for number, use in enumerate(one.usage()):
        buffers = sum(memory.size for memory in host_cuda.live("device") if memory.device == number)
        assert (use.device, use.slots, use.engine_bytes, use.context_bytes) == (f"cuda:{number}", 1, 1000, 300)
        assert use.buffer_bytes == use.pinned_bytes == buffers > 0
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
    costs = one.costs
    assert set(costs) == {1, 8, 32, 40}
    assert all(cost.alone > 0 and cost.further >= cost.alone / 3 for cost in costs.values())
    assert len(host_cuda.executables) == 2 * 4
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
    monkeypatch.setattr("keras_trt.runtime.session.time", SimpleNamespace(perf_counter=lambda: now[0]))
    one = session(engine)
    one.measure()
    assert one.costs == {1: Cost(1, 1), 8: Cost(8, 8)}
    one.close()


def test_a_batch_is_its_rows() -> None:
    assert Batch(1, 3, 4) == Batch(start=1, stop=3, size=4)


def test_the_next_rows_are_copied_while_the_last_ones_are_waited_for(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    stage, launch = Slot.stage, Slot.launch

    def staged(slot: Slot, *arguments: Any) -> None:
        seen.append("stage")
        stage(slot, *arguments)

    def launched(slot: Slot) -> None:
        seen.append("launch")
        launch(slot)

    monkeypatch.setattr(Slot, "stage", staged)
    monkeypatch.setattr(Slot, "launch", launched)
    one = session(HostEngineOnDevice(host_cuda), largest=8)
    assert_right(one, inputs(30))
    one.close()
    assert seen == ["stage", "stage", "launch", "stage", "launch", "stage", "launch", "launch"]
