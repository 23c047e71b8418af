"""`EngineValidation` in `fit` gives what Keras's own validation gives; both callbacks under a strategy."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt

from ..models import keras, kl, recorded, tf, warns_once
from .helpers import QUIET, X, Y, hopeless, network

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


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
