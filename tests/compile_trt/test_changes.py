"""Each change of a compiled model is noticed at the next call: its engine is never stale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_trt import fingerprint
from keras_trt.compiled import watch as watch_module
from keras_trt.compiled.watch import _WATCHES, _WRITES, Watch

from ..models import keras, kl, same, tf
from .helpers import QUIET, Engine, X, Y, assign, by_keras, network

# numpy 2 says so of TensorFlow's variables when Keras saves them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def own_loop(model: Any) -> Callable[[Any], None]:
    optimizer = keras.optimizers.Adam(0.1)

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(X, training=True) - Y) ** 2)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )

    step()  # traced, and so unseen by what watches the variables later
    return lambda _: step()


def load_weights(model: Any, path: Path) -> None:
    other = keras.models.clone_model(model)
    other.save_weights(path / "other.weights.h5")
    model.load_weights(path / "other.weights.h5")


def restore(model: Any, path: Path) -> None:
    part, other = tf.train.Checkpoint(kernel=model.layers[0].kernel.value), network(None)
    saved = tf.train.Checkpoint(kernel=other.layers[0].kernel.value).save(str(path / "part"))
    part.restore(saved)


CHANGES: dict[str, Callable[[Any, Path], Any]] = {
    "fit": lambda model, _: model.fit(X, Y, verbose=0),
    "train_on_batch": lambda model, _: model.train_on_batch(X, Y),
    "set_weights": lambda model, _: model.set_weights([weight + 0.5 for weight in model.get_weights()]),
    "load_weights": load_weights,
    "assign": lambda model, _: assign(model),
    "assign_sub": lambda model, _: model.layers[-1].bias.assign_sub([1, 2, 3]),
    "a write to the tf.Variable": lambda model, _: model.layers[0].kernel.value.assign(model.layers[0].kernel * 2),
    "a write to a slice": lambda model, _: model.layers[0].kernel.value[0].assign(tf.fill(8, 5.0)),
    "scatter_nd_update": lambda model, _: model.layers[0].kernel.value.scatter_nd_update([[0]], tf.fill((1, 8), 5.0)),
    "scatter_max": lambda model, _: model.layers[0].kernel.value.scatter_max(
        tf.IndexedSlices(tf.fill((1, 8), 9.0), [0])
    ),
    "a restored part of a checkpoint": restore,
    "a layer's set_weights": lambda model, _: model.layers[0].set_weights([np.ones((4, 8)), np.ones(8)]),
    "an eager optimizer": lambda model, _: keras.optimizers.SGD(0.5).apply(
        [tf.ones(variable.shape) for variable in model.trainable_variables], model.trainable_variables
    ),
    "one bit of one weight": lambda model, _: one_bit(model),
    "statistics alone": lambda model, _: model.layers[1].moving_mean.assign(np.arange(8)),
}


def one_bit(model: Any) -> None:
    kernel = model.layers[0].kernel.numpy()
    kernel.view(np.uint32)[1, 2] ^= 1 << 30  # of the exponent, so that it shows
    model.layers[0].kernel.assign(kernel)


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_noticed_at_the_next_call(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    model.compile_trt(**QUIET)
    before = model.predict(X, verbose=0)
    CHANGES[change](model, tmp_path)
    expected = by_keras(model)
    assert np.abs(expected - before).max() > 1e-3
    engine = Engine(monkeypatch)
    same(expected, model.predict(X, verbose=0))
    after = engine.runs
    same(expected, model.predict_on_batch(X))
    assert engine.runs == after + 1, "the engine runs again"


def test_all_that_writes_to_a_variable_is_watched() -> None:
    methods = {
        name for name in dir(tf.Variable(1.0)) if "assign" in name or "scatter" in name or "restore_from" in name
    }
    assert methods - {"_assign_dependencies"} <= set(_WRITES)


def test_weights_that_a_layer_gets_later_are_watched() -> None:
    model = network()
    model.compile_trt(**QUIET)
    before = model.predict(X, verbose=0)
    model.layers[0].enable_lora(2)
    for value in (1, 2):
        model.layers[0].lora_kernel_b.assign(np.full((2, 8), value))
        expected = by_keras(model)
        assert np.abs(expected - before).max() > 1e-3
        same(expected, model.predict(X, verbose=0))
        before = expected


def test_a_vocabulary_that_is_set_later_is_noticed() -> None:
    words = keras.Input((1,), dtype="string")
    look = kl.StringLookup(vocabulary=["a", "b", "c"])
    model = keras.Model(words, kl.Flatten()(kl.Embedding(4, 3)(look(words))))
    given = np.array([["a"], ["b"], ["c"]], object)
    with model.compile_trt(**QUIET) as fast:
        assert fast.backend != "keras"
        before = model.predict(given, verbose=0)
        look.set_vocabulary(["c", "b", "a"])
        same(before[::-1], model.predict(given, verbose=0))
        assert fast._seconds_a_call(1) > 0  # though it cannot be saved


def test_a_training_step_traced_before_is_noticed() -> None:
    model = network(None)
    step = own_loop(model)
    model.compile_trt(**QUIET)
    before = model.predict(X, verbose=0)
    for _ in range(2):
        step(model)
        expected = by_keras(model)
        assert np.abs(expected - before).max() > 1e-3
        same(expected, model.predict(X, verbose=0))
        before = expected


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(0.5, gradient_accumulation_steps=2),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)),
        lambda: keras.optimizers.SGD(0.5, use_ema=True, ema_overwrite_frequency=2),
    ],
)
def test_training_with_any_optimizer_is_noticed(optimizer: Any) -> None:
    model = network(optimizer())
    model.train_on_batch(X, Y)  # traced, and so unseen by what watches the variables later
    model.compile_trt(**QUIET)
    before = model.predict(X, verbose=0)
    for _ in range(2):
        model.train_on_batch(X, Y)
    expected = by_keras(model)
    assert np.abs(expected - before).max() > 1e-3
    same(expected, model.predict(X, verbose=0))


class Alternating(keras.Model):
    """Holds several optimizers, and trains its first layer alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = kl.Dense(8), kl.Dense(3)
        self.iterations = 7  # of something of its own

    def call(self, x: Any) -> Any:
        return self.last(self.first(x))

    def compile(self, optimizers: Any) -> None:
        super().compile(None)
        self.optimizers = optimizers

    def train_step(self, batch: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(batch[0]) - batch[1]) ** 2)
        weights = self.first.trainable_variables
        held = self.optimizers.values() if isinstance(self.optimizers, dict) else self.optimizers
        next(iter(held)).apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"loss": loss}


@pytest.mark.parametrize("held", [lambda *optimizers: dict(enumerate(optimizers)), lambda *optimizers: optimizers])
def test_training_with_optimizers_of_its_own_is_noticed(held: Any) -> None:
    model = Alternating()
    model(X)
    model.compile(held(keras.optimizers.SGD(0.5), keras.optimizers.SGD(0.5)))
    model.fit(X, Y, verbose=0)
    model.compile_trt(**QUIET)
    before = model.predict(X, verbose=0)
    model.fit(X, Y, verbose=0)
    expected = by_keras(model)
    assert np.abs(expected - before).max() > 1e-3
    same(expected, model.predict(X, verbose=0))


def test_training_another_model_that_shares_layers_is_noticed_each_time() -> None:
    """Its graph is traced at its first `fit` alone, and neither the optimizer nor the last layer is this model's."""
    inputs = keras.Input((4,))
    body = kl.Dense(6, activation="tanh")(inputs)
    model, other = keras.Model(inputs, kl.Dense(2)(body)), keras.Model(inputs, kl.Dense(3)(body))
    other.compile(keras.optimizers.SGD(0.5), "mse")
    model.compile_trt(**QUIET)
    before = model.predict(X, verbose=0)
    for _ in range(3):
        other.fit(X, Y, verbose=0)
        expected = by_keras(model)
        assert np.abs(expected - before).max() > 1e-3
        same(expected, model.predict(X, verbose=0))
        before = expected


def test_each_graph_that_is_traced_while_the_model_is_watched_is_noticed() -> None:
    model = network()
    model.compile_trt(**QUIET)
    kernel, mean = model.layers[0].kernel, model.layers[1].moving_mean
    steps = [
        tf.function(lambda: kernel.assign(kernel * 1.5)),
        tf.function(lambda: [mean.assign(mean + 1.0), kernel.assign(kernel + 0.1)]),
    ]
    before = model.predict(X, verbose=0)
    for step in 3 * steps:
        step()
        expected = by_keras(model)
        assert np.abs(expected - before).max() > 1e-3
        same(expected, model.predict(X, verbose=0))
        before = expected


def test_training_of_what_was_frozen_after_it_was_traced_is_noticed() -> None:
    model = network(None)
    whole = keras.Sequential([model, kl.Dense(3)])
    whole.compile("sgd", "mse")
    whole.fit(X, Y, verbose=0)
    model.trainable = False  # too late: it takes another `compile`
    model.compile_trt(**QUIET)
    before = model.predict(X, verbose=0)
    whole.fit(X, Y, verbose=0)
    expected = by_keras(model)
    assert np.abs(expected - before).max() > 1e-3
    same(expected, model.predict(X, verbose=0))


@pytest.mark.parametrize("layer", [kl.Normalization(), kl.Discretization(num_bins=4)])
def test_a_layer_that_is_adapted_is_noticed(layer: Any) -> None:
    layer.adapt(X)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, kl.Rescaling(2.0)(layer(inputs)))
    model.compile_trt(**QUIET)
    before = model.predict(X, verbose=0)
    layer.adapt(X * 3 + 1)
    expected = by_keras(model)
    assert np.abs(expected - before).max() > 0.1
    same(expected, model.predict(X, verbose=0))
    if isinstance(layer, kl.Normalization):  # `set_weights` alone changes nothing that it computes with
        model.set_weights([weight * 2 for weight in model.get_weights()])
        same(expected, model.predict(X, verbose=0))
        layer.finalize_state()
        assert np.abs(expected - by_keras(model)).max() > 0.1
        same(by_keras(model), model.predict(X, verbose=0))


class Blocks(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [kl.Dense(4), kl.Activation("tanh"), kl.Dense(4), kl.Activation("tanh")]

    def call(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


def test_a_layer_that_is_taken_out_of_a_list_is_noticed() -> None:
    model = Blocks()
    model(X)
    model.compile_trt(**QUIET)
    before = model.predict(X, verbose=0)
    for _ in range(2):  # without weights, and with them
        model.blocks.pop()
        expected = by_keras(model)
        assert np.abs(expected - before).max() > 0.01
        same(expected, model.predict(X, verbose=0))
        before = expected


def test_a_layer_that_is_added_is_noticed() -> None:
    model = network()
    model.compile_trt(**QUIET)
    model.add(kl.Dense(2))
    found = model.predict(X, verbose=0)
    assert found.shape == (40, 2)
    same(by_keras(model), found)
    model.pop()
    same(by_keras(model), model.predict(X, verbose=0))


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
def test_quantizing_is_noticed() -> None:
    model = network()
    model.compile_trt(**QUIET)
    before = model.predict(X, verbose=0)
    model.quantize("int8")
    found = model.predict(X, verbose=0)
    assert np.abs(found - before).max() > 1e-4
    same(by_keras(model), found, 1e-4)


def test_check_weights_by_content_sees_any_write() -> None:
    model = network()
    kernel = model.layers[0].kernel

    @tf.function
    def silently() -> None:
        kernel.value.assign(kernel.value * 2)

    silently()
    model.compile_trt(**QUIET, check_weights="content")
    silently()
    same(by_keras(model), model.predict(X, verbose=0))


def test_ctrl_c_while_a_change_is_taken_in_loses_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    model.compile_trt(**QUIET)
    before, key, calls = model.predict(X, verbose=0), fingerprint.weights_key, 0

    def interrupted(of: Any) -> str:
        nonlocal calls
        calls += 1
        if calls == 2:  # the first tells that there is a change
            raise KeyboardInterrupt
        return key(of)

    assign(model)
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "weights_key", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.predict(X, verbose=0)
    expected = by_keras(model)
    assert np.abs(expected - before).max() > 1e-3
    same(expected, model.predict(X, verbose=0))


def watched(model: Any) -> list[bool]:
    """Tell of each variable whether what writes to it is watched; all of it, or nothing."""
    found = []
    for weight in model.weights:
        names = {*_WRITES, _WATCHES} & set(vars(weight.value))
        assert not names or names >= {"assign", "assign_add", _WATCHES}
        found.append(bool(names))
    return found


@pytest.mark.parametrize("moment", range(6))
def test_ctrl_c_while_a_variable_is_taken_up_leaves_none_half_watched(
    moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(8), kl.Dense(3)])
    watch = Watch(model)
    for size in (5, 2):
        model.add(kl.Dense(size))
    noticing, left = watch_module._noticing, moment

    def interrupted(*arguments: Any) -> Any:
        nonlocal left
        for pair in noticing(*arguments):
            if left == 0:
                raise KeyboardInterrupt
            yield pair
        left -= 1

    with monkeypatch.context() as patch:
        patch.setattr(watch_module, "_noticing", interrupted)
        if moment < 4:
            with pytest.raises(KeyboardInterrupt):
                watch.settle()
        else:  # there are four new variables
            watch.settle()
    assert watched(model)[:4] == [True] * 4
    again = Watch(model)
    assert watched(model) == [True] * 8
    model.layers[-1].kernel.assign(np.ones((5, 2)))
    assert again.change() == "weights"
    for one in (watch, again):
        one.close()
    assert watched(model) == [False] * 8


def test_what_leaves_the_model_is_left_as_it_was() -> None:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(8), kl.Dense(3)])
    watch, other = Watch(model), Watch(model)
    gone = model.pop()
    watch.settle()
    assert watched(model) == [True, True]
    assert watched(gone) == [True, True]  # by the other
    other.settle()
    assert watched(model) == [True, True]
    assert watched(gone) == [False, False]
    other.close()
    model.layers[0].kernel.assign(np.ones((4, 8)))
    assert watch.change() == "weights"
    watch.close()
    assert watched(model) == [False, False]
