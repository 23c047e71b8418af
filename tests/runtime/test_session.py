"""Rows → the engine's batches → rows, with an engine that is a numpy function."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_trt.errors import CudaError, FallbackWarning
from keras_trt.runtime import Session
from keras_trt.runtime.plan import BatchPlan
from keras_trt.specs import OptimizationProfile, ShapeRange, Signature, TensorSpec

Array = np.ndarray[Any, Any]


class NumpyEngine:
    """A `HostEngine`: `scaled = 3 a + b`, `total = a.sum(1)`. It refuses what an engine of its profile would.

    Its outputs come in another order than the signature has them, and `total` in another type.
    """

    input_names = ("a", "b")
    output_names = ("total", "scaled")

    def __init__(self, smallest: int, largest: int) -> None:
        self.limits = smallest, largest
        self.ran: list[int] = []
        self.padding: list[Array] = []
        self.closed = False

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        assert list(feeds) == list(self.input_names)
        a, b = feeds["a"], feeds["b"]
        assert a.dtype == b.dtype == np.float32
        assert len(a) == len(b)
        assert self.limits[0] <= len(a) <= self.limits[1]
        self.ran.append(len(a))
        return [a.sum(axis=1, dtype="float64"), 3 * a + b]

    def close(self) -> None:
        self.closed = True


INPUTS = (TensorSpec("a", (None, 4), "float32"), TensorSpec("b", (None, 4), "float32"))
OUTPUTS = (TensorSpec("scaled", (None, 4), "float32"), TensorSpec("total", (None,), "float16"))


def session(
    engine: Any, smallest: int = 1, largest: int = 8, *, inputs: Sequence[TensorSpec] = INPUTS, independent: bool = True
) -> Session:
    usual = (smallest + largest) // 2
    profile = OptimizationProfile({s.name: ShapeRange((smallest, 4), (usual, 4), (largest, 4)) for s in inputs})
    signature = Signature(tuple(inputs), OUTPUTS, {"list": list(range(len(inputs)))}, {"list": [0, 1]})
    return Session([engine], signature, profile, rows_independent=independent)


def rows_of_inputs(rows: int, seed: int = 0) -> list[Array]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((rows, 4)).astype("float32") for _ in range(2)]


@given(rows=st.integers(1, 50), smallest=st.integers(1, 12), more=st.integers(0, 12))
def test_any_number_of_rows(rows: int, smallest: int, more: int) -> None:
    engine = NumpyEngine(smallest, smallest + more)
    a, b = rows_of_inputs(rows)
    done: list[int] = []
    scaled, total = session(engine, smallest, smallest + more).run([a, b], done.append)
    np.testing.assert_array_equal(scaled, 3 * a + b)
    np.testing.assert_array_equal(total, a.sum(axis=1, dtype="float64").astype("float16"))
    assert (scaled.dtype, total.dtype) == (np.float32, np.float16)
    assert done == [batch.stop for batch in BatchPlan(smallest, smallest + more).cut(rows)]


def test_padding_repeats_a_real_row() -> None:
    class Watched(NumpyEngine):
        def run(self, feeds: Mapping[str, Array]) -> list[Array]:
            self.padding.append(feeds["a"][3:])
            return super().run(feeds)

    engine = Watched(5, 5)
    a, b = rows_of_inputs(3)
    session(engine, 5, 5).run([a, b])
    np.testing.assert_array_equal(engine.padding[0], np.repeat(a[2:], 2, axis=0))


def test_a_fixed_batch_size_is_kept() -> None:
    engine = NumpyEngine(4, 4)
    a, b = rows_of_inputs(10)
    scaled, _ = session(engine, 4, 4).run([a, b])
    np.testing.assert_array_equal(scaled, 3 * a + b)
    assert engine.ran == [4, 4, 4]


def test_an_input_that_the_engine_does_not_have_is_left_out() -> None:
    unused = TensorSpec("unused", (None, 4), "float32")
    a, b = rows_of_inputs(11)
    nothing = np.full_like(a, np.nan)
    scaled, _ = session(NumpyEngine(1, 4), 1, 4, inputs=(INPUTS[0], unused, INPUTS[1])).run([a, nothing, b])
    np.testing.assert_array_equal(scaled, 3 * a + b)


def test_an_engine_that_reuses_its_output_does_not_spoil_the_rows_before() -> None:
    class Reusing(NumpyEngine):
        def run(self, feeds: Mapping[str, Array]) -> list[Array]:
            fresh = super().run(feeds)
            if not hasattr(self, "kept"):
                self.kept = fresh
            for kept, new in zip(self.kept, fresh, strict=True):
                kept[: len(new)] = new
            return [kept[: len(new)] for kept, new in zip(self.kept, fresh, strict=True)]

    a, b = rows_of_inputs(19)
    scaled, total = session(Reusing(1, 8)).run([a, b])
    np.testing.assert_array_equal(scaled, 3 * a + b)
    np.testing.assert_array_equal(total, a.sum(axis=1, dtype="float64").astype("float16"))


@pytest.mark.parametrize(("rows", "taken"), [(1, False), (2, True), (8, True), (9, False)])
def test_dependent_rows_are_never_cut_or_padded(rows: int, taken: bool) -> None:
    one = session(NumpyEngine(2, 8), 2, 8, independent=False)
    objection = one.takes(rows_of_inputs(rows))
    if taken:
        assert objection is None
    else:
        assert objection is not None
        assert f"a batch of {rows} " in objection.text
        assert "batch_sizes" in objection.text


@pytest.mark.parametrize(("width", "taken"), [(2, False), (3, True), (5, True), (6, False)])
def test_axes_outside_the_profile_are_refused_by_name(width: int, taken: bool) -> None:
    profile = OptimizationProfile({"a": ShapeRange((1, 3), (2, 4), (4, 5)), "b": ShapeRange((1, 4), (2, 4), (4, 4))})
    one = Session([NumpyEngine(1, 4)], Signature(INPUTS, OUTPUTS, 0, 0), profile, rows_independent=True)
    objection = one.takes([np.zeros((9, width), "float32"), np.zeros((9, 4), "float32")])
    if taken:
        assert objection is None
    else:
        assert objection is not None
        for part in ("axis 1", "'a'", f"{width} entries", "3 to 5", "profiles"):
            assert part in objection.text


def test_another_type_than_the_engines_is_refused() -> None:
    a, b = rows_of_inputs(3)
    objection = session(NumpyEngine(1, 8)).takes([a, b.astype("int32")])
    assert objection is not None
    for part in ("'b'", "int32", "float32", "sample"):
        assert part in objection.text


def test_one_cause_is_one_kind_of_objection() -> None:
    dependent, other = session(NumpyEngine(2, 4), 2, 4, independent=False), session(NumpyEngine(1, 8))
    wide = [np.zeros((1, 5 + more), "float32") for more in range(2)]
    kinds = [dependent.takes(rows_of_inputs(rows)) for rows in (1, 5, 6)]
    assert len({one.kind for one in kinds if one is not None}) == 1
    axes = [other.takes([some, some]) for some in wide]
    assert len({one.kind for one in (*kinds, *axes) if one is not None}) == 2
    assert len({one.text for one in (*kinds, *axes) if one is not None}) == 5


def test_close_closes_the_engine() -> None:
    engine = NumpyEngine(1, 8)
    session(engine).close()
    assert engine.closed


def test_retire_while_another_thread_closes() -> None:
    class Interrupted:
        """Whoever gives the lock back first is overtaken."""

        then: Any = None

        def __init__(self, lock: Any) -> None:
            self.lock = lock

        def __enter__(self) -> None:
            self.lock.__enter__()

        def __exit__(self, *exception: Any) -> None:
            self.lock.__exit__(*exception)
            then, self.then = self.then, None
            if then is not None:
                then()

    engine = NumpyEngine(1, 8)
    one = session(engine)
    life = one._life
    life._lock = Interrupted(life._lock)  # type: ignore[assignment]
    life._lock.then = one.close  # type: ignore[attr-defined]
    one.retire()
    assert engine.closed


def test_what_a_block_runs_is_run_before_the_engine_is_closed() -> None:
    engine = NumpyEngine(1, 8)
    one = session(engine)
    a, b = rows_of_inputs(3)
    with one.in_use():
        closer = threading.Thread(target=one.close, daemon=True)
        closer.start()
        while not one._life._closed:
            pass
        np.testing.assert_array_equal(one.run([a, b])[0], 3 * a + b)
        with pytest.raises(RuntimeError, match="closed"), one.in_use():
            pass
    closer.join(30)
    assert engine.closed
    with pytest.raises(RuntimeError, match="closed"):
        one.run([a, b])


def test_a_block_that_is_cut_short_runs_nothing_more() -> None:
    one = session(NumpyEngine(1, 8))
    with one.in_use():
        closer = threading.Thread(target=one.close, kwargs={"cut_short": True}, daemon=True)
        closer.start()
        while not one._life._closed:
            pass
        with pytest.raises(RuntimeError, match="closed"):
            one.run(rows_of_inputs(3))
    closer.join(30)
    assert not closer.is_alive()


def test_a_block_that_is_cut_short_is_not_waited_for() -> None:
    """At exit a daemon thread may wait for its next batch, for ever."""
    engine = NumpyEngine(1, 8)
    one = session(engine)
    with one.in_use():
        closer = threading.Thread(target=one.close, kwargs={"cut_short": True}, daemon=True)
        closer.start()
        closer.join(10)
        assert engine.closed


def test_rows_that_are_run_again_are_not_reported_again() -> None:
    class Fills(NumpyEngine):
        def run(self, feeds: Mapping[str, Array]) -> list[Array]:
            if self.ran == [8]:
                self.ran.append(0)
                raise CudaError("no memory", name="cudaErrorMemoryAllocation")
            return super().run(feeds)

    a, b = rows_of_inputs(16)
    done: list[int] = []
    with pytest.warns(FallbackWarning, match="running 4 at a time"):
        scaled, _ = session(Fills(1, 8)).run([a, b], done.append)
    np.testing.assert_array_equal(scaled, 3 * a + b)
    assert done == [8, 12, 16]


def test_two_calls_that_find_no_memory_at_once_halve_the_batch_once() -> None:
    both = threading.Barrier(2)

    class Fills(NumpyEngine):
        def run(self, feeds: Mapping[str, Array]) -> list[Array]:
            if len(feeds["a"]) == 8:
                both.wait(30)
                raise CudaError("no memory", name="cudaErrorMemoryAllocation")
            return super().run(feeds)

    engine = Fills(1, 8)
    one = session(engine)
    a, b = rows_of_inputs(16)
    with ThreadPoolExecutor(2) as pool, pytest.warns(FallbackWarning) as warned:
        wait([pool.submit(one.run, [a, b]) for _ in range(2)])
    assert engine.ran == [4] * 8
    assert len(warned) == 1


def test_halves_are_no_smaller_than_the_engine_takes() -> None:
    class Fills(NumpyEngine):
        def run(self, feeds: Mapping[str, Array]) -> list[Array]:
            if len(feeds["a"]) > 5:
                raise CudaError("no memory", name="cudaErrorMemoryAllocation")
            return super().run(feeds)

    engine = Fills(5, 8)
    a, b = rows_of_inputs(16)
    with pytest.warns(FallbackWarning, match="for 8 rows: running 5 at a time"):
        scaled, _ = session(engine, 5, 8).run([a, b])
    np.testing.assert_array_equal(scaled, 3 * a + b)


def test_eight_threads() -> None:
    one = session(NumpyEngine(2, 8), 2, 8)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for rows in range(1, 40):
                a, b = rows_of_inputs(rows, seed)
                np.testing.assert_array_equal(one.run([a, b])[0], 3 * a + b)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
