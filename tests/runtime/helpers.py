"""What the tests of many batches share: a session over the double of a GPU, its rows and their answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from keras_trt.runtime import Session
from keras_trt.runtime.gpu import GpuRunner
from keras_trt.specs import Cost, Measured, OptimizationProfile, ShapeRange, Signature, TensorSpec

from .host_engine import expected

Array = np.ndarray[Any, Any]

sizes = st.integers(1, 12)
seconds = st.floats(0.01, 100)
a_cost = st.builds(Cost, seconds, seconds)
costs = st.dictionaries(st.integers(1, 24), a_cost, max_size=4)


def one_by_one(costs: dict[int, float]) -> dict[int, Cost]:
    """Return the costs of batches of which none is brought in while another is computed."""
    return {size: Cost(alone, alone) for size, alone in costs.items()}


INPUTS = (TensorSpec("x", (None, None), "float32"), TensorSpec("k", (None,), "int32"))
OUTPUTS = (TensorSpec("y", (None, None), "float32"), TensorSpec("sums", (None,), "float32"))


def session(
    *engines: Any,
    smallest: int = 1,
    largest: int = 8,
    costs: dict[int, Cost] | None = None,
    measured: Measured | None = None,
) -> Session:
    profile = OptimizationProfile(
        {
            "x": ShapeRange((smallest, 1), (largest, 5), (largest, 64)),
            "k": ShapeRange((smallest,), (largest,), (largest,)),
        }
    )
    signature = Signature(INPUTS, OUTPUTS, {"list": [0, 1]}, {"list": [0, 1]})
    measured = measured or Measured(costs or {})
    return Session(engines, signature, profile, rows_independent=True, measured=measured)


def runner_of(one: Session) -> GpuRunner:
    assert isinstance(one._runner, GpuRunner)
    return one._runner


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


def in_threads(works: list[Callable[[], None]], seconds: float = 30.0) -> None:
    """Run each in a thread of its own; raise the first error, and an error for threads that do not end."""
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in threads), "threads hang"
