"""Models that no engine can run, which Keras runs instead, and what is no model of Keras or not built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_trt import ExportError, PrecisionError

from ..models import (
    CASES,
    Subclassed,
    SubclassedPair,
    accelerate,
    floats,
    keras,
    kl,
    pair,
    recorded,
    rows_differ,
    same,
    tf,
    warns_once,
)
from .test_data import WAYS

# Models that Keras must run.


class DoublingStep(keras.Model):
    def predict_step(self, data: Any) -> Any:
        return 2 * super().predict_step(data)


class DoublingPredict(keras.Model):
    def predict(self, *arguments: Any, **keywords: Any) -> Any:
        return 2 * super().predict(*arguments, **keywords)


class DoublingOnBatch(keras.Model):
    def predict_on_batch(self, x: Any) -> Any:
        return 2 * super().predict_on_batch(x)


class DoublingFunction(keras.Model):
    def make_predict_function(self, force: bool = False) -> Any:
        if self.predict_function is None:
            super().make_predict_function(force)
            function = self.predict_function
            self.predict_function = lambda data: 2 * function(data)
        return self.predict_function


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (DoublingStep, "predict_step"),
        (DoublingPredict, "predict"),
        (DoublingOnBatch, "predict_on_batch"),
        (DoublingFunction, "make_predict_function"),
    ],
)
def test_an_overridden_method_is_run_by_keras(kind: Any, method: str) -> None:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    outputs = kl.Dense(3)(inputs)
    model, plain = kind(inputs, outputs), keras.Model(inputs, outputs)
    with recorded() as records:
        fast = accelerate(model)
    warns_once(records, f"`{method}`", "Keras runs")
    assert (fast.backend, fast.precision, fast.report().origin) == ("keras", "keras", "keras")
    assert f"`{method}`" in fast.report().fell_back[0]
    x = floats(4)(5)
    on_batch = method == "predict_on_batch"
    found = fast.predict_on_batch(x) if on_batch else fast.predict(x, verbose=0)
    same(2 * plain.predict(x, verbose=0), found)
    with pytest.raises(ExportError, match=method):
        accelerate(model, fallback="raise")


def test_an_overridden_method_of_one_instance_is_run_by_keras() -> None:
    model = CASES["sequential"].build()
    step = model.predict_step
    model.predict_step = lambda data: 2 * step(data)
    with recorded() as records:
        fast = accelerate(model)
    warns_once(records, "`predict_step`")
    x = floats(4)(5)
    same(2 * np.asarray(model(x)), fast.predict(x, verbose=0))


def _stateful(kind: Any) -> Any:
    inputs = keras.Input(batch_shape=(2, 3, 4))
    return keras.Model(inputs, kind(5, stateful=True, name="memory")(inputs))


@pytest.mark.parametrize("kind", [kl.LSTM, kl.GRU, kl.SimpleRNN])
def test_a_stateful_rnn_is_run_by_keras_and_its_state_moves_on(kind: Any) -> None:
    model = _stateful(kind)
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    with recorded() as records:
        fast = accelerate(model)
    warns_once(records, "memory", "stateful")
    x = floats(3, 4)(8)
    first, again = twin.predict(x, batch_size=2, verbose=0), twin.predict(x, batch_size=2, verbose=0)
    assert np.abs(first - again).max() > 1e-3
    same(first, fast.predict(x, batch_size=2, verbose=0))
    same(again, fast.predict(x, batch_size=2, verbose=0))
    with pytest.raises(ExportError, match="stateful"):
        accelerate(model, fallback="raise")


@keras.saving.register_keras_serializable("keras_trt_tests")
class Counter(kl.Layer):
    """Adds how often it was called."""

    def build(self, _shape: Any) -> None:
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, x: Any) -> Any:
        self.calls.assign(self.calls + 1)
        return x + self.calls


@keras.saving.register_keras_serializable("keras_trt_tests")
class AlwaysTraining(kl.BatchNormalization):
    """Normalizes by the batch, and so moves its statistics, at inference too."""

    def call(self, x: Any, **_: Any) -> Any:
        return super().call(x, training=True)


@pytest.mark.parametrize("kind", [Counter, AlwaysTraining])
def test_a_model_that_writes_to_variables_is_run_by_keras(kind: Any) -> None:
    word = "writer"
    inputs = keras.Input((4,))
    model = keras.Model(inputs, kind(name=word)(inputs))
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    with recorded() as records:
        fast = accelerate(model)
    warns_once(records, word, "writes to a variable")
    x = floats(4)(10)
    for _ in range(2):
        same(twin.predict(x, batch_size=2, verbose=0), fast.predict(x, batch_size=2, verbose=0))
    for mine, theirs in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


def test_a_stateful_rnn_inside_a_model_is_found() -> None:
    inner = _stateful(kl.GRU)
    inputs = keras.Input(batch_shape=(2, 3, 4))
    with recorded() as records:
        fast = accelerate(keras.Model(inputs, inner(inputs)))
    warns_once(records, "memory", "stateful")
    assert fast.backend == "keras"


def test_the_drop_in_that_keras_runs_is_complete(capfd: pytest.CaptureFixture[str]) -> None:
    model = CASES["dict outputs"].build()
    model.predict_step = model.predict_step  # an instance attribute: overridden, though it changes nothing
    with recorded():
        fast = accelerate(model)
    x = floats(4)(10)
    expected = model.predict(x, verbose=0)
    same(expected, fast.predict(x, verbose=0))
    same(expected, fast.predict(tf.data.Dataset.from_tensor_slices(x).batch(3), verbose=0))
    same(expected, fast.predict_on_batch(x))
    same(expected, fast(x))
    tensors = fast(tf.constant(x))
    assert all(tf.is_tensor(one) for one in tensors.values())
    steps: list[int] = []
    callback = keras.callbacks.LambdaCallback(on_predict_batch_end=lambda batch, **_: steps.append(batch))
    fast.predict(x, batch_size=3, verbose=0, callbacks=[callback])
    assert steps == [0, 1, 2, 3]
    capfd.readouterr()
    fast.predict(x, batch_size=3, verbose=1)
    assert "4/4" in capfd.readouterr().out
    assert "keras" in repr(fast)
    fast.close()
    with pytest.raises(RuntimeError, match="closed"):
        fast.predict(x, verbose=0)


def test_a_layer_that_cannot_be_exported_is_run_by_keras() -> None:
    model = keras.Sequential(
        [keras.Input((4,)), kl.Lambda(lambda x: keras.ops.erfinv(keras.ops.tanh(x)), name="spectrum"), kl.Dense(3)]
    )
    with recorded() as records:
        fast = accelerate(model)
    warns_once(records, "spectrum", "Erfinv")
    assert fast.backend == "keras"
    assert records[0].filename.startswith(str(Path(__file__).parents[1])), "the warning points at the caller"
    x = floats(4)(20)
    expected = model.predict(x, verbose=0)
    rows_differ(expected)
    for way in WAYS.values():
        same(expected, way(fast, x))
    with pytest.raises(ExportError, match="Erfinv") as caught:
        accelerate(model, fallback="raise")
    assert "spectrum" in str(caught.value.layer)


def test_tf32_on_the_cpu_is_full_float32_with_one_warning() -> None:
    model = CASES["sequential"].build()
    with recorded() as records:
        fast = accelerate(model, precision="tf32")
    warns_once(records, "tf32", "fp32")
    assert fast.precision == "fp32"
    assert "tf32" in fast.report().fell_back[0]
    x = floats(4)(20)
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))
    with pytest.raises(PrecisionError, match="tf32"):
        accelerate(model, precision="tf32", fallback="raise")


def test_tf32_found_in_the_cache_warns_again(cache: Any) -> None:
    model = CASES["sequential"].build()
    for origin in ("built", "cache"):
        with recorded() as records:
            fast = accelerate(model, precision="tf32", cache=cache)
        warns_once(records, "tf32")
        assert fast.report().origin == origin
    with pytest.raises(PrecisionError, match="tf32"):
        accelerate(model, precision="tf32", fallback="raise", cache=cache)


def test_fp16_is_near_and_not_equal() -> None:
    model = CASES["image"].build()
    fast = accelerate(model, precision="fp16")
    assert fast.precision == "fp16"
    x = floats(8, 8, 3)(20)
    expected, found = model.predict(x, verbose=0), fast.predict(x, verbose=0)
    rows_differ(expected, 1e-3)
    assert found.dtype == np.float32
    distance = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 1e-6 < distance < 1e-2
    assert 0 < fast.report().differences[0].relative_l2 < 1e-2


# Models that are not built, or not Keras's.


@pytest.mark.parametrize("fallback", ["keras", "raise"])
@pytest.mark.parametrize("build", [Subclassed, lambda: keras.Sequential([kl.Dense(3)])])
def test_an_unbuilt_model(build: Any, fallback: str) -> None:
    with pytest.raises(ExportError, match=r"not been built.*sample="):
        accelerate(build(), fallback=fallback)


@pytest.mark.parametrize("build", [Subclassed, lambda: keras.Sequential([kl.Dense(3)])])
def test_an_unbuilt_model_with_a_sample(build: Any) -> None:
    model = build()
    fast = accelerate(model, sample=floats(4)(5))
    assert fast.backend == "onnxruntime"
    assert model.built
    x = floats(4)(20)
    expected = model.predict(x, verbose=0)
    rows_differ(expected)
    same(expected, fast.predict(x, verbose=0))


def test_an_unbuilt_model_with_a_sample_of_two_inputs() -> None:
    model = SubclassedPair()
    fast = accelerate(model, sample=CASES["subclassed with two inputs"].data(5))
    x = CASES["subclassed with two inputs"].data(20)
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))


class Estimator:
    """As those of scikit-learn."""

    def fit(self, x: Any, y: Any) -> Estimator:  # noqa: ARG002
        return self

    def predict(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize(
    "thing",
    [
        None,
        3,
        print,
        lambda x: x,
        Estimator(),
        Estimator,
        keras.Model,
        tf.Module(),
        tf.function(lambda x: x),
        kl.Dense(3),
        [keras.Sequential()],
    ],
    ids=lambda thing: getattr(thing, "__name__", type(thing).__name__),
)
def test_what_is_not_a_keras_model(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"takes a keras\.Model, or the path of one\. Received: "):
        accelerate(thing)


def test_the_drop_in_of_a_drop_in() -> None:
    _, fast = pair("sequential")
    with pytest.raises(TypeError, match="TRTModel"):
        accelerate(fast)
