"""`EngineCheckpoint` in `fit`: each engine is that of its weights, and the training as it is without it."""

from __future__ import annotations

import contextlib
import copy
import csv
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt.backends import child
from keras_trt.cache import EngineCache

from ..models import keras, kl, recorded, same, tf, warns_once
from .helpers import QUIET, Weights, X, Y, loaded, network

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_each_epochs_engine_is_that_of_its_weights(tmp_path: Path) -> None:
    model, weights = network(), Weights()
    checkpoint = keras_trt.EngineCheckpoint(tmp_path / "deep" / "{epoch:02d}-{val_loss:.3f}.ktrt", **QUIET)
    model.fit(X, Y, validation_split=0.2, epochs=4, callbacks=[weights, checkpoint], verbose=0)
    files = sorted((tmp_path / "deep").iterdir())
    assert [file.name[:3] for file in files] == ["01-", "02-", "03-", "04-"]
    assert np.abs(weights.answers[0] - weights.answers[3]).max() > 1e-3
    for file, expected in zip(files, weights.answers, strict=True):
        same(expected, loaded(file).predict(X, verbose=0))
    assert not any(thread.name == "keras_trt engine checkpoints" for thread in threading.enumerate())


@pytest.mark.parametrize("build", [None, "thread"])
def test_engines_are_built_in_a_process_of_their_own_unless_asked(
    build: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A builder keeps Python from the training where both are in one process."""
    in_child, built = child.build, list[str]()

    def watched(*arguments: Any) -> bytes:
        built.append(threading.current_thread().name)
        return in_child(*arguments)

    monkeypatch.setattr(child, "build", watched)
    how = {key: value for key, value in QUIET.items() if key != "build"} | ({"build": build} if build else {})
    model, weights = network(), Weights()
    checkpoint = keras_trt.EngineCheckpoint(tmp_path / "{epoch}.ktrt", **how)
    model.fit(X, Y, epochs=2, callbacks=[weights, checkpoint], verbose=0)
    assert built == ([] if build else 2 * ["keras_trt engine checkpoints"])
    for epoch, expected in enumerate(weights.answers, 1):
        same(expected, loaded(tmp_path / f"{epoch}.ktrt").predict(X, verbose=0))


def test_engines_are_made_on_the_cpu_and_the_training_computes_as_before(tmp_path: Path) -> None:
    """TF32 is a switch of the whole process: turned for a verification, it would slow the training beside it."""
    checkpoint = keras_trt.EngineCheckpoint(tmp_path / "{epoch}.ktrt", validation_data=(X, Y), **QUIET)
    places, switch, ended = set(), set(), threading.Event()

    class Looks(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            checkpoint._background.wait()
            places.update(variable.value.device for variable in checkpoint._clone.variables)

    def look() -> None:
        while not ended.wait(1e-4):
            switch.add(tf.config.experimental.tensor_float_32_execution_enabled())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        history = network().fit(X, Y, epochs=3, callbacks=[checkpoint, Looks()], verbose=0).history
    finally:
        ended.set()
        looking.join()
    assert history["engine_epoch"][1:] == [1, 2]
    assert {place.rsplit("/", 1)[-1] for place in places} == {"device:CPU:0"}
    assert switch == {True}


def test_only_the_best_is_kept_as_model_checkpoint_does(tmp_path: Path) -> None:
    model, weights = network(optimizer=keras.optimizers.SGD(0.8)), Weights()
    keras_saves = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=True)
    engine = keras_trt.EngineCheckpoint(tmp_path / "best.ktrt", save_best_only=True, **QUIET)
    history = model.fit(
        X, Y, validation_split=0.2, epochs=8, callbacks=[weights, keras_saves, engine], verbose=0, shuffle=False
    ).history
    best = int(np.argmin(history["val_loss"]))
    assert best < 7, "the last must not be the best for this to prove anything"
    found = loaded(tmp_path / "best.ktrt").predict(X, verbose=0)
    same(weights.answers[best], found)
    same(np.asarray(keras.saving.load_model(tmp_path / "best.keras")(X)), found)


def test_figures_of_the_engine_reach_history_and_csv(tmp_path: Path) -> None:
    model = network()
    checkpoint = keras_trt.EngineCheckpoint(tmp_path / "e.ktrt", validation_data=(X, Y), **QUIET)

    class Slow(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            checkpoint._background.wait()

    history = model.fit(
        X, Y, epochs=3, callbacks=[Slow(), checkpoint, keras.callbacks.CSVLogger(tmp_path / "log.csv")], verbose=0,
        validation_data=(X, Y),
    ).history  # fmt: skip
    assert math.isnan(history["engine_loss"][0])
    assert history["engine_epoch"][1:] == [1, 2]
    np.testing.assert_allclose(history["engine_loss"][1:], history["val_loss"][:2], rtol=1e-4)
    np.testing.assert_allclose(history["engine_mae"][1:], history["val_mae"][:2], rtol=1e-4)
    assert all(0 < value < 1000 for value in history["engine_latency_ms"][1:])
    assert all(value < 1e-4 for value in history["engine_difference"][1:])
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert float(rows[2]["engine_loss"]) == pytest.approx(history["engine_loss"][2], rel=1e-4)


def test_engines_are_refitted_where_they_can_be(tmp_path: Path, cache: EngineCache) -> None:
    model, weights, origins = network(), Weights(), []
    checkpoint = keras_trt.EngineCheckpoint(tmp_path / "{epoch}.ktrt", **{**QUIET, "cache": cache})

    class Looks(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            checkpoint._background.wait()
            origins.append(checkpoint._fast.report().origin)

    model.fit(X, Y, epochs=3, callbacks=[weights, checkpoint, Looks()], verbose=0)
    assert origins == ["built", "refitted", "refitted"]
    for epoch, expected in enumerate(weights.answers):
        same(expected, loaded(tmp_path / f"{epoch + 1}.ktrt").predict(X, verbose=0))


def test_by_batches(tmp_path: Path) -> None:
    checkpoint = keras_trt.EngineCheckpoint(tmp_path / "{epoch}-{batch}.ktrt", save_freq=2, **QUIET)
    network().fit(X, Y, batch_size=10, epochs=1, callbacks=[checkpoint], verbose=0)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1-2.ktrt", "1-4.ktrt", "1-6.ktrt"]


def test_by_batches_if_it_is_the_best(tmp_path: Path) -> None:
    """At the first of them, Keras has not yet seen which way is better."""
    for threshold, some in ((0.0, False), (9.0, True)):
        checkpoint = keras_trt.EngineCheckpoint(
            tmp_path / "{epoch}-{batch}-{mae:.3f}.ktrt", monitor="mae", mode="min", save_best_only=True, save_freq=3,
            initial_value_threshold=threshold, **QUIET,
        )  # fmt: skip
        network().fit(X, Y, batch_size=10, epochs=1, callbacks=[checkpoint], verbose=0)
        assert any(file.name.startswith("1-3-") for file in tmp_path.iterdir()) == some


def test_a_copy_is_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    """As of `ModelCheckpoint`: tuners copy the callbacks for each of their trainings."""
    first = keras_trt.EngineCheckpoint(tmp_path / "{epoch}.ktrt", **QUIET)
    for checkpoint in (copy.deepcopy(first), first):
        model = network()
        model.fit(X, Y, verbose=0, callbacks=[checkpoint])
        same(model.predict(X, verbose=0), loaded(tmp_path / "1.ktrt").predict(X, verbose=0))


def of_its_own(y: Any, y_pred: Any) -> Any:
    return keras.ops.mean(abs(y - y_pred), axis=-1)


def test_losses_and_metrics_that_are_functions(tmp_path: Path) -> None:
    model = network(loss=of_its_own, metrics=[of_its_own, "mse"])
    checkpoint = keras_trt.EngineCheckpoint(tmp_path / "a.ktrt", validation_data=(X, Y), **QUIET)
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[checkpoint])  # without a warning that it cannot be cloned
    expected = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert {name: checkpoint._known[name] for name in expected} == pytest.approx(expected)


def test_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    def history(*callbacks: Any) -> Any:
        keras.utils.set_random_seed(5)
        return network().fit(X, Y, epochs=3, validation_split=0.2, callbacks=list(callbacks), verbose=0).history

    expected = history()
    found = history(keras_trt.EngineCheckpoint(tmp_path / "a.ktrt", **QUIET))
    assert {key: found[key] for key in expected} == expected


def test_a_normalization_in_the_clone_computes_with_what_was_adapted(tmp_path: Path) -> None:
    x = X * 5 + 7
    layer = kl.Normalization()
    layer.adapt(x)
    model, weights = keras.Sequential([keras.Input((4,)), layer, kl.Dense(3)]), Weights(x)
    model.compile("sgd", "mse")
    checkpoint = keras_trt.EngineCheckpoint(tmp_path / "{epoch}.ktrt", **QUIET)
    model.fit(x, Y, epochs=2, verbose=0, callbacks=[weights, checkpoint])  # without a warning
    for epoch, expected in enumerate(weights.answers):
        same(expected, loaded(tmp_path / f"{epoch + 1}.ktrt").predict(x, verbose=0))


def twice(x: Any) -> Any:
    return 2 * x


@pytest.mark.parametrize("made", ["under a mixed policy", "in a scope"])
def test_what_keras_knows_in_the_thread_of_the_training_alone(made: str, tmp_path: Path) -> None:
    """A policy for all layers and a scope of custom objects are such. A clone, made in another, is still the model."""
    policy = keras.config.dtype_policy()
    scope = {"twice": twice} if made == "in a scope" else {}
    try:
        with keras.saving.custom_object_scope(scope):
            keras.config.set_dtype_policy("float32" if scope else "mixed_float16")
            inputs = keras.Input((4,))
            functional = keras.Model(inputs, kl.Dense(3)(kl.Dense(8, activation=twice if scope else "relu")(inputs)))
            for model in (network(), functional):
                model.compile("sgd", "mse")
                path = tmp_path / f"{model.name}.ktrt"
                # Without a warning that it cannot be cloned.
                model.fit(X, Y, verbose=0, callbacks=[keras_trt.EngineCheckpoint(path, precision="fp32", **QUIET)])
                same(model.predict(X, verbose=0), loaded(path).predict(X, verbose=0), 1e-5 if scope else 1e-2)
    finally:
        keras.config.set_dtype_policy(policy)


@keras.saving.register_keras_serializable("keras_trt_tests")
class Scaled(keras.Model):
    """Computes with an attribute that no configuration tells."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.dense, self.more, self.scale = kl.Dense(3), [kl.Dense(3)], 1.0

    def call(self, x: Any) -> Any:
        x = self.dense(x) * self.scale
        for layer in self.more:
            x = layer(x)
        return x


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_clone_that_is_another_model_is_not_used(scale: float, tmp_path: Path) -> None:
    model, weights = Scaled(), Weights()
    model.scale = scale
    model(X)
    model.compile("sgd", "mse")
    checkpoint = keras_trt.EngineCheckpoint(tmp_path / "a.ktrt", **QUIET)
    with pytest.warns(keras_trt.FallbackWarning, match="cannot be cloned") if scale != 1 else contextlib.nullcontext():
        model.fit(X, Y, epochs=2, verbose=0, callbacks=[weights, checkpoint])
    same(weights.answers[1], loaded(tmp_path / "a.ktrt").predict(X, verbose=0))


def test_a_model_that_is_changed_while_it_is_trained(tmp_path: Path) -> None:
    model, weights = Scaled(), Weights()
    model(X)
    model.compile("sgd", "mse", run_eagerly=True)

    class Changes(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            if epoch == 1:
                model.more.pop()
            if epoch == 2:
                model.scale = 3.0

    checkpoint = keras_trt.EngineCheckpoint(tmp_path / "{epoch}.ktrt", **QUIET)
    with pytest.warns(keras_trt.FallbackWarning, match="cannot be cloned"):
        model.fit(X, Y, epochs=3, verbose=0, callbacks=[Changes(), weights, checkpoint])
    for epoch, expected in enumerate(weights.answers):
        same(expected, loaded(tmp_path / f"{epoch + 1}.ktrt").predict(X, verbose=0))


class NoConfig(keras.Model):
    """Cannot be cloned: its configuration is not known."""

    def __init__(self, units: Any) -> None:
        super().__init__()
        self.dense = kl.Dense(units[0])

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def get_config(self) -> Any:
        raise NotImplementedError("no configuration")


def test_a_model_that_cannot_be_cloned_waits_for_its_engines(tmp_path: Path) -> None:
    model, weights = NoConfig([3]), Weights()
    model(X)
    model.compile("adam", "mse")
    checkpoint = keras_trt.EngineCheckpoint(tmp_path / "{epoch}.ktrt", validation_data=(X, Y), **QUIET)
    with recorded() as records:
        history = model.fit(X, Y, epochs=2, callbacks=[weights, checkpoint], validation_data=(X, Y), verbose=0).history
    warns_once(records, "cannot be cloned", "no configuration")
    np.testing.assert_allclose(history["engine_loss"], history["val_loss"], rtol=1e-4)
    for epoch, expected in enumerate(weights.answers):
        same(expected, loaded(tmp_path / f"{epoch + 1}.ktrt").predict(X, verbose=0))
