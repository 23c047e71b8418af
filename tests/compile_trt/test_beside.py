"""Variables that a model reads though they are no weights of it: an engine follows them as it follows weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt import fingerprint
from keras_trt.compiled import watch as watch_module
from keras_trt.compiled.beside import beside

from ..models import keras, kl, same, tf
from .helpers import QUIET, Engine, X, by_keras, network


class Own(kl.Layer):
    """Owns a variable that Keras does not know of."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.factor = tf.Variable(2.0)

    def call(self, x: Any) -> Any:
        return x * self.factor


class Hidden(Own):
    """Has no hash, as its code reads what no hash covers: its variable is found in a trace."""

    def call(self, x: Any) -> Any:
        return x * self.factor if os.environ else x


class Held(Own):
    """Holds its variable in a module of TensorFlow's, which has no hash either."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.module = tf.Module()
        self.module.factor = self.factor
        del self.factor

    def call(self, x: Any) -> Any:
        return x * self.module.factor


def of_a_layer(kind: type[Own]) -> tuple[Any, Any]:
    layer = kind()
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3), layer])
    return model, layer.module.factor if kind is Held else layer.factor


def of_a_lambda(factor: Any) -> tuple[Any, Any]:
    return keras.Sequential([keras.Input((4,)), kl.Dense(3), kl.Lambda(lambda x: x * factor)]), factor


def of_a_graph() -> tuple[Any, Any]:
    factor, inputs = tf.Variable(2.0), keras.Input((4,))
    return keras.Model(inputs, keras.ops.multiply(kl.Dense(3)(inputs), factor)), factor


def of_a_function() -> tuple[Any, Any]:
    factor, inputs = tf.Variable(2.0), keras.Input((4,))
    return keras.Model(inputs, kl.Activation(tf.function(lambda x: x * factor))(kl.Dense(3)(inputs))), factor


def of_a_layer_in_a_lambda() -> tuple[Any, Any]:
    dense = kl.Dense(3)
    dense.build((None, 4))
    return keras.Sequential([keras.Input((4,)), kl.Lambda(lambda x: dense(x)), kl.Dense(3)]), dense.kernel


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "a layer's": lambda: of_a_layer(Own),
    "a layer's that has no hash": lambda: of_a_layer(Hidden),
    "a module's": lambda: of_a_layer(Held),
    "a lambda's": lambda: of_a_lambda(tf.Variable(2.0)),
    "a lambda's, of Keras": lambda: of_a_lambda(keras.Variable(2.0)),
    "a graph's": of_a_graph,
    "a function's": of_a_function,
    "a weight of a layer in a lambda": of_a_layer_in_a_lambda,
}


@pytest.mark.parametrize("kind", [Hidden, Held])
def test_those_of_models_without_a_hash_are_found(kind: type[Own]) -> None:
    model, variable = of_a_layer(kind)
    with pytest.raises(fingerprint.Unhashable):
        fingerprint.structure_key(model)
    (found,) = beside(model)
    assert found is variable


@pytest.mark.parametrize("check", ["writes", "content"])
@pytest.mark.parametrize("which", MODELS)
def test_a_write_is_noticed_at_the_next_call(which: str, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, variable = MODELS[which]()
    with model.compile_trt(**QUIET, check_weights=check) as fast:
        assert fast.backend != "keras"
        before = model.predict(X, verbose=0)
        engine = Engine(monkeypatch)
        for _ in range(2):
            variable.assign(variable * 3.0)
            expected = by_keras(model)
            assert np.abs(expected - before).max() > 0.1
            same(expected, model.predict(X, verbose=0), 1e-4)
            before = expected
        assert engine.runs
    same(expected, model.predict(X, verbose=0), 1e-4)
    variable.assign(variable * 0.5)
    assert variable.__dict__.get("assign") is None, "it is left as it was"


@pytest.mark.parametrize("check", ["writes", "content"])
def test_what_a_graph_writes_that_was_traced_before_is_noticed(check: Any) -> None:
    model, variable = of_a_layer(Own)
    step = tf.function(lambda: variable.assign(variable * 3.0))
    step()
    model.compile_trt(**QUIET, check_weights=check)
    before = model.predict(X, verbose=0)
    step()
    expected = by_keras(model)
    assert np.abs(expected - before).max() > 0.1
    same(expected, model.predict(X, verbose=0), 1e-4)


def test_it_is_noticed_where_all_comes_from_the_cache(tmp_path: Path) -> None:
    options = {**QUIET, "cache": tmp_path}
    for origin in ("built", "cache"):
        model, variable = of_a_layer(Own)
        model.set_weights([np.ones((4, 3)), np.zeros(3)])
        with model.compile_trt(**options) as fast:
            assert fast.report().origin == origin
            variable.assign(11.0)
            same(by_keras(model), model.predict(X, verbose=0), 1e-4)


def test_the_same_value_makes_no_engine() -> None:
    model, variable = of_a_layer(Own)
    model.compile_trt(**QUIET, on_weight_change="raise")
    variable.assign(2.0)
    model.predict(X, verbose=0)
    variable.assign(3.0)
    with pytest.raises(keras_trt.StaleEngineError, match="weights of"):
        model.predict(X, verbose=0)


def test_keras_answers_until_the_value_is_that_of_the_engine() -> None:
    model, variable = of_a_layer(Own)
    model.compile_trt(**QUIET, on_weight_change="keras")
    for value in (3.0, 2.0, 5.0):
        variable.assign(value)
        same(by_keras(model), model.predict(X, verbose=0), 1e-4)


def test_one_of_a_layer_that_is_added_is_watched() -> None:
    model = network()
    model.compile_trt(**QUIET)
    model.predict(X, verbose=0)
    layer = Own()
    model.add(layer)
    for value in (2.0, 7.0):
        layer.factor.assign(value)
        same(by_keras(model), model.predict(X, verbose=0), 1e-4)


def test_one_of_strings_or_of_an_open_shape_keeps_nothing_from_running() -> None:
    words, shapeless = tf.Variable(["a", "b"]), tf.Variable(np.ones(3, "float32"), shape=tf.TensorShape(None))
    layer = kl.Lambda(lambda x: x if words is shapeless else x * 2.0)
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3), layer])
    with model.compile_trt(**QUIET) as fast:
        assert fast.backend != "keras"
        words.assign(["b", "c"])
        shapeless.assign(np.ones((2, 2), "float32"))
        same(by_keras(model), model.predict(X, verbose=0))


def test_other_models_are_looked_at_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("adam")
    model.fit(X, X[:, :3], verbose=0)
    assert beside(model) == []
    found = 0

    def counted(*arguments: Any) -> Any:
        nonlocal found
        found += 1
        return beside(*arguments)

    monkeypatch.setattr(watch_module, "beside", counted)
    model.compile_trt(**QUIET)
    for _ in range(3):
        model.fit(X, X[:, :3], verbose=0)
        same(by_keras(model), model.predict(X, verbose=0))
    assert found == 1, "new weights bring no new variables"
