"""Precisions on a real GPU: what was asked for happens, is near Keras, and what breaks it is caught."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt import backends
from keras_trt.backends.tensorrt.flavor import flavor
from keras_trt.errors import FallbackWarning, PrecisionError
from keras_trt.verification.verify import LIMITS

from . import models

pytestmark = pytest.mark.gpu

OPTIONS: dict[str, Any] = {"cache": None, "batch_sizes": (1, 8, 32), "optimization_level": 1, "verbose": 0}


def overflowing() -> Any:
    """Hidden numbers of a million, and answers of one."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(8)
    features = keras.Input((32,))
    wide = layers.Dense(64, name="wide")
    narrow = layers.Dense(32, activation="tanh", name="narrow")
    x = layers.Dense(64, activation="tanh")(features)
    model = keras.Model(features, layers.Dense(8)(narrow(wide(x))), name="overflowing")
    wide.kernel.assign(wide.kernel * 1e5)
    narrow.kernel.assign(narrow.kernel * 1e-5)
    return model


@pytest.mark.parametrize("precision", ["fp8", "int8", "fp16", "bf16", "tf32", "fp32"])
@pytest.mark.parametrize("make", [models.cnn, models.attention], ids=["cnn", "attention"])
def test_each_precision_that_is_there(make: Any, precision: Any) -> None:
    backend, _ = backends.choose("auto", [0])
    if precision not in backend.precisions:
        pytest.skip(f"{backend.title} has no {precision}")
    model = make()
    rows = models.random_rows(model, 96)
    eight_bits = {"calibration_data": rows[:64]} if precision in ("int8", "fp8") else {}
    options = {"precision": precision, "fallback": "raise", **eight_bits, **OPTIONS}
    if precision == "int8" and make is models.attention and not flavor("tensorrt").strongly_typed:
        # 8.6 compiles a Transformer into one layer whose inside it does not show, and nothing orders 8 bits there.
        with pytest.raises(PrecisionError, match="is not known"):
            keras_trt.accelerate(model, **options)
        return
    with keras_trt.accelerate(model, **options) as fast:
        assert fast.precision == precision
        wanted = model.predict(rows[64:], verbose=0)
        difference = models.relative(fast.predict(rows[64:], verbose=0), wanted)
    models.assert_lively(wanted, LIMITS["fp32"])
    assert 0 < difference < 2 * LIMITS[precision]


def test_an_overflow_is_caught_and_what_runs_is_right() -> None:
    model = overflowing()
    rows = models.random_rows(model, 64)
    with pytest.warns(FallbackWarning, match="fp16"):
        fast = keras_trt.accelerate(model, precision="fp16", **OPTIONS)
    assert fast.report().kept_float32 or fast.precision != "fp16"
    assert models.relative(fast.predict(rows, verbose=0), model.predict(rows, verbose=0)) < LIMITS["fp16"]
    fast.close()


def test_layers_are_timed_and_mapped_back_to_keras() -> None:
    model = models.cnn()
    with keras_trt.accelerate(model, precision="fp16", **OPTIONS) as fast:
        found = {one.layer: one for one in fast.report().layers}
    assert sum(one.share for one in found.values()) == pytest.approx(1)
    assert "Conv2D" in {one.kind for one in found.values() if one.microseconds > 0}
    assert "Dense" in {one.kind for one in found.values()}
    assert {"FP16", "Half"} & {kind for one in found.values() for kind in one.types}


def test_auto_keeps_the_fastest_within_the_budget() -> None:
    model = models.cnn()
    rows = models.random_rows(model, 256)
    labels = model.predict(rows, verbose=0).argmax(axis=-1)

    def accuracy(y: Any, answers: Any) -> float:
        return float(np.mean(answers.argmax(axis=-1) == y))

    with keras_trt.accelerate(
        model,
        precision="auto",
        validation_data=(rows, labels),
        accuracy_budget=0.05,
        monitor=accuracy,
        mode="max",
        calibration_data=rows[:64],
        **OPTIONS,
    ) as fast:
        table = fast.report().candidates
        assert accuracy(labels, fast.predict(rows, verbose=0)) >= 0.95
    times = [one.milliseconds for one in table if one.outcome in ("chosen", "slower") and one.milliseconds]
    (chosen,) = (one for one in table if one.outcome == "chosen")
    assert chosen.milliseconds == min(times)
