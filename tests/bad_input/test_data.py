"""Data that does not fit, and what is taken as Keras takes it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from keras_trt import FallbackWarning, InputError

from ..models import CASES, accelerate, floats, integers, keras, kl, ops, pair, same, tf

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


@pytest.mark.parametrize("way", WAYS)
def test_an_index_outside_of_a_table_is_an_input_error(way: str, capfd: pytest.CaptureFixture[str]) -> None:
    fast = accelerate(keras.Sequential([keras.Input((1,), dtype="int32"), kl.Embedding(5, 2)]))
    with pytest.raises(InputError, match="idx=5"):
        WAYS[way](fast, np.array([[5]], "int32"))
    assert capfd.readouterr().err == ""  # ONNX Runtime would say it there, too
    assert WAYS[way](fast, np.array([[4]], "int32")).shape == (1, 1, 2)
