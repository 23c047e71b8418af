"""`model.compile_trt()`: the model's own `predict` on an engine, never stale, and the model given back as it was."""

from __future__ import annotations

import copy
import gc
import json
import logging
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt.compiled.watch import _WRITES
from keras_trt.runtime import Session
from keras_trt.source import ON_ENGINE

from .models import CASES, floats, keras, kl, recorded, rows_differ, same, tf, warns_once

# numpy 2 says so of TensorFlow's variables when Keras saves them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

QUIET: dict[str, Any] = {"backend": "onnxruntime", "cache": None, "batch_sizes": (1, 8, 32), "verbose": 0}
X, Y = floats(4)(40), floats(3)(40)[::-1]


def network(optimizer: Any = "sgd") -> Any:
    model = keras.Sequential(
        [keras.Input((4,)), kl.Dense(8, activation="tanh"), kl.BatchNormalization(), kl.Dense(3, name="last")]
    )
    if optimizer is not None:
        model.compile(optimizer, "mse", metrics=["mae"])
    return model


def by_keras(model: Any, x: Any = X) -> Any:
    """What the model itself answers now, whatever runs its `predict`."""
    return np.asarray(model(x, training=False))


class Engine:
    """Counts what the engines run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs = 0
        run = Session.run

        def counted(session: Any, *arguments: Any) -> Any:
            self.runs += 1
            return run(session, *arguments)

        monkeypatch.setattr(Session, "run", counted)


# The methods, and what is given back.


def test_the_models_own_methods_run_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    expected = [by_keras(model), model.evaluate(X, Y, verbose=0), model.test_on_batch(X, Y)]
    rows_differ(expected[0])
    fast = model.compile_trt(**QUIET)
    assert isinstance(fast, keras_trt.TRTModel)
    model.evaluate(X, Y, verbose=0)
    engine = Engine(monkeypatch)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("Keras ran the model")

    monkeypatch.setattr(type(model), "call", refuse)
    for call, wanted in (
        (lambda: model.predict(X, verbose=0), expected[0]),
        (lambda: model.predict_on_batch(X), expected[0]),
        (lambda: model.predict(X, 16, 0, None, None), expected[0]),
        (lambda: model.evaluate(X, Y, verbose=0), expected[1]),
        (lambda: model.test_on_batch(X, Y), expected[2]),
    ):
        before = engine.runs
        np.testing.assert_allclose(call(), wanted, rtol=1e-5, atol=1e-5)
        assert engine.runs > before


def test_it_is_given_back_exactly_as_it_was() -> None:
    model = network()
    model.predict(X, verbose=0)
    held, variables = dict(vars(model)), [dict(vars(variable.value)) for variable in model.variables]
    for end in ("uncompile", "with", "close", "twice"):
        fast = model.compile_trt(**QUIET)
        assert all("in_place_of" in vars(getattr(model, method)) for method in ON_ENGINE)
        match end:
            case "uncompile":
                model.uncompile_trt()
                model.uncompile_trt()
            case "with":
                with fast:
                    model.predict(X, verbose=0)
            case "close":
                fast.close()
                fast.close()
            case "twice":
                again = model.compile_trt(**QUIET)
                with pytest.raises(RuntimeError, match="closed"):
                    fast.predict(X)
                fast.close()  # of the first: the second stays
                same(by_keras(model), model.predict(X, verbose=0))
                assert model.predict.of is again
                model.uncompile_trt()
        assert {key: value for key, value in vars(model).items() if held.get(key, "") is not value} == {}
        assert held.keys() == vars(model).keys()
        assert [dict(vars(variable.value)) for variable in model.variables] == variables


def test_what_stood_in_a_methods_place_is_put_back() -> None:
    model = network()
    own = model.evaluate
    model.evaluate = own
    model.compile_trt(**QUIET)
    assert model.evaluate is not own
    model.uncompile_trt()
    assert vars(model)["evaluate"] is own


def test_saving_cloning_pickling_and_configuration_are_as_before(tmp_path: Path) -> None:
    model = network()
    config, weights = model.get_config(), model.get_weights()
    model.compile_trt(**QUIET)
    assert json.dumps(model.get_config(), sort_keys=True) == json.dumps(config, sort_keys=True)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    model.export(tmp_path / "saved", verbose=False)
    copies = {
        "saved": keras.saving.load_model(tmp_path / "model.keras"),
        "pickled": pickle.loads(pickle.dumps(model)),  # noqa: S301 (our own)
        "copied": copy.deepcopy(model),
        "cloned": keras.models.clone_model(model),
        "from its configuration": type(model).from_config(config),
    }
    for name, other in copies.items():
        assert not set(ON_ENGINE) & vars(other).keys(), name
        other.set_weights(weights)
        same(by_keras(model), other.predict(X, verbose=0))
    exported = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(exported.serve(X), by_keras(model), atol=1e-5)


def test_callbacks_of_predict_see_the_model() -> None:
    model = network()
    model.compile_trt(**QUIET)
    seen = []

    class Stops(keras.callbacks.Callback):
        def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append((batch, self.model is model, logs["outputs"].shape))
            self.model.stop_predicting = batch == 1

    assert model.predict(X, batch_size=8, callbacks=[Stops()], verbose=0).shape == (16, 3)
    assert seen == [(0, True, (8, 3)), (1, True, (8, 3))]


# Never stale.


def assign(model: Any) -> None:
    model.layers[0].kernel.assign(model.layers[0].kernel * 1.5 + 0.1)


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


def test_nothing_is_made_anew_where_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    model.compile_trt(**QUIET)
    made = []
    monkeypatch.setattr("keras_trt.compiled.attach.renew", lambda *_, **__: made.append(1))
    model.set_weights(model.get_weights())
    model.compile("adam", "mae")
    model.evaluate(X, Y, verbose=0)
    same(by_keras(model), model.predict(X, verbose=0))
    assert not made
    assign(model)
    model.predict(X, verbose=0)
    assert made


@pytest.mark.parametrize("policy", ["refit", "rebuild", "keras", "raise"])
def test_each_policy(policy: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    fast = model.compile_trt(**QUIET, on_weight_change=policy)
    original = model.get_weights()
    engine = Engine(monkeypatch)
    assign(model)
    expected, tested = by_keras(model), model.compute_loss(X, Y, by_keras(model))
    if policy == "raise":
        for call in (
            lambda: model.predict(X),
            lambda: fast(X),
            lambda: model.evaluate(X, Y),
            lambda: fast.predict_on_batch(X),
        ):
            with pytest.raises(keras_trt.StaleEngineError, match=r"weights of .* changed"):
                call()
        assert engine.runs == 0
    else:
        with caplog.at_level(logging.INFO, "keras_trt"):
            for found in (model.predict(X, verbose=0), fast.predict(X, verbose=0), fast(X), model.predict_on_batch(X)):
                same(expected, found)
        assert model.evaluate(X, Y, verbose=0)[0] == pytest.approx(float(tested), rel=1e-5)
        assert (engine.runs > 0) == (policy != "keras")
    model.set_weights(original)
    before = engine.runs
    same(by_keras(model), model.predict(X, verbose=0))
    assert engine.runs > before


def test_training_on_gives_the_same_with_and_without_it() -> None:
    """Train, predict, train on, predict again."""

    def script(policy: str | None) -> list[Any]:
        keras.utils.set_random_seed(3)
        model = network("adam")
        if policy is not None:
            model.compile_trt(**QUIET, on_weight_change=policy)
        results = []
        for _ in range(2):
            model.fit(X, Y, epochs=1, verbose=0, validation_split=0.2)
            results += [model.predict(X, verbose=0), model.evaluate(X, Y, verbose=0)]
        return results

    expected = script(None)
    assert np.abs(expected[0] - expected[2]).max() > 1e-3
    for policy in ("refit", "rebuild", "keras"):
        for wanted, found in zip(expected, script(policy), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_what_is_saved_is_the_engine_of_the_weights_of_now(tmp_path: Path) -> None:
    model = network()
    fast = model.compile_trt(**QUIET)
    assign(model)
    fast.save(tmp_path / "one.ktrt")
    with keras_trt.load(tmp_path / "one.ktrt", backend="onnxruntime", verbose=0) as loaded:
        same(by_keras(model), loaded.predict(X, verbose=0))
        with pytest.raises(NotImplementedError, match="loaded from a file"):
            loaded.evaluate(X, Y)
        with pytest.raises(AttributeError, match="has no `inputs`"):
            loaded.inputs  # noqa: B018
    fast = model.compile_trt(**QUIET, on_weight_change="keras")
    assign(model)
    with pytest.raises(keras_trt.StaleEngineError, match="nothing is saved"):
        fast.save(tmp_path / "two.ktrt")
    assert not (tmp_path / "two.ktrt").exists()


def test_validation_inside_fit_is_keras_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    model.compile_trt(**QUIET)
    engine = Engine(monkeypatch)
    history = model.fit(X, Y, validation_data=(X, Y), epochs=2, verbose=0).history
    assert len(history["val_loss"]) == 2
    assert engine.runs == 0


def test_evaluating_on_other_weights_traces_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    fast = model.compile_trt(**QUIET)
    model.evaluate(X, Y, verbose=0)
    traced: list[str] = []
    loss = model.compute_loss
    monkeypatch.setattr(model, "compute_loss", lambda *args, **keywords: traced.append("") or loss(*args, **keywords))
    engine = Engine(monkeypatch)
    found = []
    for _ in range(2):
        assign(model)
        found.append(model.evaluate(X, Y, verbose=0)[0])
        assert found[-1] == pytest.approx(float(np.mean((by_keras(model) - Y) ** 2)), rel=1e-5)
    assert abs(found[0] - found[1]) > 1e-3
    assert engine.runs
    assert not traced
    model.add(kl.Dense(3))  # what is traced would not be that of this model
    assert model.evaluate(X, Y, verbose=0)[0] == pytest.approx(float(np.mean((by_keras(model) - Y) ** 2)), rel=1e-5)
    assert fast.backend == "onnxruntime"


def test_nothing_is_kept_of_a_model_that_is_no_longer_used() -> None:
    held = []
    model = network()
    fast = model.compile_trt(**QUIET)
    for _ in range(2):
        model.evaluate(X, Y, verbose=0)
        model.test_on_batch(X, Y)
        held += [weakref.ref(one) for one in (model, fast, fast._predictor, fast._session)]
        assign(model)
    del model, fast
    gc.collect()
    assert [one() for one in held] == [None] * 8


def test_an_evaluation_within_an_evaluation() -> None:
    model, inner = network(), []
    model.compile_trt(**QUIET)
    last = float(np.mean((by_keras(model, X[32:]) - Y[32:]) ** 2))

    class Evaluates(keras.callbacks.Callback):
        def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            if batch == 1:
                assign(model)
                inner.append(model.evaluate(X, Y, verbose=0)[0])

    outer = model.evaluate(X, Y, verbose=0, callbacks=[Evaluates()])
    assert inner == [pytest.approx(float(np.mean((by_keras(model) - Y) ** 2)), rel=1e-5)]
    # The inner one has reset the metrics; then the second batch was run by the engine that the outer one began with.
    assert outer[0] == pytest.approx((40 * inner[0] + 8 * last) / 48, rel=1e-5)


def test_the_weights_of_one_engine_may_change_while_another_call_runs() -> None:
    model = network()
    fast = model.compile_trt(**QUIET)

    class Trains(keras.callbacks.Callback):
        def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            if batch == 0:
                assign(model)
                same(by_keras(model), fast.predict(X, verbose=0))  # puts another engine in place of the running one

    assert model.predict(X, batch_size=8, callbacks=[Trains()], verbose=0).shape == (40, 3)
    same(by_keras(model), model.predict(X, verbose=0))


def test_threads_predict_while_the_weights_change() -> None:
    model = network()
    fast = model.compile_trt(**QUIET)
    allowed, failures, stop = [by_keras(model)], [], threading.Event()

    def predict() -> None:
        while not stop.is_set():
            found = fast.predict_on_batch(X)
            if not any(np.allclose(found, answer, atol=1e-5) for answer in allowed):
                failures.append(found)

    threads = [threading.Thread(target=predict) for _ in range(3)]
    weights = model.get_weights()
    other = keras.models.clone_model(model)
    other.set_weights([weight * 1.5 for weight in weights])
    allowed.append(by_keras(other))
    for thread in threads:
        thread.start()
    for _ in range(2):
        with fast._changing:  # not half of the weights
            model.set_weights(other.get_weights())
        same(allowed[1], fast.predict_on_batch(X))
        with fast._changing:
            model.set_weights(weights)
        same(allowed[0], fast.predict_on_batch(X))
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


def test_threads_predict_while_it_is_compiled_and_uncompiled() -> None:
    model = network()
    model.predict_on_batch(X)  # Keras makes its function for all threads
    expected, failures, stop = by_keras(model), [], threading.Event()

    def predict() -> None:
        while not stop.is_set():
            try:
                same(expected, model.predict_on_batch(X))
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=predict) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        model.compile_trt(**QUIET)
        model.compile_trt(**QUIET)
        model.uncompile_trt()
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_method_that_was_taken_before_it_was_uncompiled() -> None:
    model = network()
    model.compile_trt(**QUIET)
    methods = [model.predict_on_batch, model.predict]
    model.uncompile_trt()
    for method in methods:
        same(by_keras(model), method(X))
    model.predict = methods[1]  # put back by who had taken it
    same(by_keras(model), model.predict(X))
    del model.predict
    fast = model.compile_trt(**QUIET)
    closed = keras_trt.accelerate(model, **QUIET)
    closed.close()

    class Calls(keras.callbacks.Callback):
        def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            closed.predict(X)

    with pytest.raises(RuntimeError, match="closed"):  # of another: it is the callback's own mistake
        model.predict(X, callbacks=[Calls()], verbose=0)
    assert model.predict.of is fast


# Bad input.


def test_an_unbuilt_model_says_so_and_is_left_alone() -> None:
    model = keras.Sequential([kl.Dense(2)])
    with pytest.raises(keras_trt.ExportError, match="has not been built"):
        model.compile_trt(**QUIET)
    assert not set(ON_ENGINE) & vars(model).keys()
    model.compile_trt(**QUIET, sample=X)
    same(by_keras(model), model.predict(X, verbose=0))
    model.layers[0].bias.assign([1, 2])
    same(by_keras(model), model.predict(X, verbose=0))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"colour": "red"}, "Unknown option colour"),
        ({"precision": "fp7"}, "`precision` is one of"),
        ({"on_weight_change": "ignore"}, "`on_weight_change` is one of"),
        ({"check_weights": "never"}, "`check_weights` is one of"),
    ],
)
def test_wrong_options_leave_an_earlier_engine(options: dict[str, Any], error: str) -> None:
    model = network()
    fast = model.compile_trt(**QUIET)
    with pytest.raises((TypeError, ValueError), match=error):
        model.compile_trt(**{**QUIET, **options})
    assert model.predict.of is fast
    assign(model)
    same(by_keras(model), model.predict(X, verbose=0))


def test_a_rebuild_that_fails_raises_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    model.compile_trt(**QUIET)
    assign(model)
    with monkeypatch.context() as patch:

        def fail(*_: Any, **__: Any) -> Any:
            raise keras_trt.BuildError("no memory")

        patch.setattr("keras_trt.compiled.attach.renew", fail)
        for _ in range(2):
            with pytest.raises(keras_trt.BuildError, match="no memory"):
                model.predict(X, verbose=0)
    same(by_keras(model), model.predict(X, verbose=0))


def test_after_a_rebuild_that_ended_with_keras_the_next_change_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    fast = model.compile_trt(**QUIET)
    assign(model)
    with monkeypatch.context() as patch:

        def fail(*_: Any, **__: Any) -> Any:
            raise keras_trt.BuildError("no memory")

        patch.setattr("keras_trt.api.provision", fail)
        with recorded() as records:
            for _ in range(2):
                same(by_keras(model), model.predict(X, verbose=0))
        warns_once(records, "no memory")
    assert fast.backend == "keras"
    assign(model)
    same(by_keras(model), model.predict(X, verbose=0))
    assert fast.backend == "onnxruntime"


def test_where_no_engine_can_be_had_keras_runs() -> None:
    class Doubles(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = kl.Dense(3)

        def call(self, x: Any) -> Any:
            return self.dense(x)

        def predict_step(self, data: Any) -> Any:
            return 2 * super().predict_step(data)

    model = Doubles()
    model(X)
    with recorded() as records:
        model.compile_trt(**QUIET)
        found = model.predict(X, verbose=0)
    warns_once(records, "predict_step")
    same(2 * by_keras(model), found)
    model.dense.bias.assign([1, 2, 3])
    same(2 * by_keras(model), model.predict(X, verbose=0))
    model.uncompile_trt()
    assert not set(ON_ENGINE) & vars(model).keys()


def test_during_fit() -> None:
    model = network()
    found = []

    class Compiles(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            with self.model.compile_trt(**QUIET):
                found.append(np.abs(self.model.predict(X, verbose=0) - by_keras(self.model)).max())

    history = model.fit(X, Y, epochs=2, validation_split=0.2, callbacks=[Compiles()], verbose=0).history
    assert len(history["val_loss"]) == 2
    assert max(found) < 1e-5
    assert len(found) == 2


def test_batches_that_the_engine_cannot_run_are_run_by_keras() -> None:
    model = CASES["minus mean"].build()
    model.compile_trt(**QUIET)
    expected = by_keras(model, floats(4)(50))
    with recorded() as records:
        same(expected, model.predict(floats(4)(50), batch_size=50, verbose=0))
    warns_once(records, "50")


# Import order.


@pytest.mark.parametrize(
    "code",
    [
        "import keras, keras_trt",
        "import keras_trt, sys; assert 'keras' not in sys.modules; import tensorflow as tf; keras = tf.keras",
    ],
)
def test_it_is_there_in_either_import_order(code: str) -> None:
    code += """
import sys
assert keras.Model.compile_trt.__doc__ and keras.Sequential([]).uncompile_trt() is None
class Own(keras.Model): pass
assert Own.compile_trt is keras.Model.compile_trt
print('there')
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "there", done.stderr[-2000:]
