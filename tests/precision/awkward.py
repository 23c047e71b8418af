"""Models of what typed graphs are hard to make of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers as kl


def preactivated() -> Any:
    """Batch normalization that cannot go into a convolution."""
    image = keras.Input((8, 8, 3))
    x = kl.Conv2D(4, 3, padding="same")(image)
    y = kl.Conv2D(4, 3, padding="same")(kl.ReLU()(kl.BatchNormalization()(x)))
    return keras.Model(image, kl.Dense(3)(kl.GlobalAveragePooling2D()(kl.Add()([x, y]))))


def loops() -> Any:
    """A loop with convolutions in its body."""
    return keras.Sequential([keras.Input((3, 6, 6, 2)), kl.ConvLSTM2D(3, 3), kl.Flatten(), kl.Dense(2)])


class Repeated(kl.Layer):
    """A dense layer three times, in a loop."""

    def __init__(self, factor: float = 1.0, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.factor = factor
        self.dense = kl.Dense(8, name="inner")

    def build(self, shape: Any) -> None:
        self.dense.build(shape)

    def call(self, x: Any) -> Any:
        def step(y: Any, i: Any) -> Any:
            return self.dense(y) * self.factor, i + 1

        y, _ = keras.ops.while_loop(lambda _, i: i < 3, step, (x, 0))
        return y / self.factor**3

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


def state_of_a_loop(factor: float = 1.0) -> Any:
    """A loop whose first state is of floats."""
    return keras.Sequential([keras.Input((6,)), kl.Dense(8), Repeated(factor, name="repeated"), kl.Dense(3)])


def masked_steps() -> Any:
    """A recurrent layer with lengths."""
    table = kl.Embedding(20, 8, mask_zero=True, embeddings_initializer="random_normal")
    return keras.Sequential([keras.Input((7,), dtype="int32"), table, kl.LSTM(6), kl.Dense(2)])


def masked_attention() -> Any:
    """Attention with a padding mask and a causal one."""
    tokens = keras.Input((6,), dtype="int32")
    x = kl.Embedding(20, 8, mask_zero=True, embeddings_initializer="random_normal")(tokens)
    return keras.Model(tokens, kl.Dense(3)(kl.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)))


def norms() -> Any:
    """Statistics, squares and epsilons as single nodes."""
    x = rows = keras.Input((6, 8))
    for layer in (kl.Dense(8), kl.GroupNormalization(2), kl.UnitNormalization(), kl.RMSNormalization(), kl.Dense(3)):
        x = layer(x)
    return keras.Model(rows, x)


MODELS: dict[str, Callable[[], Any]] = {
    build.__name__: build for build in (preactivated, loops, state_of_a_loop, masked_steps, masked_attention, norms)
}
