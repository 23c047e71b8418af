"""`predict` against Keras's own: structures, ways to hand data over, batch sizes, steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_trt

from ..forms import FORMS
from ..models import (
    CASES,
    INDEPENDENT,
    accelerate,
    floats,
    kept,
    keras,
    kl,
    pair,
    recorded,
    rows_differ,
    rows_of,
    same,
    tf,
    warns_once,
)

# Keras warns so at the end of each generator, even where nothing is missing.
pytestmark = pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")

ROWS = 75  # two whole batches of the engine and a partial one


# Structures, ways to hand data over, batch sizes.


@pytest.mark.parametrize("name", INDEPENDENT)
def test_arrays_in_batches_of_any_size(name: str) -> None:
    model, fast = pair(name)
    x = CASES[name].data(ROWS)
    expected = model.predict(x, batch_size=25, verbose=0)
    rows_differ(expected)
    assert fast.backend == "onnxruntime"
    assert fast.report().rows_independent
    for size in (None, 1, 7, 32, 200):
        same(expected, fast.predict(x, batch_size=size, verbose=0))


EACH_FORM = ["sequential", "list inputs", "dict inputs", "nested inputs", "nested outputs", "bool"]


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, form) for name in INDEPENDENT for form in (FORMS if name in EACH_FORM else ["dataset of x"])],
)
def test_data_in_any_form(name: str, form: str) -> None:
    model, fast = pair(name)
    x = CASES[name].data(40)  # 17, 17 and 6 rows
    expected = model.predict(FORMS[form](x, 17), verbose=0)
    rows_differ(expected)
    assert rows_of(expected) == 40
    same(expected, fast.predict(FORMS[form](x, 17), verbose=0))


@pytest.mark.parametrize("name", ["list inputs", "tuple inputs", "dict inputs"])
def test_lists_tuples_and_dicts_stand_for_each_other(name: str) -> None:
    model, fast = pair(name)
    x = CASES[name].data(9)
    expected = model.predict(x, verbose=0)
    # Keras warns of a dict for a list in some versions; the numbers are what matters.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name != "dict inputs":
            by_name = dict(zip(("first", "second"), x, strict=True))
            for nesting in (list(x), tuple(x), by_name, dict(reversed(by_name.items()))):
                same(model.predict(nesting, verbose=0), expected)
                same(expected, fast.predict(nesting, verbose=0))
        else:
            same(expected, fast.predict(dict(sorted(x.items())), verbose=0))


@pytest.mark.parametrize("nesting", [lambda x: x, lambda x: [x], lambda x: (x,), lambda x: {"image": x}])
def test_one_input_bare_in_a_container_or_by_name(nesting: Callable[[Any], Any]) -> None:
    model, fast = pair("image")
    x = floats(8, 8, 3)(5)
    same(model.predict(x, verbose=0), fast.predict(nesting(x), verbose=0))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.integers(1, 100), size=st.integers(1, 120))
def test_any_number_of_rows_in_any_batches(rows: int, size: int) -> None:
    model, fast = pair("nested outputs")
    x = floats(4)(rows)
    found = fast.predict(x, batch_size=size, verbose=0)
    same(model.predict(x, batch_size=size, verbose=0), found)
    for row in {0, rows // 2, rows - 1}:
        same(fast.predict_on_batch(x[row : row + 1]), kept(found, slice(row, row + 1)))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(rows=st.integers(1, 60), size=st.integers(1, 32))
def test_any_number_of_rows_in_any_batches_of_rows_that_depend(rows: int, size: int) -> None:
    model, fast = pair("minus mean")
    x = floats(4)(rows)
    same(model.predict(x, batch_size=size, verbose=0), fast.predict(x, batch_size=size, verbose=0))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 70), min_size=1, max_size=5))
def test_batches_of_any_sizes(sizes: list[int]) -> None:
    _, fast = pair("sequential")
    x, ends = floats(4)(sum(sizes)), np.cumsum(sizes)
    batches = ((x[end - size : end],) for size, end in zip(sizes, ends, strict=True))
    same(fast.predict(x, verbose=0), fast.predict(batches, verbose=0))


def test_batches_of_different_lengths_give_ragged_outputs() -> None:
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, kl.Dense(2)(inputs))
    with recorded() as records:
        fast = accelerate(model, sample=floats(5, 3)(2))
        found = fast.predict((x for x in [(floats(5, 3)(4),), (floats(6, 3)(4),)]), verbose=0)
    warns_once(records, "axis 1", "6", "5")
    expected = model.predict((x for x in [(floats(5, 3)(4),), (floats(6, 3)(4),)]), verbose=0)
    assert type(found) is type(expected)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.to_tensor(), expected.to_tensor(), atol=1e-5)


def test_the_engine_runs_and_keras_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CASES["sequential"].build()
    fast = accelerate(model)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("Keras ran")

    for method in ("call", "predict", "predict_on_batch", "__call__"):
        monkeypatch.setattr(type(model), method, refuse)
    x = floats(4)(50)
    fast.predict(x, verbose=0)
    fast.predict((part for part in [(x,), (x,)]), verbose=0)
    fast.predict_on_batch(x)
    fast(x)


def test_it_is_a_snapshot_and_leaves_the_model_alone() -> None:
    model = CASES["sequential"].build()
    before = [array.copy() for array in model.get_weights()]
    fast = accelerate(model)
    x = floats(4)(5)
    expected = model.predict(x, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    model.set_weights([array + 1 for array in before])
    assert np.abs(model.predict(x, verbose=0) - expected).max() > 0.1
    same(expected, fast.predict(x, verbose=0))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64", "float16"])
def test_other_dtype_policies_give_their_own_types(policy: str) -> None:
    inputs = keras.Input((4,), dtype="float32")
    model = keras.Model(inputs, kl.Dense(3, dtype=policy)(kl.Dense(5, dtype=policy)(inputs)))
    x = floats(4)(20)
    expected = model.predict(x, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", keras_trt.FallbackWarning)
        fast = accelerate(model)
    found = fast.predict(x, verbose=0)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found.astype("float64"), expected.astype("float64"), rtol=2e-2, atol=2e-2)


def test_threads_share_a_drop_in() -> None:
    model, fast = pair("dict outputs")
    parts = [floats(4)(rows) * (rows % 7 + 1) for rows in range(1, 41)]
    expected = [model.predict_on_batch(x) for x in parts]
    with ThreadPoolExecutor(8) as pool:
        for one, found in zip(expected, pool.map(lambda x: fast.predict(x, verbose=0), parts), strict=True):
            same(one, found)


# Steps.


@pytest.mark.parametrize(("size", "steps"), [(4, 2), (4, 1), (None, 3), (None, 10), (7, 2), (10, 1), (None, 1)])
@pytest.mark.parametrize("name", ["sequential", "minus mean"])
def test_steps_limit_arrays(name: str, size: int | None, steps: int) -> None:
    model, fast = pair(name)
    x = floats(4)(10)
    same(
        model.predict(x, batch_size=size, steps=steps, verbose=0),
        fast.predict(x, batch_size=size, steps=steps, verbose=0),
    )


@pytest.mark.parametrize("form", list(FORMS)[1:])
def test_steps_limit_batches(form: str) -> None:
    model, fast = pair("sequential")
    x = floats(4)(10)
    expected = model.predict(FORMS[form](x, 3), steps=2, verbose=0)
    assert len(expected) == 6
    same(expected, fast.predict(FORMS[form](x, 3), steps=2, verbose=0))


def test_steps_limit_endless_data() -> None:
    model, fast = pair("sequential")
    x = floats(4)(6)
    endless = tf.data.Dataset.from_tensor_slices(x).repeat().batch(4)
    same(model.predict(endless, steps=5, verbose=0), fast.predict(endless, steps=5, verbose=0))


@pytest.mark.parametrize("form", ["arrays", *list(FORMS)[1:]])
def test_too_many_steps_warn(form: str) -> None:
    model, fast = pair("sequential")
    x = floats(4)(10)

    def data() -> Any:
        return x if form == "arrays" else FORMS[form](x, 4)

    size = 4 if form == "arrays" else None
    with pytest.warns(UserWarning, match="ran out of data"):
        expected = model.predict(data(), batch_size=size, steps=7, verbose=0)
    with pytest.warns(UserWarning, match="data ended") as records:
        found = fast.predict(data(), batch_size=size, steps=7, verbose=0)
    assert len(records) == 1
    same(expected, found)


def test_the_limit_of_keras_config_counts() -> None:
    model, fast = pair("sequential")
    x = floats(4)(20)
    keras.config.set_max_steps_per_epoch(2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras says that it limits
            expected = model.predict(x, batch_size=4, verbose=0)
            found = fast.predict(x, batch_size=4, verbose=0)
    finally:
        keras.config.set_max_steps_per_epoch(None)
    assert len(expected) == 8
    same(expected, found)


# No rows.


@pytest.mark.parametrize("name", [*INDEPENDENT, "minus mean", "over max", "times size"])
def test_no_rows(name: str) -> None:
    model, fast = pair(name)
    x = CASES[name].data(0)
    expected = model.predict_on_batch(x)
    same(expected, fast.predict_on_batch(x))
    same(expected, fast.predict(x, verbose=0))  # where Keras itself stumbles
    same(expected, fast(x))


def test_no_rows_for_an_output_without_rows() -> None:
    model, fast = pair("reduced")
    x = floats(4)(0)
    expected = model.predict_on_batch(x)  # the mean of nothing
    assert expected.shape == (1, 3)
    same(expected, fast.predict_on_batch(x))
