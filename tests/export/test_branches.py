"""Branches and loops: their graphs read values of the graph around them, which passes change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import onnxruntime
import pytest
from keras import layers, ops

from keras_trt.export import export

from .. import zoo


class Body(layers.Layer):
    """A function of a convolution's output, with more layers at hand."""

    def __init__(self, function: Callable[[Any, Any, Any], Any]) -> None:
        super().__init__()
        self._function = function
        self.first, self.second = layers.Conv2D(4, 3, padding="same"), layers.Conv2D(4, 1)
        self.normalize, self.scale = layers.BatchNormalization(), layers.LayerNormalization()

    def build(self, shape: Any) -> None:
        self.first.build(shape)
        for layer in (self.second, self.normalize, self.scale):
            layer.build((*shape[:-1], 4))
        self.w = self.add_weight(shape=(4,))
        self.built = True

    def call(self, x: Any) -> Any:
        return self._function(self, x, self.first(x))

    def compute_output_shape(self, shape: Any) -> Any:
        return (*shape[:-1], 4)


def positive(x: Any) -> Any:
    return ops.sum(x) > 0


def nested(body: Any, x: Any, y: Any) -> Any:
    y = ops.relu(y)
    inner = lambda: ops.cond(ops.sum(x) > 5, lambda: y, lambda: y + body.w)  # noqa: E731
    return body.second(ops.cond(positive(x), inner, lambda: y * body.w))


BODIES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "an outer value": lambda _, x, y: ops.cond(positive(x), lambda: ops.relu(y), lambda: y * 2.0),
    "a weight": lambda body, x, y: ops.cond(positive(x), lambda: y * body.w, lambda: y),
    "layers": lambda body, x, y: ops.cond(
        positive(x), lambda: body.second(y) * body.w, lambda: body.normalize(body.second(y))
    ),
    "a layer or nothing": lambda body, x, y: ops.cond(positive(x), lambda: body.scale(y), lambda: y),
    "the convolution in one branch alone": lambda body, x, y: ops.cond(
        positive(x), lambda: y * body.w, lambda: ops.relu(x[..., :1] * body.w)
    ),
    "the same in both": lambda body, x, y: body.second(ops.relu(ops.cond(positive(x), lambda: y, lambda: y))),
    "weights alone": lambda body, x, y: y * ops.cond(positive(x), lambda: body.w * 3.0 + 1.0, lambda: body.w),
    "a loop": lambda body, _, y: ops.while_loop(
        lambda i, _: i < 3, lambda i, z: (i + 1, body.second(z) * body.w + y), (0, y)
    )[1],
    "a loop that gives an outer value": lambda body, x, y: ops.while_loop(
        lambda i, _: i < 3, lambda i, _: (i + 1, y), (0, x[..., :1] * body.w)
    )[1],
    "nested": nested,
}


@pytest.mark.parametrize("name", list(BODIES))
def test_bodies(name: str) -> None:
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, Body(BODIES[name])(inputs))
    zoo.lively(model)
    result = export(model)
    session = onnxruntime.InferenceSession(result.onnx, providers=["CPUExecutionProvider"])
    x = np.abs(np.random.default_rng(0).standard_normal((2, 6, 6, 3))).astype("float32")
    for given in (x, -x, x - x.mean() + np.float32(3 / x.size)):  # the last has the sum 3
        (got,) = session.run(None, {result.signature.inputs[0].name: given})
        assert zoo.relative_l2(model.predict_on_batch(given), got) < 1e-5
