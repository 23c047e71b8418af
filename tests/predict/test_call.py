"""`predict_on_batch` and `__call__` against Keras's own, and what Keras runs itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ..models import CASES, INDEPENDENT, accelerate, floats, keras, kl, pair, recorded, same, tf, warns_once


@pytest.mark.parametrize("name", INDEPENDENT)
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_predict_on_batch(name: str, rows: int) -> None:
    model, fast = pair(name)
    x = CASES[name].data(rows)
    same(model.predict_on_batch(x), fast.predict_on_batch(x))


@pytest.mark.parametrize("name", INDEPENDENT)
def test_call_gives_the_kind_that_it_is_given(name: str) -> None:
    model, fast = pair(name)
    x = CASES[name].data(5)
    tensors = keras.tree.map_structure(tf.constant, x)
    expected = keras.tree.map_structure(np.asarray, model(tensors))
    same(expected, fast(x))
    found = fast(tensors)
    keras.tree.map_structure(lambda one: pytest.fail(f"{type(one)}") if not tf.is_tensor(one) else None, found)
    same(expected, keras.tree.map_structure(np.asarray, found))
    for training in (False, None):
        same(expected, fast(x, training=training))


def test_call_with_both_kinds_gives_tensors() -> None:
    model, fast = pair("list inputs")
    first, second = CASES["list inputs"].data(5)
    found = fast([first, tf.constant(second)])
    assert tf.is_tensor(found)
    same(np.asarray(model([first, second])), np.asarray(found))


def test_training_is_run_by_keras_with_one_warning() -> None:
    model = keras.Sequential([keras.Input((50,)), kl.Dropout(0.5)])
    fast = accelerate(model)
    x = floats(50)(4)
    same(x, fast(x))
    with recorded() as records:
        found = fast(x, training=True)
        tensor = fast(tf.constant(x), training=True)
    warns_once(records, "training=True", "Keras")
    assert isinstance(found, np.ndarray)
    assert tf.is_tensor(tensor)
    for one in (found, np.asarray(tensor)):
        dropped = one == 0
        assert 0.3 < dropped.mean() < 0.7
        np.testing.assert_allclose(one[~dropped], 2 * x[~dropped], rtol=1e-5)
    same(x, fast(x))


def test_training_updates_what_it_updates_in_keras() -> None:
    model = keras.Sequential([keras.Input((4,)), kl.BatchNormalization()])
    fast = accelerate(model)
    x = floats(4)(32) + 5
    with recorded():
        fast(x, training=True)
    assert np.abs(model.layers[0].moving_mean.numpy()).max() > 0.01
    same(fast.predict(x, verbose=0), fast(x))  # the snapshot stays


def test_inside_a_tf_function_keras_runs_with_one_warning() -> None:
    model = CASES["dict outputs"].build()
    fast = accelerate(model)
    function = tf.function(lambda x: fast(x))
    x = tf.constant(floats(4)(5))
    with recorded() as records:
        found = function(x)
        function(tf.constant(floats(4)(6)))
    warns_once(records, "symbolic")
    same(keras.tree.map_structure(np.asarray, model(x)), keras.tree.map_structure(np.asarray, found))


def test_on_a_keras_tensor_it_makes_a_model() -> None:
    model = CASES["sequential"].build()
    fast = accelerate(model)
    with recorded() as records:
        inputs = keras.Input((4,))
        outer = keras.Model(inputs, fast(inputs) * 2)
    warns_once(records, "symbolic")
    x = floats(4)(5)
    same(2 * model.predict(x, verbose=0), outer.predict(x, verbose=0))


class WithArguments(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = kl.Dense(3)

    def call(self, x: Any, scale: float = 1.0) -> Any:
        return self.dense(x) * scale


def test_further_arguments_of_call_are_run_by_keras() -> None:
    model = WithArguments()
    x = floats(4)(5)
    expected = model(x).numpy()
    fast = accelerate(model)
    same(expected, fast(x))
    with recorded() as records:
        same(3 * expected, fast(x, scale=3.0))
    warns_once(records, "`scale`")


class RandomAtInference(keras.Model):
    """Dropout that stays on, as for a Monte-Carlo estimate."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.dropout = kl.Dense(50), kl.Dropout(0.5, seed=3)

    def call(self, x: Any) -> Any:
        return self.dropout(self.dense(x), training=True)


def test_randomness_stays() -> None:
    model = RandomAtInference()
    x = floats(4)(20)
    model(x)
    with recorded() as records:
        fast = accelerate(model)
    warns_once(records, "Keras runs")
    assert np.abs(fast.predict(x, verbose=0) - fast.predict(x, verbose=0)).max() > 0.1
