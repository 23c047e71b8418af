"""`EngineCheckpoint` and `EngineValidation` in `fit`: on small networks and real digits, with ONNX Runtime."""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt.cache import EngineCache
from keras_trt.callbacks.background import SWITCH_INTERVAL, Background

from .models import floats, keras, kl, recorded, same, tf, warns_once

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

QUIET: dict[str, Any] = {"backend": "onnxruntime", "cache": None, "batch_sizes": (1, 8, 32)}
X, Y = floats(4)(60), floats(3)(60)[::-1] * 0.3


def network(**settings: Any) -> Any:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(8, activation="tanh"), kl.BatchNormalization(), kl.Dense(3)])
    model.compile(**{"optimizer": "adam", "loss": "mse", "metrics": ["mae"], **settings})
    return model


def loaded(path: Path) -> keras_trt.TRTModel:
    return keras_trt.load(path, backend="onnxruntime", cache=None, verbose=0)


class Weights(keras.callbacks.Callback):
    """Keeps the model's answers at the end of each epoch."""

    def __init__(self, x: Any = X) -> None:
        super().__init__()
        self.x, self.answers = x, list[Any]()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        self.answers.append(np.asarray(self.model(self.x, training=False)))


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


# Failures.


class NoOnnx(kl.Layer):
    def call(self, x: Any) -> Any:
        return tf.py_function(lambda y: y * 2, [x], tf.float32)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


def hopeless() -> Any:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3), NoOnnx()])
    model.compile("adam", "mse", run_eagerly=True)
    return model


def test_training_goes_on_without_an_engine(tmp_path: Path) -> None:
    checkpoint = keras_trt.EngineCheckpoint(tmp_path / "a.ktrt", **QUIET, fallback="raise")
    with recorded() as records:
        history = hopeless().fit(X, Y, epochs=3, callbacks=[checkpoint], verbose=0).history
    assert len(history["loss"]) == 3
    assert all(map(math.isnan, history["engine_epoch"]))
    texts = [str(record.message) for record in records if record.category is keras_trt.FallbackWarning]
    assert len(texts) == 1, "the same reason is said once"
    assert "epoch 1 could not be made" in texts[0]
    assert not (tmp_path / "a.ktrt").exists()


def test_unless_it_is_asked_to_end(tmp_path: Path) -> None:
    checkpoint = keras_trt.EngineCheckpoint(tmp_path / "a.ktrt", raise_on_failure=True, fallback="raise", **QUIET)
    with pytest.raises(keras_trt.ExportError):
        hopeless().fit(X, Y, epochs=3, callbacks=[checkpoint], verbose=0)


def test_a_failure_leaves_the_last_good_file_and_the_next_engine_replaces_it(tmp_path: Path) -> None:
    model, weights, path = network(), Weights(), tmp_path / "a.ktrt"
    checkpoint = keras_trt.EngineCheckpoint(path, **QUIET)
    seen = []

    class Breaks(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            checkpoint._background.wait()
            if epoch:
                seen.append(loaded(path).predict(X, verbose=0))
            checkpoint.filepath = str(tmp_path / "none" / "a.ktrt") if epoch == 1 else str(path)
            if epoch == 1:
                (tmp_path / "none").write_text("a file where a folder should be")

    with recorded() as records:
        model.fit(X, Y, epochs=3, callbacks=[Breaks(), weights, checkpoint], verbose=0)
    warns_once(records, "epoch 2 could not be made")
    same(weights.answers[0], seen[0])
    same(weights.answers[0], seen[1])
    same(weights.answers[2], loaded(path).predict(X, verbose=0))


def test_where_warnings_are_errors_a_failure_ends_the_training(tmp_path: Path) -> None:
    checkpoint = keras_trt.EngineCheckpoint(tmp_path / "a.ktrt", fallback="raise", **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error", keras_trt.FallbackWarning)
        with pytest.raises(keras_trt.FallbackWarning, match="could not be made: ExportError"):
            hopeless().fit(X, Y, epochs=3, callbacks=[checkpoint], verbose=0)


def test_nobody_waits_for_a_thread_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    background, threads, done, told = Background(limit=0), [], [], threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _: told.set())

    def end() -> None:
        threads.append(threading.current_thread())
        raise SystemExit

    background.submit("a", end)
    background.wait()
    background.submit("b", lambda: done.append(1))
    background.wait()
    assert done
    threads[0].join()  # so that its end is told in this test and not in the next
    assert told.is_set()


def test_a_job_yields_the_interpreter_lock_at_once() -> None:
    usual = sys.getswitchinterval()
    begun, may_end, seen = threading.Barrier(3), threading.Event(), list[float]()

    def job() -> None:
        begun.wait(20)
        seen.append(sys.getswitchinterval())
        may_end.wait(20)

    several = [Background(limit=0) for _ in range(2)]
    for background in several:
        background.submit("a", job)
    begun.wait(20)
    may_end.set()
    for background in several:
        background.wait()
    assert seen == pytest.approx([SWITCH_INTERVAL] * 2)
    assert sys.getswitchinterval() == usual > SWITCH_INTERVAL


def test_a_training_waits_only_where_what_waits_holds_too_much() -> None:
    background, may_end, done = Background(limit=10), threading.Event(), list[int]()
    background.submit("first", lambda: may_end.wait(20) and None)
    for i in range(4):
        background.submit(str(i), lambda i=i: done.append(i), size=3 if i < 3 else 1)  # type: ignore[misc]
    asking = threading.Thread(target=background.submit, args=("4", lambda: done.append(4), 1), daemon=True)
    asking.start()
    background.submit("1", lambda: done.append(11), size=3)  # in place of the one with its key
    asking.join(0.2)
    assert asking.is_alive()
    may_end.set()
    asking.join(20)
    background.wait()
    assert done == [0, 11, 2, 3, 4]


def test_bad_arguments_are_answered_as_keras_does(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in `\.ktrt`"):
        keras_trt.EngineCheckpoint("a.keras")
    with pytest.raises(ValueError, match="Unrecognized save_freq"):
        keras_trt.EngineCheckpoint("a.ktrt", save_freq="day")
    with pytest.raises(TypeError, match="Unknown option colour"):
        keras_trt.EngineCheckpoint("a.ktrt", colour="red")
    with pytest.raises(ValueError, match="isn't able to automatically determine"):
        network().fit(
            X, Y, verbose=0, callbacks=[keras_trt.EngineCheckpoint(tmp_path / "a.ktrt", monitor="beauty", **QUIET)]
        )
    missing = keras_trt.EngineCheckpoint(
        tmp_path / "a.ktrt", monitor="beauty", mode="max", save_best_only=True, **QUIET
    )
    with pytest.warns(UserWarning, match="Can save best model only with beauty available"):
        network().fit(X, Y, verbose=0, callbacks=[missing])
    assert (tmp_path / "a.ktrt").exists()
    model = network()
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.ktrt").mkdir()
    before = model.get_weights()
    for path in (tmp_path / "file" / "a.ktrt", tmp_path / "file" / "{epoch}" / "a.ktrt", tmp_path / "folder.ktrt"):
        with pytest.raises(OSError, match="file"):
            model.fit(X, Y, verbose=0, callbacks=[keras_trt.EngineCheckpoint(path, **QUIET)])
    same(before, model.get_weights())


INTERRUPTED = """
    import sys, warnings; warnings.simplefilter("ignore")
    import numpy as np, keras, keras_trt
    x = np.random.default_rng(0).standard_normal((64, 4), np.float32)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("adam", "mse")
    class Tells(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if logs["engine_epoch"] > 1:
                print("saved", flush=True)
    engine = keras_trt.EngineCheckpoint(sys.argv[1], backend="onnxruntime", cache=None)
    model.fit(x, x[:, :3], epochs=100000, callbacks=[engine, Tells()], verbose=0)
"""


@pytest.mark.parametrize("with_", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_training_leaves_the_last_good_engine(with_: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "a.ktrt"
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(INTERRUPTED), str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"saved\n"
    time.sleep(0.2)
    os.kill(child.pid, with_)
    child.communicate(timeout=60)
    assert child.returncode != 0
    found = loaded(path).predict(X, verbose=0)
    assert found.shape == (60, 3)
    assert np.isfinite(found).all()


def test_under_a_mirrored_strategy(tmp_path: Path) -> None:
    code = """
        import sys, warnings; warnings.simplefilter("ignore")
        import numpy as np, tensorflow as tf, keras, keras_trt
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        x = np.random.default_rng(0).standard_normal((64, 4), np.float32)
        quiet = dict(backend="onnxruntime", cache=None)
        with strategy.scope():
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
            model.compile("adam", "mse")
            engine = keras_trt.EngineCheckpoint(sys.argv[1], **quiet)
            validation = keras_trt.EngineValidation((x, x[:, :3]), **quiet)
            history = model.fit(x, x[:, :3], epochs=2, callbacks=[validation, engine], verbose=0).history
        expected = model.evaluate(x, x[:, :3], verbose=0)
        assert abs(history["val_loss"][1] - expected) < 1e-4, (history, expected)
        wanted = x @ model.layers[0].kernel.numpy() + model.layers[0].bias.numpy()
        found = keras_trt.load(sys.argv[1], backend="onnxruntime", verbose=0).predict(x, verbose=0)
        assert np.allclose(wanted, found, atol=1e-5)
        with model.compile_trt(**quiet, verbose=0):
            model.layers[0].bias.assign([1, 2, 3])
            wanted = x @ model.layers[0].kernel.numpy() + [1, 2, 3]
            assert np.allclose(wanted, model.predict(x, verbose=0), atol=1e-5)
        print("same")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a.ktrt")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.strip() == "same", done.stderr[-3000:]


# Validation.


def test_validation_on_the_engine_gives_what_fit_gives() -> None:
    def history(engine: bool) -> Any:
        keras.utils.set_random_seed(5)
        x, y, weight = X[:40], Y[:40], np.linspace(0, 1, 40)
        validation = keras_trt.EngineValidation((x, y, weight), validation_batch_size=16, **QUIET)
        arguments = {"callbacks": [validation]} if engine else {
            "validation_data": (x, y, weight), "validation_batch_size": 16}  # fmt: skip
        return network(weighted_metrics=["mse"]).fit(X, Y, epochs=3, verbose=0, **arguments).history

    expected, found = history(False), history(True)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, err_msg=name)
    assert len(set(np.round(expected["val_loss"], 6))) == 3


def test_other_callbacks_monitor_it() -> None:
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(20)
    validation = keras_trt.EngineValidation(dataset, validation_steps=2, validation_freq=2, **QUIET)
    stop = keras.callbacks.EarlyStopping("val_loss", patience=0, mode="max")  # stops as soon as it gets better
    with pytest.warns(UserWarning, match="conditioned on metric `val_loss` which is not available"):
        history = network().fit(X, Y, epochs=9, callbacks=[validation, stop], verbose=0).history
    assert len(history["loss"]) == 4
    assert len(history["val_loss"]) == 2


def test_a_generator_goes_on_where_it_stopped() -> None:
    numbers = itertools.count(1)
    batches = ((np.full((8, 1), number, np.float32), np.zeros((8, 1))) for number in numbers)
    model = keras.Sequential([keras.Input((1,)), kl.Dense(1, kernel_initializer="ones")])
    model.compile(keras.optimizers.SGD(0.0), "mae")
    validation = keras_trt.EngineValidation(batches, validation_steps=3, validation_freq=[1, 3], **QUIET)
    history = model.fit(X[:, :1], Y[:, :1], epochs=3, callbacks=[validation], verbose=0).history
    np.testing.assert_allclose(history["val_loss"], [2, 5], rtol=1e-5)


def test_a_list_is_taken_for_a_tuple_as_fit_takes_it() -> None:
    model = network()
    validation = keras_trt.EngineValidation([X, Y, np.arange(60)], **QUIET)
    history = model.fit(X, Y, callbacks=[validation], verbose=0).history
    expected = model.evaluate(X, Y, sample_weight=np.arange(60), verbose=0)
    assert history["val_loss"][0] == pytest.approx(expected[0], rel=1e-4)


def test_where_there_is_no_engine_keras_validates() -> None:
    model = hopeless()
    with recorded() as records:
        history = model.fit(X, Y, epochs=2, callbacks=[keras_trt.EngineValidation((X, Y), **QUIET)], verbose=0).history
    warns_once(records, "Keras runs")
    assert history["val_loss"][1] == pytest.approx(model.evaluate(X, Y, verbose=0), rel=1e-5)
