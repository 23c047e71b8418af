"""Trained models on real data, which packages ship: what `precision.py` measures."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Trained:
    """A trained model and rows that it has not seen."""

    name: str
    model: Any
    calibration: Array
    x: Array
    y: Array

    def accuracy(self, answers: Array) -> float:
        return float(np.mean(answers.argmax(axis=-1) == self.y[: len(answers)]))


def digits() -> Trained:
    """A residual convolution network on the 8 by 8 digits of scikit-learn."""
    import keras
    from keras import layers
    from sklearn.datasets import load_digits

    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = shuffled((images / 16).astype("float32").reshape(-1, 8, 8, 1), labels)
    z = image = keras.Input((8, 8, 1))
    z = layers.ReLU()(convolved(z, 32))
    for _ in range(2):
        z = residual(z, 32)
    z = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Conv2D(64, 3, padding="same")(z)))
    return trained("digits, convolutions", keras.Model(image, layers.Dense(10)(z)), x, y, 1200, epochs=20)


def enlarged() -> Trained:
    """The same digits as images of 64 by 64, and a network of ResNet18's width, which keeps a GPU busy."""
    import keras
    from keras import layers
    from sklearn.datasets import load_digits

    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    small, y = shuffled((images / 16).astype("float32").reshape(-1, 8, 8, 1), labels)
    x = keras.ops.convert_to_numpy(keras.ops.image.resize(small, (64, 64)))
    z = image = keras.Input((64, 64, 1))
    z = layers.ReLU()(convolved(z, 64, strides=2))
    for channels in (64, 128, 256):
        z = residual(residual(z, channels, strides=2), channels)
    z = layers.GlobalAveragePooling2D()(z)
    return trained("enlarged digits, ResNet", keras.Model(image, layers.Dense(10)(z)), x, y, 1200, epochs=6)


def convolved(z: Any, channels: int, size: int = 3, strides: int = 1) -> Any:
    from keras import layers

    z = layers.Conv2D(channels, size, strides, padding="same", use_bias=False)(z)
    return layers.BatchNormalization(momentum=0.9)(z)


def residual(z: Any, channels: int, strides: int = 1) -> Any:
    from keras import layers

    inner = convolved(layers.ReLU()(convolved(z, channels, strides=strides)), channels)
    straight = z if z.shape[-1] == channels and strides == 1 else convolved(z, channels, 1, strides)
    return layers.ReLU()(layers.Add()([straight, inner]))


def cancer() -> Trained:
    """A network on the measurements of the breast cancer data of scikit-learn, which reach 4,000, normalized in it."""
    import keras
    from keras import layers
    from sklearn.datasets import load_breast_cancer

    keras.utils.set_random_seed(0)
    features, labels = load_breast_cancer(return_X_y=True)
    x, y = shuffled(features.astype("float32"), labels)
    normal = layers.Normalization()
    normal.adapt(x[:400])
    model = keras.Sequential(
        [keras.Input((30,)), normal, layers.Dense(64, "gelu"), layers.Dense(64, "gelu"), layers.Dense(2)]
    )
    return trained("breast cancer, dense", model, x, y, 400, epochs=30)


def text() -> Trained:
    """A Transformer that predicts the next character of Python's own documentation, which comes with Python."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    topics = pydoc_data.topics.topics
    known = sorted({letter for topic in topics.values() for letter in topic})[:127]
    place = {letter: i + 1 for i, letter in enumerate(known)}
    length = 64

    def windows(names: list[str]) -> tuple[Array, Array]:
        ids = np.array([place.get(letter, 0) for name in names for letter in topics[name]], "int32")
        ids = ids[: len(ids) // (length + 1) * (length + 1)].reshape(-1, length + 1)
        ids = ids[np.random.default_rng(1).permutation(len(ids))]
        return ids[:, :-1], ids[:, 1:]

    names = sorted(topics)
    x, y = windows([name for i, name in enumerate(names) if i % 10])
    x_test, y_test = windows(names[::10])
    tokens = keras.Input((length,), dtype="int32")
    z = layers.Embedding(len(known) + 1, 96)(tokens) + layers.Embedding(length, 96)(keras.ops.arange(length))
    for _ in range(2):
        normal = layers.LayerNormalization()(z)
        z = z + layers.MultiHeadAttention(4, 24)(normal, normal, use_causal_mask=True)
        z = z + layers.Dense(96)(layers.Dense(192, "gelu")(layers.LayerNormalization()(z)))
    model = keras.Model(tokens, layers.Dense(len(known) + 1)(layers.LayerNormalization()(z)))
    x, y = np.concatenate([x, x_test[:1000]]), np.concatenate([y, y_test[:1000]])
    return trained("Python's documentation, Transformer", model, x, y, len(x) - 1000, epochs=4)


def shuffled(x: Array, y: Array) -> tuple[Array, Array]:
    order = np.random.default_rng(0).permutation(len(x))
    return x[order], y[order]


def trained(name: str, model: Any, x: Array, y: Array, count: int, epochs: int) -> Trained:
    """Train on the first `count` rows."""
    import keras

    model.compile(keras.optimizers.Adam(2e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x[:count], y[:count], batch_size=64, epochs=epochs, verbose=0)
    return Trained(name, model, x[: min(count, 300)], x[count:], y[count:])


MODELS: tuple[Callable[[], Trained], ...] = (digits, enlarged, cancer, text)


def kept(make: Callable[[], Trained], folder: Path) -> Trained:
    """Return a trained model from the folder, where it is put at first: a GPU trains no model twice alike."""
    import keras

    model, rows = folder / f"{make.__name__}.keras", folder / f"{make.__name__}.npz"
    if not rows.exists():
        one = make()
        one.model.save(model)
        np.savez(rows, name=one.name, calibration=one.calibration, x=one.x, y=one.y)
    arrays = np.load(rows)
    loaded = keras.saving.load_model(model)
    return Trained(str(arrays["name"]), loaded, arrays["calibration"], arrays["x"], arrays["y"])
