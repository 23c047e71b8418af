"""Errors anywhere while batches are under way: no slot is lost, and later calls are right (see `host_cuda`)."""

from __future__ import annotations

import itertools
from contextlib import suppress
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_trt.errors import CudaError, EngineLoadError
from keras_trt.specs import Cost, Measured, Pipelining

from .helpers import assert_right, inputs, runner_of, session
from .host_cuda import installed
from .host_engine import HostEngineOnDevice
from .host_parts import Status
from .test_runner_faults import FUNCTIONS, METHODS

CALLS = st.tuples(st.integers(1, 70), st.integers(1, 3))
FAULTS = st.tuples(
    st.sampled_from((*FUNCTIONS, "cudaStreamQuery", *METHODS)),
    st.integers(0, 12),
    st.sampled_from([Status.cudaErrorMemoryAllocation, Status.cudaErrorIllegalAddress]),
)


@pytest.mark.filterwarnings("ignore:The GPU's memory")
@given(
    steps=st.lists(st.one_of(CALLS, FAULTS), min_size=2, max_size=12),
    slots=st.integers(1, 6),
    ahead=st.integers(0, 100),
    quick=st.lists(st.booleans(), min_size=1, max_size=17),
    at_once=st.sampled_from([0, 100]),
    piece=st.sampled_from([16, 1 << 20]),
    costs=st.sampled_from([{}, {1: Cost(1, 1), 3: Cost(1.5, 1.3), 8: Cost(2, 1.8)}]),
)
@settings(max_examples=150, deadline=None)
def test_errors_anywhere_leave_nothing_behind(
    steps: list[tuple[int, int] | tuple[str, int, Status]],
    slots: int,
    ahead: int,
    quick: list[bool],
    at_once: int,
    piece: int,
    costs: dict[int, Cost],
) -> None:
    with (
        installed() as cuda,
        mock.patch("keras_trt.runtime.slots.AHEAD", ahead),
        mock.patch("keras_trt.runtime.slots.ONE_THREADS", at_once),
        mock.patch("keras_trt.runtime.copying.PIECE", piece),
    ):
        answers = itertools.cycle(quick)
        cuda.is_quick = lambda _: next(answers)
        engine = HostEngineOnDevice(cuda)
        one = session(engine, measured=Measured(costs, Pipelining(slots, 2)))
        pool = runner_of(one)._pool
        for seed, step in enumerate(steps):
            if len(step) == 2:
                with suppress(CudaError, EngineLoadError):
                    assert_right(one, inputs(*step, seed))
                assert len(pool._idle) == pool._made
                assert not any(stream.pending for stream in cuda.live_streams())
            elif step[0] in METHODS:
                engine.faults[step[0]] = (step[1], EngineLoadError("TensorRT fails."))
            else:
                cuda.fail(step[0], *[Status.cudaSuccess] * step[1], step[2])
        engine.faults.clear()
        cuda.injected.clear()
        for rows in (8, 51, 3, 51):
            assert_right(one, inputs(rows))
        one.close()
