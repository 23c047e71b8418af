"""Rows that are on the GPU before their batch is launched (over host memory: see `host_cuda`)."""

from __future__ import annotations

import itertools
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_trt.runtime import SLOTS
from keras_trt.runtime.pipeline import BUSY
from keras_trt.specs import Measured, Pipelining

from .helpers import assert_right, inputs, session
from .host_cuda import HostCuda, installed
from .host_engine import HostEngineOnDevice


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


@pytest.mark.parametrize("is_quick", [False, True])
@pytest.mark.parametrize("slots", [3, 4, 6])
def test_the_gpu_has_others_to_compute_while_one_is_waited_for(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, slots: int, is_quick: bool
) -> None:
    """All that there are slots for, where rows are on the GPU soon; else as many as keep it busy."""
    monkeypatch.setattr("keras_trt.runtime.slots.AHEAD", 0)
    computing, found = set[int](), list[int]()
    host_cuda.is_quick = lambda stream: is_quick and id(stream) not in computing
    launch, wait = host_cuda.cudaGraphLaunch, host_cuda.cudaStreamSynchronize

    def launched(executable: Any, stream: Any) -> Any:
        computing.add(id(stream))
        return launch(executable, stream)

    def waited(stream: Any) -> Any:
        if id(stream) in computing:
            found.append(len(computing))
            computing.discard(id(stream))
        return wait(stream)

    one = session(HostEngineOnDevice(host_cuda), measured=Measured({}, Pipelining(slots, 2)))
    assert_right(one, inputs(8 * 40))  # graphs are recorded
    assert_right(one, inputs(8 * 40, seed=1))
    monkeypatch.setattr(host_cuda, "cudaGraphLaunch", launched)
    monkeypatch.setattr(host_cuda, "cudaStreamSynchronize", waited)
    assert_right(one, inputs(8 * 40, seed=2))
    assert len(found) == 40
    assert min(found[: 40 - slots]) == (slots if is_quick else max(2, min(slots - 1, BUSY)))
    one.close()
