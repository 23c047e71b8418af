"""Rows that are on the GPU before their batch is launched (over host memory: see `host_cuda`)."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_trt.runtime import SLOTS
from keras_trt.specs import Measured, Pipelining

from .helpers import assert_right, inputs, session
from .host_cuda import HostCuda, installed
from .host_engine import HostEngineOnDevice


@given(
    calls=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 4)), min_size=1, max_size=4), slots=st.integers(1, 7)
)
@settings(max_examples=30, deadline=None)
def test_rows_that_are_sent_ahead_come_back_in_order(calls: list[tuple[int, int]], slots: int) -> None:
    with installed() as cuda, mock.patch("keras_trt.runtime.slots.AHEAD", 0):
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


@pytest.mark.parametrize(("slots", "at_once"), [(4, 1 << 16), (6, 1 << 16), (4, 0)])
def test_the_gpu_has_others_to_compute_while_one_is_waited_for(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, slots: int, at_once: int
) -> None:
    """All slots but one, whose rows are on their way; but two, where those are still being copied."""
    monkeypatch.setattr("keras_trt.runtime.slots.AHEAD", 0)
    monkeypatch.setattr("keras_trt.runtime.slots.AT_ONCE", at_once)
    monkeypatch.setattr("keras_trt.runtime.copying.PIECE", 64)
    computing, found = set[int](), list[int]()
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
    assert min(found[: 40 - slots]) >= (slots - 1 if at_once else slots - 2)
    one.close()
