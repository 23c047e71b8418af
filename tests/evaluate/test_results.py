"""`evaluate` and `test_on_batch` of the drop-in give what Keras's own give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ..forms import Batches
from ..models import CASES, Subclassed, accelerate, floats, integers, keras, kl, ops, recorded, tf, warns_once
from .helpers import close, compiled, data

pytestmark = pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")


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


class Predicting(keras.Sequential):
    """Evaluates its predictions too."""

    def evaluate(self, x: Any, y: Any, **keywords: Any) -> Any:
        error = float(np.abs(self.predict(x, verbose=0) - y).mean())
        return {"error": error, **super().evaluate(x, y, **keywords)}


def test_an_own_evaluate_that_predicts_leaves_the_models_predict_as_it_was() -> None:
    model = Predicting([keras.Input((4,)), kl.Dense(3)])
    model.compile(loss="mse")
    x, y, _ = data()
    expected = model.evaluate(x, y, verbose=0, return_dict=True)
    model.predict_function = None  # as before it has predicted
    with accelerate(model) as fast:
        close(expected, fast.evaluate(x, y, verbose=0, return_dict=True))
    model.set_weights([weight + 1.0 for weight in model.get_weights()])
    np.testing.assert_allclose(model.predict(x, verbose=0), np.asarray(model(x)), rtol=1e-5, atol=1e-5)


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
