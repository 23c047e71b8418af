"""What must not change the keys of a model: names that Keras makes up, training, what is kept on the model."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from keras_trt.fingerprint import structure_key, weights_key

from ..models import keras, kl
from .helpers import FACTORY, Registered, custom, execute, functional, registered_model, sequential, subclass

# Keras 3 itself, when it saves a model with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RECURSION = "def f(x, n=2): return g(x, n) if n else x\ndef g(x, n): return f(x, n - 1) * 2"

SAME: dict[str, tuple[str, str]] = {
    "names that Keras makes up": (sequential("kl.Dense(3), kl.ReLU()"), sequential("kl.Dense(3), kl.ReLU()")),
    "names of nested models": (
        functional("o = keras.Sequential([kl.Bidirectional(kl.LSTM(2))])(kl.Reshape((2, 2))(i))"),
        functional("o = keras.Sequential([kl.Bidirectional(kl.LSTM(2))])(kl.Reshape((2, 2))(i))"),
    ),
    "the name of the model": (
        functional("o = i * 2."),
        functional("o = i * 2.").replace("(i, o)", "(i, o, name='net')"),
    ),
    "lines and comments": (custom("x * 2"), "# a comment\n\n" + custom("(x   *\n   2)  # two")),
    "closures": (custom("helper(x)", before=FACTORY.format(2.0)), custom("helper(x)", before=FACTORY.format(2.0))),
    "recursion": (custom("f(x)", before=RECURSION), custom("f(x)", before=RECURSION)),
    "unused globals": (custom("x * 2", before="K = 2"), custom("x * 2", before="K = 3")),
    "seeds": (sequential("kl.Dropout(.5, seed=1)"), sequential("kl.Dropout(.5, seed=2)")),
    "drawn seeds": (
        sequential("kl.RandomCrop(2, 2)", shape="(4, 4, 3)"),
        sequential("kl.RandomCrop(2, 2)", shape="(4, 4, 3)"),
    ),
    "seed generators": (
        subclass(init="self.g = keras.random.SeedGenerator()"),
        subclass(init="self.g = keras.random.SeedGenerator()"),
    ),
    "trainable": (subclass(), subclass(after="model.norm.trainable = False")),
    "first batch": (subclass(batch=2), subclass(batch=7)),
    "first batch of nested models": (
        subclass(batch=2, init="self.inner = keras.Sequential([kl.Dense(2)])", body="self.inner(x)").replace(
            "kl.BatchNormalization()", "kl.ReLU()"
        ),
        subclass(batch=7, init="self.inner = keras.Sequential([kl.Dense(2)])", body="self.inner(x)").replace(
            "kl.BatchNormalization()", "kl.ReLU()"
        ),
    ),
    "training code": (
        subclass(more="def train_step(self, data): return {'a': 1}"),
        subclass(more="def train_step(self, data): return {'a': 2}"),
    ),
    "trackers": (
        subclass(init="self.tracker = keras.metrics.Mean()", more="metrics = property(lambda self: [self.tracker])"),
        subclass(
            init="self.tracker = keras.metrics.Mean()",
            more="metrics = property(lambda self: [self.tracker])",
            after="model.tracker.update_state(3.)",
        ),
    ),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_same_on(one: str, other: str) -> None:
    assert structure_key(execute(one)) == structure_key(execute(other))


def test_training_changes_only_the_weights() -> None:
    model = execute(subclass())
    x, y = np.random.default_rng(0).normal(size=(8, 4)).astype("float32"), np.zeros((8, 3), "float32")
    structure, weights = structure_key(model), weights_key(model)
    model.compile(optimizer="adam", loss="mse", metrics=["mae"])
    model.predict(x, verbose=0)
    assert (structure_key(model), weights_key(model)) == (structure, weights)
    model.fit(x, y, epochs=1, verbose=0)
    assert structure_key(model) == structure
    assert weights_key(model) != weights
    trained = weights_key(model)
    model.evaluate(x, y, verbose=0)
    model.optimizer.learning_rate = 0.5
    assert (structure_key(model), weights_key(model)) == (structure, trained)


def test_training_a_functional_model_changes_only_the_weights() -> None:
    model = keras.Sequential([keras.Input((4,)), Registered(), kl.Dropout(0.5), kl.BatchNormalization()])
    x, y = np.random.default_rng(0).normal(size=(8, 4)).astype("float32"), np.zeros((8, 3), "float32")
    structure, weights = structure_key(model), weights_key(model)
    model.compile(optimizer="sgd", loss="mse")
    model.fit(x, y, verbose=0)
    assert structure_key(model) == structure
    assert weights_key(model) != weights


def test_seeds_are_no_weights() -> None:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(2), kl.Dropout(0.5)])
    key = weights_key(model)
    model(np.zeros((2, 4), "float32"), training=True)
    assert weights_key(model) == key


def test_models_of_this_process_are_left_alone() -> None:
    model = registered_model()
    before = {name: id(value) for name, value in vars(model).items()}
    threads = [threading.Thread(target=structure_key, args=(model,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: id(value) for name, value in vars(model).items()} == before
    assert structure_key(model) == structure_key(model)


def test_what_this_library_adds_to_a_model_is_left_out() -> None:
    model = registered_model()
    key = structure_key(model)
    model._keras_trt_state = threading.Lock()
    model.predict = lambda x: x
    assert structure_key(model) == key
