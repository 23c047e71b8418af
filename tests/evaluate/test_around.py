"""What goes around `evaluate`: callbacks, the progress bar, bad calls, threads, a strategy."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import keras_trt

from ..models import Subclassed, accelerate, keras, kl, recorded, warns_once
from .helpers import close, compiled, data

pytestmark = pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")


class Recorder(keras.callbacks.Callback):
    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self.stop_at = stop_at

    def on_test_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        self.calls.append("begin")

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        self.calls.append(("batch begin", batch))

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self.calls.append(("batch end", batch, sorted(logs), self.model.name, len(self.model.metrics)))
        self.model.stop_evaluating = batch == self.stop_at

    def on_test_end(self, logs: Any = None) -> None:
        self.calls.append(("end", {name: round(value, 4) for name, value in logs.items()}))


@pytest.mark.parametrize("stop_at", [None, 1])
@pytest.mark.parametrize("steps", [None, 2])
def test_callbacks(steps: int | None, stop_at: int | None) -> None:
    model = compiled()
    fast = accelerate(model)
    x, y, _ = data()
    watchers = Recorder(stop_at), Recorder(stop_at)
    for one, watcher in zip((model, fast), watchers, strict=True):
        one.evaluate(x, y, batch_size=20, steps=steps, callbacks=[watcher], verbose=0)
    assert watchers[0].calls == watchers[1].calls
    assert len(watchers[0].calls) == 2 + 2 * (2 if steps or stop_at else 4)


def test_progress_bar(capfd: pytest.CaptureFixture[str]) -> None:
    model = compiled()
    fast = accelerate(model)
    x, y, _ = data()
    texts = []
    for one in (model, fast):
        one.evaluate(x, y, verbose=2)
        texts.append(re.sub(r"\d+m?s(/step)?", "", capfd.readouterr().out))
    assert texts[0] == texts[1]
    assert "root_mean_squared_error" in texts[0]


def test_as_keras_answers_bad_calls() -> None:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3)])
    fast = accelerate(model)
    x, y, _ = data()
    for call in (lambda one: one.evaluate(x, y), lambda one: one.test_on_batch(x, y)):
        for one in (model, fast):
            with pytest.raises(ValueError, match="must call `compile"):
                call(one)
    model.compile(loss="mse")
    for one in (model, fast):
        with pytest.raises(ValueError, match="Arguments not recognized"):
            one.evaluate(x, y, verbose=0, colour="red")
        with pytest.raises(ValueError, match="cardinality"):
            one.evaluate(x, y[:-1], verbose=0)
    for eagerly in (False, True):
        model.compile(loss="mse", run_eagerly=eagerly)
        with pytest.raises(keras_trt.InputError, match="takes the shape"):
            fast.evaluate(x[:, :3], y, verbose=0)
        close(model.evaluate(x, y, verbose=0), fast.evaluate(x, y, verbose=0))
    fast.close()
    with pytest.raises(RuntimeError, match="closed"):
        fast.evaluate(x, y, verbose=0)


def test_where_keras_runs_the_model_it_evaluates_too() -> None:
    class Predicts(Subclassed):
        def predict_step(self, batch: Any) -> Any:
            return super().predict_step(batch)

    model = Predicts()
    x, y, _ = data()
    model(x)
    model.compile(loss={"result": "mse", "hidden": None})
    with recorded() as records:
        fast = accelerate(model)
    warns_once(records, "predict_step")
    close(model.evaluate(x, {"result": y}, verbose=0), fast.evaluate(x, {"result": y}, verbose=0))


def test_threads_evaluate_one_after_another() -> None:
    model = compiled()
    fast = accelerate(model)
    x, y, _ = data()
    sizes = range(10, 75, 10)
    expected = [model.evaluate(x[:rows], y[:rows], verbose=0) for rows in sizes]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda rows: fast.evaluate(x[:rows], y[:rows], verbose=0), sizes))
    close(expected, found)
    assert len({round(one[0], 6) for one in expected}) > 5


@pytest.mark.long  # tests/callbacks has a shorter form of it
def test_under_a_mirrored_strategy() -> None:
    """Two replicas: two devices must be made before TensorFlow starts, so in a process of its own."""
    code = """
        import warnings; warnings.simplefilter("ignore")
        import numpy as np, tensorflow as tf, keras, keras_trt
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        with strategy.scope():
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
            model.compile("sgd", "mse", metrics=["mae"])
        generator = np.random.default_rng(0)
        x, y = generator.standard_normal((75, 4), np.float32), generator.standard_normal((75, 3), np.float32)
        fast = keras_trt.accelerate(model, backend="onnxruntime", cache=None, verbose=0)
        expected = model.evaluate(x, y, batch_size=20, verbose=0)
        runs = []
        inner = fast._predictor.predict_on_batch
        fast._predictor.predict_on_batch = lambda x: runs.append(len(x)) or inner(x)
        found = fast.evaluate(x, y, batch_size=20, verbose=0)
        assert sorted(runs) == [7, 8, 10, 10, 10, 10, 10, 10], runs
        assert expected[0] > 0.5 and np.allclose(expected, found, rtol=1e-5), (expected, found)
        print("same")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300,
        cwd=Path(keras_trt.__file__).parents[1],
    )  # fmt: skip
    assert done.stdout.strip() == "same", done.stderr[-3000:]
