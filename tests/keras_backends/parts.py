"""Models of users, in a module, from where a process that exports can import their classes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers as kl

RANDOM = np.random.default_rng(7)


def rows(*shape: int) -> Any:
    return RANDOM.normal(size=shape).astype("float32")


def double(x: Any) -> Any:
    return 2 * keras.ops.tanh(x)


@keras.saving.register_keras_serializable("tests")
def triple(x: Any) -> Any:
    return 3 * keras.ops.tanh(x)


class Scale(keras.layers.Layer):
    def __init__(self, by: float = 1.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.by = by

    def call(self, x: Any) -> Any:
        return x * self.by

    def get_config(self) -> Any:
        return {**super().get_config(), "by": self.by}


class Subclassed(keras.Model):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.first, self.scale = kl.Dense(6, activation=double), Scale(0.5)
        self.last = kl.Dense(3, activation=triple)

    def call(self, x: Any) -> Any:
        return self.last(self.scale(self.first(x)))


def moved(model: Any) -> Any:
    """Give a model weights that are not its first ones."""
    new = [0.3 * RANDOM.normal(size=one.shape) for one in model.weights]
    variances = ["variance" in one.path for one in model.weights]
    model.set_weights([abs(one) + 0.5 if positive else one for one, positive in zip(new, variances, strict=True)])
    for layer in model._flatten_layers():
        if isinstance(layer, kl.Normalization):
            layer.finalize_state()
    return model


def mlp() -> tuple[Any, Any]:
    # Without `axis=None` of a `Normalization`: its count of rows is a weight that no float can be put into.
    layers = [kl.Rescaling(0.5), kl.Dense(8, "tanh"), kl.BatchNormalization(), kl.Dropout(0.2), kl.Dense(3)]
    return moved(keras.Sequential([keras.Input((4,)), *layers])), rows(40, 4)


def two_inputs() -> tuple[Any, Any]:
    series, image = keras.Input((5, 4), name="series"), keras.Input((8, 8, 3), name="image")
    seen = kl.Flatten()(kl.Conv2D(4, 3, activation="relu")(image))
    both = kl.Concatenate()([kl.GRU(3)(kl.LSTM(4, return_sequences=True)(series)), seen])
    outputs = {"label": kl.Dense(2, activation="softmax")(both), "score": kl.Dense(1)(both)}
    model = keras.Model({"series": series, "image": image}, outputs)
    return moved(model), {"series": rows(20, 5, 4), "image": rows(20, 8, 8, 3)}


def normalized() -> tuple[Any, Any]:
    normalization = kl.Normalization()
    normalization.adapt(3 + 2 * rows(50, 4))
    return keras.Sequential([keras.Input((4,)), normalization, kl.Dense(3)]), 3 + 2 * rows(40, 4)


def subclassed() -> tuple[Any, Any]:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = Subclassed()
        model.predict(rows(2, 4), verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")
    return moved(model), rows(40, 4)


def another_than_its_file() -> tuple[Any, Any]:
    model = Subclassed()
    model.predict(rows(2, 4), verbose=0)
    model.scale.by = 7.0
    model.scale.get_config = lambda: {"name": "scale"}
    return moved(model), rows(40, 4)
