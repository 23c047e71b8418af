"""Data and models that do not fit: the error that says so, or the model that Keras runs instead."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt import ExportError, FallbackWarning, InputError, OptimizationProfile, PrecisionError, ShapeRange
from keras_trt import accelerate as plain_accelerate

from .models import (
    BATCH_SIZES,
    CASES,
    Subclassed,
    SubclassedPair,
    accelerate,
    floats,
    integers,
    keras,
    kl,
    ops,
    pair,
    recorded,
    rows_differ,
    same,
    tf,
    warns_once,
)

WAYS = {
    "predict": lambda fast, x: fast.predict(x, verbose=0),
    "predict_on_batch": lambda fast, x: fast.predict_on_batch(x),
    "call": lambda fast, x: fast(x),
}


# Data that does not fit.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("x", "expected", "received"),
    [
        pytest.param(np.ones((3, 8, 8), np.float32), "(batch, 8, 8, 3)", "(3, 8, 8)", id="rank under"),
        pytest.param(np.ones((3, 8, 8, 3, 2), np.float32), "(batch, 8, 8, 3)", "(3, 8, 8, 3, 2)", id="rank over"),
        pytest.param(np.ones((8, 8, 3), np.float32), "(batch, 8, 8, 3)", "(8, 8, 3)", id="one image, no batch"),
        pytest.param(np.ones((3, 8, 8, 1), np.float32), "(batch, 8, 8, 3)", "(3, 8, 8, 1)", id="channels"),
        pytest.param(np.ones((3, 8, 9, 3), np.float32), "(batch, 8, 8, 3)", "(3, 8, 9, 3)", id="width"),
        pytest.param(np.float32(1), "(batch, 8, 8, 3)", "()", id="no axes"),
        pytest.param(np.full((3, 8, 8, 3), "a"), "float32", "<U1", id="texts"),
        pytest.param(np.full((3, 8, 8, 3), 1, object), "float32", "object", id="objects"),
        pytest.param(np.full((3, 8, 8, 3), 1j), "float32", "complex128", id="complex"),
        pytest.param(np.zeros((3, 8, 8, 3), "datetime64[s]"), "float32", "datetime64[s]", id="dates"),
        pytest.param(tf.fill((3, 8, 8, 3), "a"), "float32", "object", id="tensor of texts"),
        pytest.param([np.ones((3, 8, 8, 3))] * 2, "1 input", "2 arrays", id="two inputs"),
        pytest.param({"picture": np.ones((3, 8, 8, 3))}, "image", "picture", id="wrong key"),
        pytest.param({"picture": np.ones((3, 8, 8, 3)), "x": np.ones(3)}, "image", "picture", id="wrong keys"),
        pytest.param([1.0, 2.0, 3.0], "image", "float", id="list of numbers"),
        pytest.param([[1, 2], [3, 4]], "image", "int", id="nested list of numbers"),
        pytest.param([], "image", "[]", id="empty list"),
        pytest.param({}, "image", "[]", id="empty dict"),
        pytest.param(None, "image", "NoneType", id="None"),
        pytest.param("text", "image", "str", id="str"),
        pytest.param(3, "image", "int", id="int"),
    ],
)
def test_what_does_not_fit_is_an_input_error(way: str, x: Any, expected: str, received: str) -> None:
    _, fast = pair("image")
    with pytest.raises(InputError) as caught:
        WAYS[way](fast, x)
    text = str(caught.value)
    assert "image" in text
    assert expected in text
    assert received in text.split("eceived: ", 1)[1]
    assert fast.predict_on_batch(np.ones((2, 8, 8, 3))).shape == (2, 3)  # it works on


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("x", "words"),
    [
        pytest.param([np.ones((3, 4)), np.ones((2, 2))], ["'first': 3", "'second': 2"], id="numbers of rows"),
        pytest.param({"first": np.ones((3, 4))}, ["misses", "'second'", "['first']"], id="missing key"),
        pytest.param(np.ones((3, 4)), ["2 inputs", "'first', 'second'", "(3, 4)"], id="one for two"),
        pytest.param([np.ones((3, 2)), np.ones((3, 4))], ["'first'", "(batch, 4)", "(3, 2)"], id="swapped"),
        pytest.param([np.ones((3, 4)), None], ["'second'", "NoneType"], id="None for one"),
        pytest.param([np.ones((3, 4)), [1, 2, 3]], ["second", "eceived"], id="list of numbers for one"),
    ],
)
def test_what_does_not_fit_two_inputs(way: str, x: Any, words: list[str]) -> None:
    _, fast = pair("list inputs")
    with pytest.raises(InputError) as caught:
        WAYS[way](fast, x)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("way", WAYS)
def test_two_channels_for_one_are_refused_where_keras_computes_something(way: str) -> None:
    model = keras.Sequential([keras.Input((8, 8, 1), name="image"), kl.Conv2D(2, 3), kl.Flatten(), kl.Dense(2)])
    fast = accelerate(model)
    with pytest.raises(InputError, match=r"\(batch, 8, 8, 1\).*\(4, 8, 8, 2\)"):
        WAYS[way](fast, np.ones((4, 8, 8, 2), np.float32))
    x = floats(8, 8)(4)  # without its last axis, as Keras takes it
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))


@pytest.mark.parametrize("bad", ["dataset", "generator", "PyDataset"])
def test_batches_that_do_not_fit(bad: str) -> None:
    _, fast = pair("sequential")
    x = floats(5)(6)

    class Data(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            return x[index * 3 : index * 3 + 3], np.zeros(3)

    data = {
        "dataset": tf.data.Dataset.from_tensor_slices(x).batch(3),
        "generator": ((part,) for part in (x[:3], x[3:])),
        "PyDataset": Data(),
    }[bad]
    with pytest.raises(InputError, match=r"\(batch, 4\).*\(3, 5\)"):
        fast.predict(data, verbose=0)


def test_a_later_batch_that_does_not_fit() -> None:
    _, fast = pair("sequential")
    with pytest.raises(InputError, match=r"\(3, 5\)"):
        fast.predict(((x,) for x in (floats(4)(3), floats(5)(3))), verbose=0)


def test_data_without_a_batch() -> None:
    _, fast = pair("sequential")
    with pytest.raises(ValueError, match="at least one"):
        fast.predict((x for x in [(floats(4)(3),)][:0]), verbose=0)


@pytest.mark.parametrize("sparse", [tf.sparse.from_dense(np.eye(4, dtype=np.float32)), tf.ragged.constant([[1.0], []])])
@pytest.mark.parametrize("way", WAYS)
def test_sparse_and_ragged_tensors_are_right_or_refused(way: str, sparse: Any) -> None:
    model, fast = pair("sequential")
    try:
        found = WAYS[way](fast, sparse)
    except (InputError, ValueError) as error:
        assert "eceived" in str(error) or "Unrecognized" in str(error)  # noqa: PT017 (both outcomes are fine)
    else:
        same(model.predict(np.eye(4, dtype=np.float32), verbose=0), np.asarray(found))


# Data that is cast as Keras casts it.


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "int32", "int64", "uint8", "uint64", "bool"])
@pytest.mark.parametrize("name", ["sequential", "int32", "uint8"])
def test_numbers_are_cast_as_keras_casts_them(name: str, dtype: str) -> None:
    model, fast = pair(name)
    x = (CASES[name].data(20) * (3 if name == "sequential" else 1)).astype("float32")
    x = np.clip(x, 0, 10).astype(dtype)
    expected = model.predict(x, verbose=0)
    assert len(np.unique(np.round(expected, 3))) > 3
    for way in WAYS.values():
        same(expected, way(fast, x))


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16", "int32", "bool"])
def test_tensors_are_cast_as_keras_casts_them(dtype: str) -> None:
    model, fast = pair("sequential")
    x = tf.cast(floats(4)(20) * 3, dtype)
    expected = np.asarray(model(x))
    for way in WAYS.values():
        same(expected, np.asarray(way(fast, x)))


@pytest.mark.parametrize("numbers", [[-1.7, 0.2], [2.9, 9.99], [300.7, -3.2]])
def test_fractions_for_integers(numbers: list[float]) -> None:
    inputs = keras.Input((2,), dtype="int32")
    model = keras.Model(inputs, ops.cast(inputs, "float32") * 2)
    fast = accelerate(model)
    x = np.array([numbers, numbers[::-1]])
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))


def test_integers_are_not_made_floats_in_a_subclassed_model() -> None:
    """Built on integers and accelerated without a sample, it must still compute with integers."""

    class Wrapping(keras.Model):
        def call(self, x: Any) -> Any:
            return ops.cast(x + x, "float32")

    model = Wrapping()
    x = integers(256, 4, dtype="uint8")(20)
    expected = model.predict(x, verbose=0)
    assert expected.max() < 256  # bytes wrap around
    assert (2.0 * x).max() > 256
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        fast = accelerate(model)
        for way in WAYS.values():
            same(expected, way(fast, x))


# Keys and numbers of inputs.


@pytest.mark.parametrize("name", ["list inputs", "dict inputs"])
def test_extra_keys_are_left_out_with_a_warning(name: str) -> None:
    model, fast = pair(name)
    x = CASES[name].data(5)
    if isinstance(x, list):
        x = dict(zip(("first", "second"), x, strict=True))
    expected = model.predict(x, verbose=0)
    for way in WAYS.values():
        with pytest.warns(UserWarning, match="'extra'") as records:
            same(expected, way(fast, {**x, "extra": np.ones((5, 1))}))
        assert len(records) == 1
        assert records[0].filename == __file__, "the warning points at the caller"


# NaN and infinity.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["sequential", "image", "minus mean"])
def test_nan_and_infinity_pass_through(name: str, value: float) -> None:
    model, fast = pair(name)
    x = CASES[name].data(40)
    clean = fast.predict(x, verbose=0)
    x[5] = value
    x[39] = value  # the row that pads the tail
    x[17].flat[0] = value
    expected = model.predict(x, verbose=0)
    assert not np.isfinite(expected[[5, 39]]).all()
    for way in ("predict", "predict_on_batch"):
        if name == "minus mean" and way == "predict_on_batch":
            continue  # over the largest batch
        same(expected, WAYS[way](fast, x))
    if name != "minus mean":
        others = np.delete(np.arange(40), [5, 17, 39])
        same(clean[others], fast.predict(x, verbose=0)[others])


# Arguments.


@pytest.mark.parametrize("argument", ["batch_size", "steps"])
@pytest.mark.parametrize("value", [0, -1, -32])
@pytest.mark.parametrize("name", ["sequential", "minus mean"])
def test_sizes_below_one(name: str, argument: str, value: int) -> None:
    _, fast = pair(name)
    with pytest.raises(ValueError, match=f"`{argument}`.*Received: {argument}={value}"):
        fast.predict(floats(4)(5), **{argument: value, "verbose": 0})


def test_a_batch_over_the_largest_is_cut() -> None:
    model, fast = pair("sequential")
    x = floats(4)(333)
    expected = model.predict_on_batch(x)
    rows_differ(expected)
    for way in WAYS.values():
        same(expected, way(fast, x))


def test_a_batch_under_the_smallest_is_padded() -> None:
    model = CASES["sequential"].build()
    fast = accelerate(model, batch_sizes=(8, 8, 16))
    for rows in (1, 7, 8, 9, 16, 17, 33):
        x = floats(4)(rows)
        same(model.predict(x, verbose=0), fast.predict(x, verbose=0))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"batchsize": 3}, TypeError, "batchsize"),
        ({"precision": "int4"}, ValueError, "precision"),
        ({"batch_sizes": (8, 4, 2)}, ValueError, "batch_sizes"),
        ({"backend": "tensorflow"}, ValueError, "backend"),
        ({"fallback": None}, ValueError, "fallback"),
        ({"options": {"precision": "fp32"}}, TypeError, "options"),
        ({"profiles": OptimizationProfile({"nothing": ShapeRange((1, 4), (2, 4), (3, 4))})}, ValueError, "misses"),
        ({"profiles": OptimizationProfile({})}, ValueError, "misses"),
    ],
)
def test_options_that_are_not(options: dict[str, Any], error: Any, words: str) -> None:
    model = CASES["sequential"].build()
    with pytest.raises(error, match=words):
        accelerate(model, **options)


def test_options_object_and_keywords(cache: Any) -> None:
    model = CASES["sequential"].build()
    options = keras_trt.BuildOptions(backend="onnxruntime", cache=cache, precision="fp16", verbose=0)
    assert plain_accelerate(model, options=options).precision == "fp16"
    assert plain_accelerate(model, options=options, precision="fp32").precision == "fp32"


@pytest.mark.parametrize("verbose", ["auto", 0, 1])
def test_verbose_is_one_line(verbose: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fast = accelerate(CASES["sequential"].build(), verbose=verbose)
    out = capsys.readouterr().out
    assert out.count("\n") == (0 if verbose == 0 else 1)
    if verbose:
        assert "ONNX Runtime" in out
        assert "built" in out
    assert "onnxruntime" in repr(fast)
    assert fast.device == "cpu"
    assert fast.precision == "fp32"


# The sample.


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (np.ones((3, 5)), "(3, 5)"),
        (np.ones((3, 4), object), "object"),
        ([np.ones((3, 4))] * 2, "2 arrays"),
        ("text", "str"),
        (3, "int"),
        ({"other": np.ones((3, 4))}, "other"),
    ],
)
@pytest.mark.parametrize("fallback", ["keras", "raise"])
def test_a_sample_that_does_not_fit(sample: Any, words: str, fallback: str) -> None:
    with pytest.raises(InputError) as caught:
        accelerate(CASES["sequential"].build(), sample=sample, fallback=fallback)
    assert words in str(caught.value)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 100])
def test_a_sample_of_any_number_of_rows(rows: int) -> None:
    model = CASES["sequential"].build()
    if rows == 0:
        with pytest.raises(InputError, match="row"):
            accelerate(model, sample=floats(4)(0))
        return
    fast = accelerate(model, sample=floats(4)(rows))
    assert fast.backend == "onnxruntime"
    x = floats(4)(50)
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))


@pytest.mark.parametrize("way", ["minus mean", "first row", "running sum"])
@pytest.mark.parametrize(
    "sample", [floats(4)(1), np.zeros((1, 4), "float32"), np.ones((8, 4), "float32")], ids=["one row", "zero", "equal"]
)
def test_a_poor_sample_does_not_hide_that_rows_depend(way: str, sample: Any) -> None:
    model = CASES[way].build()
    fast = accelerate(model, sample=sample)
    x = floats(4)(20)
    same(model.predict(x, batch_size=7, verbose=0), fast.predict(x, batch_size=7, verbose=0))
    assert not fast.report().rows_independent


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
    assert records[0].filename.startswith(str(Path(__file__).parent)), "the warning points at the caller"
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


# Axes other than the batch.


def _open_axis() -> Any:
    sequence = keras.Input((None, 3), name="sequence")
    return keras.Model(sequence, kl.GlobalAveragePooling1D()(kl.Conv1D(4, 3, padding="same")(sequence)))


def test_an_open_axis_without_a_size() -> None:
    for fallback in ("keras", "raise"):
        with pytest.raises(ValueError, match=r"Axis 1 of input 'sequence'.*\(None, None, 3\).*sample="):
            accelerate(_open_axis(), fallback=fallback)


def test_an_open_axis_with_a_sample() -> None:
    model = _open_axis()
    fast = accelerate(model, sample=floats(6, 3)(4))
    assert fast.backend == "onnxruntime"
    x = floats(6, 3)(40)
    expected = model.predict(x, verbose=0)
    rows_differ(expected)
    same(expected, fast.predict(x, verbose=0))
    other = floats(9, 3)(40)
    with recorded() as records:
        for way in WAYS.values():
            same(model.predict(other, verbose=0), way(fast, other))
    warns_once(records, "axis 1", "sequence", "9", "6", "profiles")
    with pytest.raises(InputError, match=r"\(batch, any, 3\)"):
        fast.predict(floats(6, 4)(2), verbose=0)


def test_many_lengths_that_the_engine_does_not_take_warn_once() -> None:
    model = _open_axis()
    fast = accelerate(model, sample=floats(6, 3)(4))
    with recorded() as records:
        for length in (7, 8, 9, 10):
            fast.predict(floats(length, 3)(2), verbose=0)
    warns_once(records, "profiles")


def test_an_open_axis_with_profiles() -> None:
    model = _open_axis()
    shapes = ShapeRange(min=(1, 4, 3), opt=(4, 8, 3), max=(16, 12, 3))
    fast = accelerate(model, profiles=OptimizationProfile({"sequence": shapes}))
    for length in (4, 5, 8, 12):
        x = floats(length, 3)(20)
        same(model.predict(x, verbose=0), fast.predict(x, verbose=0))
    with recorded() as records:
        x = floats(3, 3)(20)
        same(model.predict(x, verbose=0), fast.predict(x, verbose=0))
    warns_once(records, "4 to 12")


def test_a_sample_is_as_long_as_the_profile_says() -> None:
    shapes = ShapeRange(min=(1, 4, 3), opt=(4, 8, 3), max=(16, 12, 3))
    profiles = OptimizationProfile({"sequence": shapes})
    model = _open_axis()
    fast = accelerate(model, profiles=profiles, sample=floats(7, 3)(4))
    x = floats(12, 3)(20)
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))


# The life of a drop-in.


def test_a_corrupt_plan_is_built_again(cache: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = CASES["sequential"].build()
    x = floats(4)(20)
    expected = model.predict(x, verbose=0)
    assert accelerate(model, cache=cache).report().origin == "built"
    assert accelerate(model, cache=cache).report().origin == "cache"
    payloads = [path for path in (cache.path / "payloads").rglob("*") if path.is_file()]
    assert len(payloads) == 2  # the plan, and the export without its weights
    for payload in payloads:
        content = bytearray(payload.read_bytes())
        content[len(content) // 2] ^= 0xFF
        payload.chmod(0o600)
        payload.write_bytes(content)
    with caplog.at_level(logging.WARNING, "keras_trt"):
        fast = accelerate(model, cache=cache)
    assert fast.report().origin == "built"
    same(expected, fast.predict(x, verbose=0))
    fast = accelerate(model, cache=cache)
    assert fast.report().origin == "cache"
    same(expected, fast.predict(x, verbose=0))


@pytest.mark.parametrize("sample", [None, floats(4)(8)], ids=["found by its record", "found by its graph"])
def test_a_whole_entry_that_holds_no_plan_is_built_again(sample: Any, cache: Any, caplog: Any) -> None:
    model = CASES["sequential"].build()
    x = floats(4)(20)
    expected = model.predict(x, verbose=0)
    assert accelerate(model, cache=cache).report().origin == "built"
    (engine,) = (item for item in cache.items() if item.kind == "entry" and "graph" in item.manifest)
    cache.put(engine.key, b"what another version wrote", engine.manifest)
    with caplog.at_level(logging.WARNING, "keras_trt"):
        fast = accelerate(model, cache=cache, sample=sample)  # another sample has a record of its own
    assert [record.levelname for record in caplog.records if "cannot be loaded and is built" in record.getMessage()]
    assert fast.report().origin == "built"
    same(expected, fast.predict(x, verbose=0))
    assert accelerate(model, cache=cache).report().origin == "cache"


def test_the_users_cache_is_taken_from_the_environment(tmp_path: Path) -> None:
    model = CASES["sequential"].build()
    assert accelerate(model, cache=True).report().origin == "built"
    assert list((tmp_path / "user-cache" / "payloads").rglob("*"))
    assert accelerate(model, cache=tmp_path / "user-cache").report().origin == "cache"


def test_other_weights_are_another_engine(cache: Any) -> None:
    model = CASES["sequential"].build()
    x = floats(4)(20)
    accelerate(model, cache=cache)
    model.set_weights([weights + 0.5 for weights in model.get_weights()])
    fast = accelerate(model, cache=cache)
    assert fast.report().origin == "refitted"
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))


@pytest.mark.parametrize("way", WAYS)
def test_use_after_close(way: str) -> None:
    fast = accelerate(CASES["sequential"].build())
    with fast as entered:
        assert entered is fast
        fast.predict(floats(4)(3), verbose=0)
    with pytest.raises(RuntimeError, match="closed"):
        WAYS[way](fast, floats(4)(3))
    fast.close()  # again, without harm


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore")
import numpy as np, keras, keras_trt
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
fast = keras_trt.accelerate(model, backend="onnxruntime", cache=None, verbose=0)
x = np.ones((2, 4), np.float32)
fast.predict(x, verbose=0)
child = os.fork()
if child == 0:
    said = []
    for use in (lambda: fast.predict(x), lambda: fast.predict_on_batch(x), lambda: fast(x)):
        try:
            use()
        except RuntimeError as error:
            said.append(str(error))
    fast.close()
    os.write(1, repr(said).encode())
    os._exit(0 if len(said) == 3 and all("fork" in text for text in said) else 1)
_, status = os.waitpid(child, 0)
assert fast.predict(x, verbose=0).shape == (2, 3)  # the parent's engine is as it was
os._exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this system does not fork")
def test_use_after_fork() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORK)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_batch_sizes_of_these_tests() -> None:
    assert pair("sequential")[1]._predictor._session.profile.batch == BATCH_SIZES  # else nothing above is cut
