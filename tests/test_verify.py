"""The comparisons that an engine is trusted by can fail, and fail where they should."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_trt.specs import TensorSpec
from keras_trt.verification.verify import LIMITS, Difference, compare, random_samples, rows_depend, worst_row

OUTPUT = [TensorSpec("y", (None, 3), "float32")]
WANTED = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "float32")


def difference(wanted: Any, got: Any, limit: float = 1e-4) -> Any:
    return compare([np.asarray(wanted)], [np.asarray(got)], OUTPUT, limit)[0]


class TestCompare:
    def test_equal(self) -> None:
        assert difference(WANTED, WANTED).within
        assert difference(WANTED, WANTED).relative_l2 == 0

    @pytest.mark.parametrize(
        "got",
        [
            WANTED * 1.001,
            WANTED[::-1],
            WANTED[:, :2],
            WANTED[:1],
            np.where(WANTED == 5, np.nan, WANTED),
            np.where(WANTED == 5, np.inf, WANTED),
            np.zeros_like(WANTED),
        ],
        ids=["scaled", "rows-swapped", "shape", "rows-missing", "nan", "inf", "zeros"],
    )
    def test_wrong(self, got: Any) -> None:
        assert not difference(WANTED, got).within

    def test_nan_and_infinity_at_the_same_places_are_equal(self) -> None:
        odd = np.array([[np.nan, np.inf, -np.inf], [1, 2, 3]], "float32")
        assert difference(odd, odd.copy()).within
        assert not difference(odd, np.array([[np.nan, -np.inf, -np.inf], [1, 2, 3]], "float32")).within

    def test_integers_count_places(self) -> None:
        labels = np.arange(10, dtype="uint8")
        changed = labels.copy()
        changed[0] = 255
        found = difference(labels, changed)
        assert found.relative_l2 == pytest.approx(0.1)
        assert found.largest == 255

    def test_zero_wanted(self) -> None:
        assert difference(np.zeros((2, 3)), np.zeros((2, 3))).within
        assert not difference(np.zeros((2, 3)), np.full((2, 3), 1e-9)).within

    def test_what_else_is_said_of_an_output(self) -> None:
        same = difference(WANTED, WANTED)
        assert (same.cosine, same.argmax, same.not_finite) == (pytest.approx(1), 1, 0)
        turned = difference(WANTED, WANTED[:, ::-1], limit=10)
        assert (turned.argmax, turned.not_finite) == (0, 0)
        assert 0.9 < turned.cosine < 0.97
        broken = difference(WANTED, np.where(WANTED > 4, np.nan, WANTED))
        assert (broken.cosine, broken.not_finite) == (0, 2)
        assert "NaN or infinity in 2 places" in str(broken)

    def test_one_row_in_one_place(self) -> None:
        wanted = np.eye(3, dtype="float32")
        got = wanted[[1, 2, 0, 1]]
        assert worst_row(wanted, got, [1, 2, 0, 1]) == 0
        got[3] *= 1.1
        assert worst_row(wanted, got, [1, 2, 0, 1]) == pytest.approx(0.1)
        assert worst_row(wanted, wanted, [1, 2, 0]) > 1
        assert worst_row(wanted, got, [0, 1]) == np.inf
        assert not Difference("y", 0.0, 0.1, 1e-2, worst_row=0.05).within
        assert Difference("y", 0.0, 0.1, 1e-2, worst_row=0.03).within

    def test_a_huge_row_does_not_hide_what_is_wrong_with_all_others(self) -> None:
        wanted = np.random.default_rng(0).standard_normal((32, 3))
        wanted[0] *= 1e4
        got = np.where(np.arange(32)[:, None] == 0, wanted, -wanted)
        assert difference(wanted, got, limit=1e-2).relative_l2 < 1e-2, "all rows together do not show it"
        assert worst_row(wanted, got, range(32)) > 1

    def test_rows_of_nothing_do_not_make_the_others_large(self) -> None:
        wanted = np.zeros((10, 1))
        wanted[:3] = 1
        got = wanted + np.where(np.arange(10) == 9, 1e-3, 0)[:, None]
        assert worst_row(wanted, got, range(10)) == pytest.approx(1e-3)

    def test_integers_are_looked_at_in_all_places(self) -> None:
        wanted = np.arange(4)
        assert worst_row(wanted, wanted[[1, 2, 3, 0]], [1, 2, 3, 0]) == 0
        assert worst_row(wanted, np.array([1, 2, 0, 0]), [1, 2, 3, 0]) == 0.25

    @given(st.permutations(range(6)), st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
    def test_the_worst_row_is_the_same_in_any_order_and_unit(self, order: list[int], seed: int, unit: float) -> None:
        generator = np.random.default_rng(seed)
        wanted, error = generator.standard_normal((2, 6, 3))
        found = worst_row(wanted, wanted + error, range(6))
        moved = worst_row(wanted * unit, (wanted + error)[order] * unit, order)
        assert moved == pytest.approx(found, rel=1e-9)

    @given(st.floats(1e-6, 1.0), st.integers(0, 2**32 - 1))
    def test_measures_the_relative_error_that_was_made(self, size: float, seed: int) -> None:
        generator = np.random.default_rng(seed)
        wanted = generator.standard_normal((8, 16))
        error = generator.standard_normal((8, 16))
        error *= size * np.linalg.norm(wanted) / np.linalg.norm(error)
        assert difference(wanted, wanted + error).relative_l2 == pytest.approx(size, rel=1e-6)

    def test_limits_grow_as_precision_falls(self) -> None:
        assert LIMITS["fp32"] < LIMITS["tf32"] < LIMITS["fp16"]


MATRIX = np.random.default_rng(1).standard_normal((4, 3))


def rows(function: Any) -> Any:
    def predict(inputs: Sequence[Any]) -> list[Any]:
        return [function(np.asarray(inputs[0], "float64") @ MATRIX)]

    return predict


class TestRowsDepend:
    samples = (np.random.default_rng(2).standard_normal((4, 4)),)

    @pytest.mark.parametrize(
        "function",
        [
            lambda y: y - y.mean(axis=0),
            lambda y: y / np.abs(y).max(),
            lambda y: y * len(y),
            lambda y: np.sort(y, axis=0),
            lambda y: y[::-1],
            lambda y: np.cumsum(y, axis=0),
            lambda y: y.mean(axis=0),
            lambda y: y.mean(),
            lambda y: np.concatenate([y, y]),
            lambda y: y + 0.01 * y.sum(axis=0),
            lambda y: np.where(y == y.max(axis=0), np.inf, y),
            lambda y: y * np.arange(1, len(y) + 1)[:, None],
        ],
        ids=["mean", "max", "size", "sort", "back", "cumsum", "reduced", "scalar", "doubled", "weak", "inf", "place"],
    )
    def test_mixed(self, function: Any) -> None:
        assert rows_depend(rows(function), self.samples)

    @pytest.mark.parametrize(
        "function",
        [
            lambda y: y,
            np.tanh,
            lambda y: y / np.linalg.norm(y, axis=1, keepdims=True),
            lambda y: np.where(y > 1, np.nan, y),
        ],
        ids=["same", "tanh", "row-norm", "nan"],
    )
    def test_apart(self, function: Any) -> None:
        assert not rows_depend(rows(function), self.samples)

    @pytest.mark.parametrize("count", [2, 3, 4, 5])
    def test_rows_that_mix_in_any_pattern(self, count: int) -> None:
        samples = (np.random.default_rng(2).standard_normal((count, 4)),)
        for pattern in itertools.permutations(range(count)):
            found = rows_depend(rows(lambda y, p=pattern: y + 0.1 * y[list(p)]), samples, alone=False)
            assert found == (pattern != tuple(range(count))), pattern

    @given(st.integers(6, 40), st.data())
    def test_rows_that_mix_in_many_patterns(self, count: int, data: Any) -> None:
        samples = (np.random.default_rng(2).standard_normal((count, 4)),)
        pattern = data.draw(st.lists(st.integers(0, count - 1), min_size=count, max_size=count))
        found = rows_depend(rows(lambda y: y + 0.1 * y[pattern]), samples, alone=False)
        assert found == (pattern != list(range(count)))

    @pytest.mark.parametrize("count", [2, 4, 7, 32])
    @pytest.mark.parametrize("function", [np.max, np.min, np.median, np.std], ids=["max", "min", "median", "std"])
    def test_what_a_batch_takes_from_any_of_its_rows(self, function: Any, count: int) -> None:
        for seed in range(20):
            samples = (np.random.default_rng(seed).standard_normal((count, 4)),)
            assert rows_depend(rows(lambda y: y + 0.1 * function(y, axis=0)), samples, alone=False)

    def test_few_batches_are_asked_for(self) -> None:
        sizes = []

        def predict(inputs: Sequence[Any]) -> list[Any]:
            sizes.append(len(inputs[0]))
            return [np.asarray(inputs[0]) @ MATRIX]

        assert not rows_depend(predict, (np.random.default_rng(2).standard_normal((32, 4)),))
        assert sizes == [32, 32, 32, 32, 1]

    def test_noise_of_kernels_is_no_dependence(self) -> None:
        def noisy(inputs: Sequence[Any]) -> list[Any]:
            y = np.asarray(inputs[0]) @ MATRIX
            return [y * (1 + 1e-6 * (len(y) % 7))]

        assert not rows_depend(noisy, self.samples)

    def test_a_fixed_batch_is_never_given_alone(self) -> None:
        def fixed(inputs: Sequence[Any]) -> list[Any]:
            assert len(inputs[0]) == 4
            return [np.asarray(inputs[0]) @ MATRIX]

        assert not rows_depend(fixed, self.samples, alone=False)


def test_random_samples_are_seeded_and_of_the_right_kind() -> None:
    specs = [
        TensorSpec("f", (None, 3), "float32"),
        TensorSpec("i", (None,), "int64"),
        TensorSpec("b", (None, 2), "bool"),
    ]
    sizes = {"f": (3,), "i": (), "b": (2,)}
    one, two = (random_samples(specs, sizes, 64, 5, {}) for _ in range(2))
    for spec, first, second in zip(specs, one, two, strict=True):
        assert first.dtype == spec.dtype
        assert first.shape == (64, *sizes[spec.name])
        np.testing.assert_array_equal(first, second)
    assert set(one[1].tolist()) == set(range(5))
    assert one[2].any()
    assert not one[2].all()


def test_some_random_rows_end_in_masked_steps() -> None:
    specs = [
        TensorSpec("vectors", (None, 8, 3), "float32"),
        TensorSpec("numbers", (None, 8), "float32"),
        TensorSpec("tokens", (None, 8), "int32"),
    ]
    sizes = {"vectors": (8, 3), "numbers": (8,), "tokens": (8,)}
    vectors, numbers, tokens = random_samples(specs, sizes, 4, 1000, {"f": -1.0, "i": 0})
    lengths = [8, 2, 8, 6]
    assert np.any(vectors != -1, axis=2).sum(axis=1).tolist() == lengths
    assert (tokens != 0).sum(axis=1).tolist() == lengths
    assert (numbers != -1).all()
    (short,) = random_samples([TensorSpec("tokens", (None, 1), "int32")], {"tokens": (1,)}, 4, 1000, {"i": 0})
    assert short.all()
