"""`evaluate` and `test_on_batch` of the drop-in against Keras's own, and what else it shows of its Keras model."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt

from .forms import Batches
from .models import (
    CASES,
    Subclassed,
    accelerate,
    floats,
    integers,
    keras,
    kl,
    ops,
    recorded,
    tf,
    warns_once,
)

pytestmark = pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")

ROWS = 75


def compiled(**settings: Any) -> Any:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(5, activation="tanh"), kl.Dense(3)])
    model.compile(**{"loss": "mse", "metrics": ["mae", keras.metrics.RootMeanSquaredError()], **settings})
    return model


def data(rows: int = ROWS) -> tuple[Any, Any, Any]:
    return floats(4)(rows), floats(3)(rows)[::-1], np.random.default_rng(3).random(rows)


def close(expected: Any, actual: Any) -> None:
    """Assert the same results by the same names; that they are not those of another batch of data is for the caller."""
    if isinstance(expected, dict):
        assert expected.keys() == actual.keys()
        expected, actual = list(expected.values()), list(actual.values())
    assert type(actual) is type(expected)
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


def never_by_keras(fast: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the Keras model fail if it is called from now on."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("Keras ran the model")

    monkeypatch.setattr(type(fast._source), "call", refuse)


@pytest.mark.parametrize("return_dict", [True, False])
@pytest.mark.parametrize("size", [None, 7, 200])
def test_arrays_and_weights(size: int | None, return_dict: bool) -> None:
    model = compiled(weighted_metrics=["mse"])
    fast = accelerate(model)
    x, y, weight = data()
    keywords = {"batch_size": size, "return_dict": return_dict, "verbose": 0}
    plain, weighted = model.evaluate(x, y, **keywords), model.evaluate(x, y, sample_weight=weight, **keywords)
    close(plain, fast.evaluate(x, y, **keywords))
    close(weighted, fast.evaluate(x, y, sample_weight=weight, **keywords))
    assert model.metrics_names == fast.metrics_names


def test_the_engine_runs_and_keras_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = compiled()
    fast = accelerate(model)
    x, y, _ = data()
    expected = model.evaluate(x, y, verbose=0), model.test_on_batch(x, y)
    fast.evaluate(x, y, verbose=0)  # looks at the model once
    fresh = compiled()
    assert expected[0][0] != pytest.approx(fresh.evaluate(x, y, verbose=0)[0], rel=1e-2), "weights must matter"
    never_by_keras(fast, monkeypatch)
    close(expected[0], fast.evaluate(x, y, verbose=0))
    close(expected[1], fast.test_on_batch(x, y))


def pairs(x: Any, y: Any, size: int) -> dict[str, Callable[[], Any]]:
    class Labelled(Batches):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0], y[index * size : (index + 1) * size]

    def generator() -> Any:
        for start in range(0, len(x), size):
            yield x[start : start + size], y[start : start + size]

    return {
        "tensors": lambda: (tf.constant(x), tf.constant(y)),
        "dataset": lambda: (tf.data.Dataset.from_tensor_slices((x, y)).batch(size),),
        "dataset with weights": lambda: (
            tf.data.Dataset.from_tensor_slices((x, y, np.arange(len(x)) / 50)).batch(size),
        ),
        "generator": lambda: (generator(),),
        "PyDataset": lambda: (Labelled(x, size),),
        "PyDataset with 2 workers": lambda: (Labelled(x, size, workers=2),),
    }


@pytest.mark.parametrize("form", pairs(None, None, 1))
def test_data_in_any_form(form: str) -> None:
    model = compiled()
    fast = accelerate(model)
    x, y, _ = data()
    make = pairs(x, y, 20)[form]
    close(model.evaluate(*make(), verbose=0, return_dict=True), fast.evaluate(*make(), verbose=0, return_dict=True))


@pytest.mark.parametrize(
    "name", ["nested inputs", "dict outputs", "list outputs", "tuple outputs", "bool", "subclassed with two inputs"]
)
def test_structures(name: str) -> None:
    model = CASES[name].build()
    fast = accelerate(model)
    x = CASES[name].data(40)
    y = keras.tree.map_structure(lambda output: output * 0.5 + 1, model.predict(x, verbose=0))
    model.compile(loss=keras.tree.map_structure(lambda _: "mse", y))
    expected = model.evaluate(x, y, batch_size=16, verbose=0, return_dict=True)
    assert expected["loss"] > 0.01
    close(expected, fast.evaluate(x, y, batch_size=16, verbose=0, return_dict=True))
    close(model.test_on_batch(x, y), fast.test_on_batch(x, y))


@pytest.mark.parametrize("way", ["minus mean", "batch statistics", "times size"])
def test_dependent_rows_are_evaluated_in_the_users_batches(way: str) -> None:
    model = CASES[way].build()
    model.compile(loss="mse")
    fast = accelerate(model)
    x, y, _ = data(30)
    expected = model.evaluate(x, y, batch_size=7, verbose=0)
    assert abs(expected - model.evaluate(x, y, batch_size=30, verbose=0)) > 1e-3
    close(expected, fast.evaluate(x, y, batch_size=7, verbose=0))


@pytest.mark.parametrize(
    "settings", [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 3}], ids=str
)
def test_ways_of_running(settings: dict[str, Any]) -> None:
    model = compiled(**settings)
    fast = accelerate(model)
    x, y, weight = data()
    expected = model.evaluate(x, y, sample_weight=weight, batch_size=8, verbose=0)
    close(expected, fast.evaluate(x, y, sample_weight=weight, batch_size=8, verbose=0))


def test_another_compile_counts() -> None:
    model = compiled()
    fast = accelerate(model)
    x, y, _ = data()
    close(model.evaluate(x, y, verbose=0), fast.evaluate(x, y, verbose=0))
    model.compile(loss="mae", metrics=["cosine_similarity"])
    assert len(model.evaluate(x, y, verbose=0)) == 2
    close(model.evaluate(x, y, verbose=0), fast.evaluate(x, y, verbose=0))


class Own(Subclassed):
    """Overrides all of the trainer that concerns evaluation."""

    def call(self, x: Any, training: bool = False) -> Any:  # noqa: ARG002 (Keras looks for it)
        return super().call(x)["result"]

    def test_step(self, batch: Any) -> Any:
        logs = super().test_step(batch)
        return {**logs, "mean of outputs": ops.mean(self(batch[0], training=False))}

    def compute_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool = True) -> Any:
        return super().compute_loss(x, y, y_pred, sample_weight, training=training) + ops.mean(x) + 3

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return {**super().compute_metrics(x, y, y_pred, sample_weight), "largest": ops.max(y_pred)}

    def evaluate(self, *arguments: Any, **keywords: Any) -> Any:
        return {"own": True, **super().evaluate(*arguments, **keywords)}


def test_what_the_models_own_class_overrides_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Own()
    x, y, _ = data()
    model(x)
    model.compile(loss="mse", metrics=["mae"])
    fast = accelerate(model)
    expected = model.evaluate(x, y, verbose=0, return_dict=True)
    assert {"own", "mean of outputs", "largest"} < expected.keys()
    close(expected, fast.evaluate(x, y, verbose=0, return_dict=True))
    never_by_keras(fast, monkeypatch)
    close(expected, fast.evaluate(x, y, verbose=0, return_dict=True))


def test_weight_regularizers_count() -> None:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, kernel_regularizer=keras.regularizers.L2(0.5))])
    model.compile(loss="mse")
    fast = accelerate(model)
    x, y, _ = data()
    close(model.evaluate(x, y, verbose=0), fast.evaluate(x, y, verbose=0))
    assert model.losses[0] > 0.1


class AddsLoss(kl.Layer):
    def call(self, x: Any) -> Any:
        self.add_loss(ops.mean(ops.square(x)))
        return x * 2


def _masked() -> Any:
    tokens = keras.Input((6,), dtype="int32")
    return keras.Model(tokens, kl.Dense(3)(kl.Embedding(11, 4, mask_zero=True)(tokens)))


@pytest.mark.parametrize(
    ("build", "x", "y", "why"),
    [
        (lambda: keras.Sequential([keras.Input((4,)), AddsLoss()]), floats(4), floats(4), "add to the loss"),
        (
            lambda: keras.Sequential([keras.Input((4,)), kl.Dense(3, activity_regularizer="l2")]),
            floats(4),
            floats(3),
            "add to the loss",
        ),
        (_masked, integers(3, 6), floats(6, 3), "mask"),
    ],
)
def test_a_loss_that_needs_more_than_the_outputs_is_computed_by_keras(build: Any, x: Any, y: Any, why: str) -> None:
    model = build()
    model.compile(loss="mse", metrics=["mae"])
    fast = accelerate(model)
    expected = model.evaluate(x(40), y(40), verbose=0)
    with recorded() as records:
        close(expected, fast.evaluate(x(40), y(40), verbose=0))
        close(model.test_on_batch(x(40), y(40)), fast.test_on_batch(x(40), y(40)))
    warns_once(records, "Keras evaluates", why)
    assert fast.backend == "onnxruntime"


def test_sparse_data_is_run_by_keras() -> None:
    model = compiled()
    fast = accelerate(model)
    x, y, _ = data(20)
    x = np.where(x > 0.5, x, 0)
    batches = tf.data.Dataset.from_tensors((tf.sparse.from_dense(x), y))
    with recorded() as records:
        close(model.evaluate(batches, verbose=0), fast.evaluate(batches, verbose=0))
    warns_once(records, "not dense tensors")


# What goes around it.


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


@pytest.mark.long  # test_callbacks.py has a shorter form of it
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


# What it shows.


def test_it_describes_itself_as_its_model_does(capsys: pytest.CaptureFixture[str]) -> None:
    model = CASES["dict inputs"].build()
    model.compile(loss="mse", metrics=["mae"])
    fast = accelerate(model)
    for name in ("name", "inputs", "outputs", "input_shape", "output_shape", "metrics_names"):
        assert getattr(fast, name) == getattr(model, name), name
    lines: list[str] = []
    model.summary(print_fn=lines.append)
    shown: list[str] = []
    fast.summary(print_fn=shown.append)
    assert shown[: len(lines)] == lines
    assert "ONNX Runtime" in "".join(shown[len(lines) :])
    fast.summary()
    assert "broad" in (printed := capsys.readouterr().out)
    assert "ONNX Runtime" in printed


@pytest.mark.parametrize(("name", "layer"), [("image", "conv2d"), ("fixed batch", "dense")])
def test_the_summary_lists_what_the_engine_makes_of_the_layers(name: str, layer: str) -> None:
    lines: list[str] = []
    fast = accelerate(CASES[name].build())
    fast.summary(print_fn=lines.append)
    table = [row.split() for row in lines[-1].splitlines()[1:]]
    assert table[0][:3] == ["Keras", "layer", "type"]
    found = [row for row in table[1:] if row[0].startswith(layer)]
    assert found
    assert all("float" in row for row in found)
    assert {row[0] for row in table[1:]} <= {"(model)", *(one.name for one in fast._source.layers)}


def test_the_table_has_every_name_of_a_keras_model() -> None:
    table = (Path(keras_trt.__file__).parents[1] / "docs" / "keras-model.md").read_text()
    missing = [name for name in dir(keras.Model) if not name.startswith("_") and f"`{name}`" not in table]
    assert not missing


def test_what_a_drop_in_lacks_is_said() -> None:
    fast = accelerate(compiled())
    with pytest.raises(AttributeError, match="for inference and has no `fit`"):
        fast.fit  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'predictt'"):
        fast.predictt  # noqa: B018
    assert not hasattr(fast, "_private")
