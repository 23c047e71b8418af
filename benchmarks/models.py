"""The models of the benchmarks: seeded random weights, batch normalizations with the statistics of random inputs.

Untrained networks answer every input alike, and then equal answers prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

IMAGE = (224, 224, 3)


def mlp() -> Any:
    import keras

    layers = [keras.layers.Dense(1024, activation="relu") for _ in range(3)]
    return keras.Sequential([keras.Input((784,)), *layers, keras.layers.Dense(10)])


def lstm() -> Any:
    import keras

    # As plain Keras code, without cuDNN: what the other backends run too.
    layer = keras.layers.LSTM(256, use_cudnn=False)
    return keras.Sequential([keras.Input((128, 64)), layer, keras.layers.Dense(10)])


def bert() -> Any:
    """An encoder of BERT-base's size: 12 layers of 768 with 12 heads, on 128 tokens that are embedded already."""
    import keras
    from keras import layers

    inputs = keras.Input((128, 768))
    x = layers.LayerNormalization(epsilon=1e-12)(inputs)
    for _ in range(12):
        x = layers.LayerNormalization(epsilon=1e-12)(x + layers.MultiHeadAttention(12, 64)(x, x))
        y = layers.Dense(3072, activation="gelu")(x)
        x = layers.LayerNormalization(epsilon=1e-12)(x + layers.Dense(768)(y))
    return keras.Model(inputs, layers.Dense(2)(x[:, 0]))


def mobilenet_of_bytes() -> Any:
    """MobileNetV2 that takes images as bytes and scales them itself."""
    import keras

    inputs = keras.Input(IMAGE, dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    return keras.applications.MobileNetV2(weights=None, input_tensor=scaled, classifier_activation=None)


def application(name: str) -> Callable[[], Any]:
    def build() -> Any:
        import keras

        return getattr(keras.applications, name)(weights=None, classifier_activation=None)

    return build


MODELS: dict[str, Callable[[], Any]] = {
    "MLP": mlp,
    "MobileNetV2": application("MobileNetV2"),
    "MobileNetV2-uint8": mobilenet_of_bytes,
    "ResNet50": application("ResNet50"),
    "EfficientNetB0": application("EfficientNetB0"),
    "ConvNeXtTiny": application("ConvNeXtTiny"),
    "LSTM": lstm,
    "BERT": bert,
}


def make(name: str) -> Any:
    """Build one of `MODELS`, or of Keras's applications.

    The weights are untrained, and answer as trained ones do: differently to different images. One pass in training mode
    sets the statistics of each batch normalization to those of its own input. Each residual block adds little to what
    passes it by, or else so many random layers amplify every rounding a hundredfold, which training prevents.
    """
    import keras

    keras.utils.set_random_seed(0)
    model = MODELS.get(name, application(name))()
    found = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in model.layers:
        if isinstance(layer, keras.layers.Add) and (branch := layer.input[1]._keras_history.operation) in found:
            branch.gamma.assign(0.05 * branch.gamma)
    before = [layer.momentum for layer in found]
    for layer in found:
        layer.momentum = 0.0
    if found:
        model(rows_for(model, 8), training=True)
    for layer, momentum in zip(found, before, strict=True):
        layer.momentum = momentum
    return model


def rows_for(model: Any, count: int) -> np.ndarray:
    """Return seeded random rows; images have the range of bytes."""
    shape = tuple(int(size or 1) for size in model.input_shape[1:])
    generator = np.random.default_rng(0)
    # Few are drawn and repeated with noise that is cheap: 16,384 images of full noise take minutes.
    base = generator.standard_normal((min(count, 64), *shape), dtype=np.float32)
    if shape == IMAGE:
        base = np.clip(base * 64 + 128, 0, 255)
    rows = np.empty((count, *shape), model.inputs[0].dtype)
    for start in range(0, count, len(base)):
        part = rows[start : start + len(base)]
        noise = 0.9 + 0.1 * generator.random((len(part), *[1] * len(shape)), dtype=np.float32)
        part[:] = base[: len(part)] * noise
    return rows
