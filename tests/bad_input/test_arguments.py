"""Arguments, options, samples and sizes of axes that do not fit, and those at the edge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt import InputError, OptimizationProfile, ShapeRange
from keras_trt import accelerate as plain_accelerate

from ..models import BATCH_SIZES, CASES, accelerate, floats, keras, kl, pair, recorded, rows_differ, same, warns_once
from .test_data import WAYS

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


def test_batch_sizes_of_these_tests() -> None:
    assert pair("sequential")[1]._predictor._session.profile.batch == BATCH_SIZES  # else nothing above is cut


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
