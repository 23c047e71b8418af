"""How rows are cut into batches, by what those cost."""

from __future__ import annotations

import itertools
import json
import math
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_trt.runtime.plan import BESIDE, LONG, SHORT, WORTH, WORTH_WAKING, BatchPlan
from keras_trt.specs import Cost, Measured, Pipelining

from .helpers import a_cost, costs, one_by_one

Array = np.ndarray[Any, Any]


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


@pytest.mark.parametrize("no_time", [math.nan, math.inf, 0.0, -1.0])
def test_what_is_no_time_is_no_cost(no_time: float) -> None:
    """By it all rows would be run one by one."""
    for cost in (Cost(no_time, 1.0), Cost(1.0, no_time)):
        with pytest.raises(ValueError, match="a batch of 8 rows cannot take"):
            Measured.from_json(Measured({8: cost}).to_json())


def test_a_large_batch_is_cut_where_that_is_faster() -> None:
    """What ResNet50 was seen to take on an H200, in ms: half of the time of a large batch is its copy to the GPU."""
    plan = BatchPlan(1, 128, {1: Cost(0.43, 0.35), 8: Cost(0.9, 0.6), 32: Cost(2.7, 1.2), 128: Cost(9.2, 3.9)})
    assert [batch.size for batch in plan.cut(128)] == [32] * 4
    assert not plan.is_whole(128)
    assert plan.is_whole(1)
    assert plan.is_whole(40)
    assert {batch.size for batch in plan.cut(128 * 9)} == {128}  # of many rows, what a further one takes counts
    assert plan.seconds(20) == pytest.approx(1.8)


@given(costs=costs, pipelining=st.none() | st.builds(Pipelining, st.integers(1, 64), st.integers(1, 64)))
def test_what_was_measured_is_kept_as_json(costs: dict[int, Cost], pipelining: Pipelining | None) -> None:
    measured = Measured(costs, pipelining)
    assert Measured.from_json(json.loads(json.dumps(measured.to_json()))) == measured


@pytest.mark.parametrize("counts", [[0, 4], [4, -1], [4, 1.5], [True, 4], [4], [4, 10**9]])
def test_what_is_no_number_of_slots_and_threads_is_refused(counts: list[float]) -> None:
    with pytest.raises((TypeError, ValueError)):
        Measured.from_json({"seconds": [], "pipelining": counts})


def test_very_large_batches_are_planned_in_little_memory() -> None:
    """Few rows of a model that takes a million at once took seconds, and a gigabyte, until the first was run."""
    largest = 1 << 20
    small = {1: Cost(0.1, 0.05), 8: Cost(0.11, 0.06), 32: Cost(0.12, 0.07)}
    for cost in (Cost(1, 0.5), Cost(10_000, 5_000)):
        plan = BatchPlan(1, largest, {**small, largest: cost})
        tracemalloc.start()
        try:
            cut = [batch.size for batch in plan.cut(3)], [batch.size for batch in plan.cut(largest)]
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert cut == ([8], [largest] if cost.alone == 1 else [32] * (largest // 32))
        assert most < 150 << 20


def test_a_tail_is_padded_split_or_run_by_what_it_costs() -> None:
    def cut(rows: int, costs: dict[int, float]) -> list[int]:
        return [batch.size for batch in BatchPlan(1, 128, one_by_one(costs)).cut(rows)]

    steep = {1: 1.5, 8: 9.0, 32: 32.0, 128: 100.0}
    assert cut(128 + 40, steep) == [128, 32, 8]
    flat = {1: 9.0, 8: 9.5, 32: 10.0, 128: 11.0}
    assert cut(128 + 40, flat) == [128, 128]
    assert cut(5, flat) == [8]
    assert cut(1000, {1: 1.0, 32: 2.0, 128: 100.0})[:30] == [32] * 30


@given(
    costs=st.dictionaries(st.integers(1, 24), st.builds(Cost, *[st.floats(1e-5, 2 * LONG)] * 2), max_size=4),
    rows=st.lists(st.integers(1, 30), min_size=1, max_size=6),
)
def test_as_many_as_are_worth_it(costs: dict[int, Cost], rows: list[int]) -> None:
    plan = BatchPlan(1, 24, costs)

    def seconds(count: int) -> float | None:
        """What so many take in the smallest batch that was measured and holds them."""
        fitting = [cost.alone for size, cost in sorted(costs.items()) if size >= sum(rows[:count])]
        return fitting[0] if fitting else None

    count, size = plan.together(rows)
    assert count == 1 or WORTH_WAKING <= count <= len(rows)
    each = [(plan.seconds(some), plan.seconds(some, further=True)) for some in rows]
    apart = [None if alone is None or further is None else max(further, alone / BESIDE) for alone, further in each]
    for more in range(WORTH_WAKING, len(rows) + 1):
        together, one_by_one = seconds(more), list(itertools.accumulate(one or 0.0 for one in apart[:more]))[-1]
        worth = None not in apart[:more] and together is not None and together <= min(WORTH * one_by_one, LONG)
        if more == count:
            assert worth
            assert size == min(known for known in costs if known >= sum(rows[:more]))
        if more > count:
            assert not worth
    for calls in (2, 5):
        worth = not plan.is_short(rows[0]) and plan.together(rows[:1] * calls)[0] > 1
        assert plan.is_joined(rows[0], calls) == worth


def test_long_calls_are_joined_where_there_are_enough_of_them() -> None:
    """Single images are not short. Four beside each other take less than a batch of eight, and that less than five."""
    plan = BatchPlan(1, 32, {1: Cost(0.30e-3, 0.15e-3), 8: Cost(0.6e-3, 0.4e-3), 32: Cost(1.3e-3, 0.7e-3)})
    assert not plan.is_short(1)
    assert plan.seconds(1) > SHORT
    assert [plan.is_joined(1, calls) for calls in (2, 4, 5, 8, 32)] == [False, False, True, True, True]
    assert plan.together([1] * 32) == (32, 32)
    assert plan.together([1] * 6) == (6, 8)


def test_calls_of_threads_overlap_less_than_the_batches_of_one() -> None:
    """What a batch costs behind others of its own call is no measure of what it costs beside those of other threads."""
    alone = {1: 3.2e-4, 8: 4e-4, 32: 1e-3}
    plans = [BatchPlan(1, 32, {size: Cost(one, one / by) for size, one in alone.items()}) for by in (3, 10, 24)]
    for rows, calls in itertools.product((1, 2, 5, 8), (2, 3, 4, 6, 8, 32)):
        first, *others = [plan.together([rows] * calls) for plan in plans]
        assert all(other == first for other in others)
    assert plans[-1].together([1] * 8) == (8, 8)
