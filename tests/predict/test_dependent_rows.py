"""Rows that depend on each other run in exactly the user's batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ..forms import FORMS
from ..models import CASES, DEPENDENT, accelerate, floats, keras, kl, pair, recorded, rows_differ, same, warns_once

# Keras warns so at the end of each generator, even where nothing is missing.
pytestmark = pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")


@pytest.mark.parametrize("name", DEPENDENT)
def test_dependent_rows_run_in_exactly_the_users_batches(name: str) -> None:
    model, fast = pair(name)
    x = floats(4)(61)
    assert fast.backend == "onnxruntime"
    assert not fast.report().rows_independent
    results = []
    for size in (1, 7, 32, 31, None):
        expected = model.predict(x, batch_size=size, verbose=0)
        results.append(expected)
        same(expected, fast.predict(x, batch_size=size, verbose=0))
    rows_differ(results[1])
    # The batches do matter, so that this can fail.
    assert results[0].shape != results[1].shape or np.abs(results[0] - results[1]).max() > 1e-3
    for form in ("dataset of x, y", "generator"):
        same(model.predict(FORMS[form](x, 9), verbose=0), fast.predict(FORMS[form](x, 9), verbose=0))
    for rows in (1, 2, 32):
        same(model.predict_on_batch(x[:rows]), fast.predict_on_batch(x[:rows]))
        same(np.asarray(model(x[:rows])), fast(x[:rows]))


@pytest.mark.parametrize("name", DEPENDENT)
def test_dependent_rows_over_the_largest_batch_are_run_by_keras(name: str) -> None:
    model = CASES[name].build()
    fast = accelerate(model, batch_sizes=(2, 4, 8))
    x = floats(4)(20)
    with recorded() as records:
        same(model.predict(x, batch_size=20, verbose=0), fast.predict(x, batch_size=20, verbose=0))
        same(model.predict_on_batch(x), fast.predict_on_batch(x))
        same(model.predict(x, batch_size=16, verbose=0), fast.predict(x, batch_size=16, verbose=0))
    found = [str(record.message) for record in records]
    assert "batch_sizes" in found[0]
    assert "20" in found[0]
    same(model.predict_on_batch(x[:8]), fast.predict_on_batch(x[:8]))


def test_batches_of_many_sizes_over_the_largest_warn_once() -> None:
    model = CASES["minus mean"].build()
    fast = accelerate(model, batch_sizes=(1, 4, 8))
    x = floats(4)(20)
    with recorded() as records:
        for rows in (9, 10, 11, 12):
            same(model.predict_on_batch(x[:rows]), fast.predict_on_batch(x[:rows]))
    warns_once(records, "batch_sizes")


def test_dependence_is_seen_in_one_of_many_outputs() -> None:
    inputs = keras.Input((4,))
    plain = kl.Dense(3)(inputs)
    model = keras.Model(inputs, [plain, plain - keras.ops.mean(plain, axis=0)])
    fast = accelerate(model)
    assert not fast.report().rows_independent
    x = floats(4)(20)
    same(model.predict(x, batch_size=7, verbose=0), fast.predict(x, batch_size=7, verbose=0))


def test_dependence_through_the_second_input() -> None:
    first, second = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([first, second], kl.Dense(4)(first) + keras.ops.max(second, axis=0))
    fast = accelerate(model)
    assert not fast.report().rows_independent
    x = [floats(4)(20), -floats(4)(20)[::-1]]
    same(model.predict(x, batch_size=7, verbose=0), fast.predict(x, batch_size=7, verbose=0))


def test_a_weak_dependence_is_seen() -> None:
    inputs = keras.Input((4,))
    plain = kl.Dense(3)(inputs)
    model = keras.Model(inputs, plain + 0.02 * keras.ops.mean(plain, axis=0))
    assert not accelerate(model).report().rows_independent


def test_the_record_in_the_cache_keeps_the_dependence(cache: Any) -> None:
    model = CASES["minus mean"].build()
    x = floats(4)(20)
    for origin in ("built", "cache"):
        fast = accelerate(model, cache=cache)
        assert fast.report().origin == origin
        assert not fast.report().rows_independent
        same(model.predict(x, batch_size=7, verbose=0), fast.predict(x, batch_size=7, verbose=0))
