"""Calls like the one before, which take a way of their own (over host memory: see `host_cuda`)."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_trt.cuda import current_device
from keras_trt.errors import CudaError
from keras_trt.runtime import RowsDependError, Session
from keras_trt.runtime.gpu import GpuRunner
from keras_trt.runtime.steady import Steady

from .helpers import assert_right, in_threads, inputs, one_by_one, session
from .host_cuda import HostCuda, Status, installed
from .host_engine import HostEngineOnDevice, expected
from .test_open_shapes import PickingEngine, picked


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call that was noted to be like one before was run as that."""
    found: list[bool] = []
    run = Steady.run

    def watched(steady: Steady, given: Any) -> Any:
        outputs = run(steady, given)
        found.append(outputs is not None)
        return outputs

    monkeypatch.setattr(Steady, "run", watched)
    return found


def steadily(host_cuda: HostCuda, **how: Any) -> Session:
    return session(HostEngineOnDevice(host_cuda), costs=one_by_one({1: 1e-3, 8: 1e-3}), **how)


@pytest.mark.parametrize("at_once", [0, 1 << 16])
def test_the_third_call_needs_nothing_but_the_graph(
    host_cuda: HostCuda, taken: list[bool], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    for module in ("gpu", "slots", "steady"):
        monkeypatch.setattr(f"keras_trt.runtime.{module}.AT_ONCE", at_once)
    one = steadily(host_cuda)
    for seed in range(6):
        before = host_cuda.calls.copy()
        assert_right(one, inputs(8, seed=seed))
    assert taken == [False, True, True, True, True]  # at the second the graph is recorded
    called = {name for name in host_cuda.calls if host_cuda.calls[name] > before[name]}
    assert called <= {"cudaMemcpyAsync", "cudaGraphLaunch", "cudaGetDevice", "cudaStreamSynchronize"}
    assert (host_cuda.pageable > 0) == (at_once == 0)
    one.close()


@given(
    rows=st.lists(st.integers(1, 20), min_size=3, max_size=12),
    widths=st.lists(st.sampled_from([5, 7]), min_size=3, max_size=12),
    again=st.integers(1, 4),
)
def test_any_calls_are_right(rows: list[int], widths: list[int], again: int) -> None:
    with installed() as cuda:
        one = steadily(cuda)
        for seed, (count, width) in enumerate(zip(rows, widths, strict=False)):
            for more in range(again):
                assert_right(one, inputs(count, width, seed=20 * seed + more))
        one.close()


def test_outputs_are_the_callers(host_cuda: HostCuda, taken: list[bool]) -> None:
    one = steadily(host_cuda)
    found = []
    for seed in range(6):
        given_rows = inputs(8, seed=seed)
        found.append((one.run(given_rows), expected({"x": given_rows[0], "k": given_rows[1]})))
        given_rows[0][...] = np.nan
    for (y, sums), wanted in found:
        np.testing.assert_array_equal(y, wanted[1])
        np.testing.assert_array_equal(sums, wanted[0])
        y[...] = sums[...] = 0
    assert sum(taken) == 4
    one.close()


def test_what_differs_takes_the_usual_way(host_cuda: HostCuda, taken: list[bool]) -> None:
    one = steadily(host_cuda)
    x, k = inputs(8)
    wanted = expected({"x": x, "k": k})
    for _ in range(3):
        assert_right(one, [x, k])
    wide = np.repeat(x, 2, axis=1)
    others: list[Any] = [[wide[:, ::2], k], [x.astype("float64"), k], [x, k.astype("int64")], [x.view(np.memmap), k]]
    for other in others:
        del taken[:]
        y, sums = one.run(other)
        np.testing.assert_array_equal(y, wanted[1])
        np.testing.assert_array_equal(sums, wanted[0])
        assert not any(taken)
    one.close()


def test_integers_that_do_not_fit_are_refused_each_time(host_cuda: HostCuda) -> None:
    one = steadily(host_cuda)
    x, k = inputs(8)
    wide = k.astype("int64")
    for _ in range(4):
        one.run([x, wide])
    wide[3] = 1 << 40
    with pytest.raises(ValueError, match="cannot take"):
        one.run([x, wide])
    one.close()


def test_on_another_current_gpu(host_cuda: HostCuda, taken: list[bool]) -> None:
    one = steadily(host_cuda)
    for seed in range(3):
        assert_right(one, inputs(8, seed=seed))
    with current_device(1):
        assert_right(one, inputs(8, seed=3))
        assert taken[-1] is False
        assert host_cuda.cudaGetDevice()[1] == 1
    assert_right(one, inputs(8, seed=4))
    assert taken[-1] is True
    one.close()


def test_a_new_plan_ends_it(host_cuda: HostCuda, taken: list[bool]) -> None:
    one = steadily(host_cuda)
    for seed in range(3):
        assert_right(one, inputs(8, seed=seed))
    one.measure()
    del taken[:]
    assert_right(one, inputs(8, seed=9))
    assert not taken
    one.close()


@pytest.mark.parametrize("function", ["cudaGraphLaunch", "cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_a_failure_is_left_to_the_usual_way(
    host_cuda: HostCuda, taken: list[bool], monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    for module in ("gpu", "slots", "steady"):
        monkeypatch.setattr(f"keras_trt.runtime.{module}.AT_ONCE", 0)
    one = steadily(host_cuda)
    for seed in range(3):
        assert_right(one, inputs(8, seed=seed))
    host_cuda.fail(function, Status.cudaErrorMemoryAllocation)
    assert_right(one, inputs(8, seed=4))
    assert taken[-1] is False
    assert_right(one, inputs(8, seed=5))
    assert taken[-1] is True
    host_cuda.fail(function, *[Status.cudaErrorIllegalAddress] * 2)
    with pytest.raises(CudaError, match="IllegalAddress"):
        one.run(inputs(8))
    one.close()


def test_many_threads(host_cuda: HostCuda, taken: list[bool]) -> None:
    """Each gets its own rows' answers, and whoever finds others takes its turn as they do."""
    one = steadily(host_cuda)
    for seed in range(3):
        assert_right(one, inputs(8, seed=seed))
    alike = threading.Barrier(4)

    def work(place: int) -> None:
        alike.wait()
        for seed in range(60):
            assert_right(one, inputs(8, seed=100 * place + seed))

    in_threads([lambda place=place: work(place) for place in range(4)])  # type: ignore[misc]
    assert not all(taken)
    one.close()


def test_it_runs_no_slot_that_another_has(host_cuda: HostCuda, taken: list[bool]) -> None:
    one = steadily(host_cuda)
    runner = one._runner
    assert isinstance(runner, GpuRunner)
    for seed in range(3):
        assert_right(one, inputs(8, seed=seed))
    slot = runner._pool.take_last(runner._pool._idle[-1].shapes or ())
    assert slot is not None
    assert_right(one, inputs(8, seed=4))  # on a new slot
    assert taken[-1] is False
    runner._pool.give(slot)
    one.close()


def test_after_close(host_cuda: HostCuda) -> None:
    one = steadily(host_cuda)
    for seed in range(3):
        assert_right(one, inputs(8, seed=seed))
    one.close()
    with pytest.raises(RuntimeError, match="closed"):
        one.run(inputs(8))


def test_outputs_whose_shape_depends_on_the_data_take_the_usual_way(host_cuda: HostCuda, taken: list[bool]) -> None:
    one = session(PickingEngine(host_cuda), largest=16)
    for seed in range(4):
        x, k = inputs(16, seed=seed)
        wanted = picked({"x": x, "k": k})
        with contextlib.suppress(RowsDependError):  # once
            y, sums = one.run([x, k])
            np.testing.assert_array_equal(y, wanted[1])
            np.testing.assert_array_equal(sums, wanted[0])
    assert not taken
    one.close()
