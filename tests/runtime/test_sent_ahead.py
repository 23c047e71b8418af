"""Rows that are on the GPU before their batch is launched (over host memory: see `host_cuda`)."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_trt.runtime import SLOTS
from keras_trt.runtime.results import Results
from keras_trt.runtime.slots import _Buffer
from keras_trt.specs import Measured, Pipelining

from .helpers import assert_right, inputs, one_by_one, runner_of, session
from .host_cuda import HostCuda, installed
from .host_engine import HostContext, HostEngineOnDevice
from .host_parts import Copy


@given(
    calls=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 4)), min_size=1, max_size=4),
    slots=st.integers(1, 7),
    ahead=st.integers(0, 80),
    quick=st.lists(st.booleans(), min_size=1, max_size=40),
)
@settings(max_examples=60, deadline=None)
def test_rows_that_are_sent_ahead_come_back_in_order(
    calls: list[tuple[int, int]], slots: int, ahead: int, quick: list[bool]
) -> None:
    with (
        installed() as cuda,
        mock.patch("keras_trt.runtime.slots.AHEAD", ahead),  # bytes: of some batches, `x` alone is sent ahead, or none
        mock.patch("keras_trt.runtime.slots.ONE_THREADS", 0),
        mock.patch("keras_trt.runtime.copying.PIECE", 64),
    ):
        answers = itertools.cycle(quick)
        cuda.is_quick = lambda _: next(answers)
        engine = HostEngineOnDevice(cuda)
        one = session(engine, measured=Measured({}, Pipelining(slots, 2)))
        for seed, (rows, width) in enumerate(calls):
            assert_right(one, inputs(rows, width, seed))
        assert len(engine.contexts) <= slots
        one.close()


def test_large_rows_are_on_the_gpu_when_their_batch_is_launched(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the GPU's work waits for them, and keeps that of other batches from running."""
    monkeypatch.setattr("keras_trt.runtime.slots.AHEAD", 160)  # bytes: `x` has so many, `k` has less
    sizes = list[int]()
    launch = host_cuda.cudaGraphLaunch

    def launched(executable: Any, stream: Any) -> Any:
        sizes.append(len(stream.pending))
        return launch(executable, stream)

    monkeypatch.setattr(host_cuda, "cudaGraphLaunch", launched)
    one = session(HostEngineOnDevice(host_cuda))
    for seed in range(3):
        assert_right(one, inputs(8 * 12, seed=seed))
    assert len(sizes) > 24
    assert not any(sizes)
    for seed in range(20):  # batches that are alone have a graph with all copies, beside the other
        assert_right(one, inputs(8 if seed % 2 else 16, seed=seed))
    assert len(host_cuda.executables) <= 2 * SLOTS
    one.close()


def test_rows_of_a_call_of_one_batch_are_sent_while_others_are_copied(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keras_trt.runtime.slots.ONE_THREADS", 32)  # bytes: `x` alone has more
    monkeypatch.setattr("keras_trt.runtime.copying.PIECE", 16)
    monkeypatch.setattr("keras_trt.runtime.copying._help_with", lambda *_: None)  # the caller copies row by row
    memcpy, sent = host_cuda.cudaMemcpyAsync, list[bytes]()

    def noted(to: int, source: int, size: int, kind: Any, stream: Any) -> Any:
        if kind == Copy.cudaMemcpyHostToDevice and stream.captured is None:
            sent.append(ctypes.string_at(source, size))
        return memcpy(to, source, size, kind, stream)

    monkeypatch.setattr(host_cuda, "cudaMemcpyAsync", noted)
    one = session(HostEngineOnDevice(host_cuda))
    for rows, launched, records in ((8, 0, False), (8, 1, True), (8, 2, True), (6, 2, False), (8, 3, True)):
        given = inputs(rows, seed=launched)
        sent.clear()
        assert_right(one, given)
        x, k = [row.tobytes() for row in given[0]], given[1].tobytes()
        assert sent == (x if records else [*x, k])  # the graph copies what is small
        assert host_cuda.calls["cudaGraphLaunch"] == launched
    one.close()


@pytest.mark.parametrize("rows", [5, 6])
@pytest.mark.parametrize("ahead", [0, 1 << 20])
@pytest.mark.parametrize("batches", [1, 2])
def test_rows_that_are_sent_in_pieces_are_padded_by_the_last(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, rows: int, ahead: int, batches: int
) -> None:
    """By whatever was there before a row might overflow, or be an index out of range."""
    monkeypatch.setattr("keras_trt.runtime.slots.ONE_THREADS", 16)
    monkeypatch.setattr("keras_trt.runtime.slots.AHEAD", ahead)
    monkeypatch.setattr("keras_trt.runtime.copying.PIECE", 16)
    infer, seen = HostContext._infer, list[Any]()

    def noted(context: HostContext, shapes: Any, addresses: Any) -> None:
        size = 4 * math.prod(shapes["x"])
        seen.append(host_cuda.view(addresses["x"], size, "device").view("float32").reshape(shapes["x"]).copy())
        infer(context, shapes, addresses)

    monkeypatch.setattr(HostContext, "_infer", noted)
    one = session(HostEngineOnDevice(host_cuda), costs=one_by_one({8: 1.0}))
    for seed, count in enumerate((8, rows, 7, rows)):
        given = inputs(8 * (batches - 1) + count, seed=seed)
        seen.clear()
        assert_right(one, given)
        assert len(seen) == batches
        np.testing.assert_array_equal(seen[-1][:count], given[0][-count:])
        np.testing.assert_array_equal(seen[-1][count:], np.repeat(given[0][-1:], 8 - count, axis=0))
    one.close()


@pytest.mark.parametrize(("batches", "pieces"), [(1, 8), (3, 2)])
def test_rows_of_many_batches_are_not_cut_finer(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, batches: int, pieces: int
) -> None:
    monkeypatch.setattr("keras_trt.runtime.slots.ONE_THREADS", 100)  # bytes: `x` alone has more
    monkeypatch.setattr("keras_trt.runtime.copying.PIECE", 16)
    begin, begun = _Buffer.begin, list[int]()

    def noted(buffer: _Buffer, *arguments: Any) -> None:
        begin(buffer, *arguments)
        if buffer.copy:
            begun.append(len(buffer.copy._pieces))

    monkeypatch.setattr(_Buffer, "begin", noted)
    one = session(HostEngineOnDevice(host_cuda), measured=Measured({}, Pipelining(3, 2)))
    assert_right(one, inputs(8 * batches))
    assert begun == [pieces] * batches
    one.close()


def test_one_large_row_is_part_of_its_graph(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it can be sent before the rest."""
    monkeypatch.setattr("keras_trt.runtime.slots.ONE_THREADS", 16)
    monkeypatch.setattr("keras_trt.runtime.copying.PIECE", 8)
    one = session(HostEngineOnDevice(host_cuda))
    for seed in range(3):
        assert_right(one, inputs(1, seed=seed))
    (slot,) = runner_of(one)._pool._idle
    assert list(slot._graphs) == [frozenset()]
    one.close()


@pytest.mark.parametrize("asked", [0, 1, 5])
@pytest.mark.parametrize("slots", [3, 4, 6])
def test_rows_that_are_ready_do_not_wait_for_results(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, slots: int, asked: int
) -> None:
    """The GPU has all batches that there are slots for, however late rows are there, if sooner than results."""
    monkeypatch.setattr("keras_trt.runtime.slots.AHEAD", 0)
    computing, found, questions = set[int](), list[int](), Counter[int]()

    def is_quick(stream: Any) -> bool:
        questions[id(stream)] += 1
        return id(stream) not in computing and questions[id(stream)] > asked

    host_cuda.is_quick = is_quick
    launch, wait = host_cuda.cudaGraphLaunch, host_cuda.cudaStreamSynchronize

    def launched(executable: Any, stream: Any) -> Any:
        computing.add(id(stream))
        return launch(executable, stream)

    def waited(stream: Any) -> Any:
        if id(stream) in computing:
            found.append(len(computing))
            computing.discard(id(stream))
            questions.clear()
        return wait(stream)

    one = session(HostEngineOnDevice(host_cuda), measured=Measured({}, Pipelining(slots, 2)))
    assert_right(one, inputs(8 * 40))  # graphs are recorded
    assert_right(one, inputs(8 * 40, seed=1))
    monkeypatch.setattr(host_cuda, "cudaGraphLaunch", launched)
    monkeypatch.setattr(host_cuda, "cudaStreamSynchronize", waited)
    assert_right(one, inputs(8 * 40, seed=2))
    assert len(found) == 40
    assert set(found[: 40 - slots]) == {slots}
    one.close()


@pytest.mark.parametrize("late", [False, True])
def test_results_that_are_ready_do_not_wait_for_rows(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Where rows take long to get to the GPU, batches that it has computed make room for the next ones."""
    monkeypatch.setattr("keras_trt.runtime.slots.AHEAD", 0)
    computing = dict[int, None]()
    found = list[int]()
    host_cuda.is_quick = lambda stream: (id(stream) in computing) == late
    launch, give = host_cuda.cudaGraphLaunch, Results.put

    def launched(executable: Any, stream: Any) -> Any:
        computing[id(stream)] = None
        return launch(executable, stream)

    def given(results: Results, *arguments: Any, **keywords: Any) -> None:
        found.append(len(computing))
        computing.pop(next(iter(computing)))
        give(results, *arguments, **keywords)

    one = session(HostEngineOnDevice(host_cuda), measured=Measured({}, Pipelining(6, 2)))
    for seed in range(2):
        assert_right(one, inputs(8 * 40, seed=seed))
    monkeypatch.setattr(host_cuda, "cudaGraphLaunch", launched)
    monkeypatch.setattr(Results, "put", given)
    assert_right(one, inputs(8 * 40, seed=2))
    assert len(found) == 40
    assert set(found[:34]) == {1 if late else 6}
    one.close()


@pytest.mark.parametrize("slots", [2, 3, 6])
def test_the_thread_sleeps_only_while_the_gpu_has_enough_to_compute(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    monkeypatch.setattr("keras_trt.runtime.slots.AHEAD", 0)
    computing, slept = set[int](), list[tuple[float, int]]()
    launch, wait = host_cuda.cudaGraphLaunch, host_cuda.cudaStreamSynchronize

    def launched(executable: Any, stream: Any) -> Any:
        computing.add(id(stream))
        return launch(executable, stream)

    def waited(stream: Any) -> Any:
        computing.discard(id(stream))
        return wait(stream)

    def sleep(seconds: float) -> None:
        slept.append((seconds, len(computing)))

    one = session(HostEngineOnDevice(host_cuda), measured=Measured({}, Pipelining(slots, 2)))
    for seed in range(2):
        assert_right(one, inputs(8 * 40, seed=seed))
    monkeypatch.setattr(host_cuda, "cudaGraphLaunch", launched)
    monkeypatch.setattr(host_cuda, "cudaStreamSynchronize", waited)
    monkeypatch.setattr("keras_trt.runtime.pipeline.time", SimpleNamespace(sleep=sleep))
    assert_right(one, inputs(8 * 40, seed=2))
    assert all(count >= 2 for _, count in slept)
    long = [seconds for seconds, _ in slept if seconds]
    assert bool(slept) == (slots > 2)  # of two, one is computed while the other's rows are waited for
    assert bool(long) == bool(slept)
    assert not any(seconds for seconds, _ in slept[:10])  # it may be soon
    assert all(seconds < 1e-4 for seconds in long)
    one.close()
