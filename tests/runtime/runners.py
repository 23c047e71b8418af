"""What the tests of `GpuRunner` share: one over the double of a GPU, its rows and their answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_trt.runtime.gpu import GpuRunner
from keras_trt.runtime.plan import Batch
from keras_trt.runtime.results import Results

from .host_engine import HostEngineOnDevice, expected

Array = np.ndarray[Any, Any]


def feeds(rows: int, width: int = 5, seed: int = 0) -> dict[str, Array]:
    generator = np.random.default_rng([rows, width, seed])
    return {
        "x": generator.standard_normal((rows, width)).astype("float32"),
        "k": generator.integers(-9, 9, rows).astype("int32"),
    }


def infer(runner: GpuRunner, some: dict[str, Array]) -> list[Array]:
    """Run one batch."""
    rows = len(some["x"])
    results = Results(rows, [runner._engine.dtype(name) for name in runner.output_names])
    runner.run(some, [Batch(0, rows, rows)], range(len(runner.output_names)), results)
    return results.arrays


def assert_right(runner: GpuRunner, some: dict[str, Array]) -> None:
    for got, wanted in zip(infer(runner, some), expected(some), strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


@contextlib.contextmanager
def running(engine: HostEngineOnDevice) -> Iterator[GpuRunner]:
    runner = GpuRunner(engine)
    try:
        yield runner
    finally:
        runner.close()
        assert engine.closed
