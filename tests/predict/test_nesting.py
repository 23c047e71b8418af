"""Answers in the nesting that Keras gives: dicts with their keys in its order, and named tuples."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import keras_trt

from ..models import floats, keras, same


class Normal(NamedTuple):
    mean: Any
    variance: Any


class Distribution(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, x: Any) -> Any:
        y = self.dense(x)
        return {"of": Normal(y, y * y), "first": [y + 1, y + 2]}


def in_order() -> Any:
    x = keras.Input((4,))
    return keras.Model(x, {"mean": keras.layers.Dense(1)(x), "logvar": keras.layers.Dense(1)(x)})


def distribution() -> Any:
    model = Distribution()
    model(floats(4)(2))
    return model


@pytest.mark.parametrize("make", [in_order, distribution])
def test_each_way_to_an_answer_has_keras_nesting(make: Any, tmp_path: Path) -> None:
    model, x = make(), floats(4)(5)
    wanted = model.predict(x, verbose=0)
    options: Any = {"backend": "onnxruntime", "cache": tmp_path / "cache", "verbose": 0}
    found = []
    for origin in ("built", "cache"):
        with keras_trt.accelerate(model, **options) as fast:
            assert fast.report().origin == origin
            found += [fast.predict(x, verbose=0), fast.predict_on_batch(x), fast(x)]
            fast.save(tmp_path / "model.ktrt")
    with keras_trt.load(tmp_path / "model.ktrt", backend="onnxruntime") as loaded:
        found.append(loaded.predict(x, verbose=0))
    model.compile_trt(**options)
    found.append(model.predict(x, verbose=0))
    for answer in found:
        answer = keras.tree.map_structure(np.asarray, answer)
        same(wanted, answer)
    if make is distribution:
        assert all(type(answer["of"]) is Normal for answer in found)
