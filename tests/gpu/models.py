"""Models with lively seeded weights, random inputs for them, and the difference of answers that counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt import cuda

Array = np.ndarray[Any, Any]


def cnn(size: int = 16) -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((size, size, 3), name="image"),
            layers.Conv2D(16, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(10),
        ],
        name="cnn",
    )


def lstm() -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(2)
    # Without cuDNN: not every TensorFlow for GPUs comes with its recurrent part.
    recurrent = layers.LSTM(16, use_cudnn=False)
    return keras.Sequential([keras.Input((12, 8), name="steps"), recurrent, layers.Dense(5)], name="lstm")


def attention() -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(3)
    tokens = keras.Input((10, 32), name="tokens")
    normal = layers.LayerNormalization()(tokens)
    x = layers.Add()([tokens, layers.MultiHeadAttention(4, 8)(normal, normal)])
    wide = layers.Dense(64, activation="relu")(layers.LayerNormalization()(x))
    x = layers.Add()([x, layers.Dense(32)(wide)])
    return keras.Model(tokens, layers.Dense(6)(layers.GlobalAveragePooling1D()(x)), name="attention")


def mlp() -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(4)
    return keras.Sequential(
        [keras.Input((20,), name="features"), layers.Dense(64, activation="tanh"), layers.Dense(4)], name="mlp"
    )


def lookup() -> Any:
    """A model that takes 64-bit integers."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(5)
    table = layers.Embedding(50, 8, embeddings_initializer="random_normal")
    return keras.Sequential(
        [keras.Input((6,), dtype="int64", name="ids"), table, layers.Flatten(), layers.Dense(4)], name="lookup"
    )


def some_rows() -> Any:
    """A model that gives the rows that pass, and the places that do: it is not known how many."""
    import keras
    import tensorflow as tf
    from keras import layers

    class Some(layers.Layer):
        def call(self, x: Any) -> Any:
            return {"rows": tf.boolean_mask(x, x[:, 0] > 0.5), "places": tf.where(x > 1.0), "all": 2 * x}

        def compute_output_shape(self, _: Any) -> Any:
            return {"rows": (None, 20), "places": (None, 2), "all": (None, 20)}

    keras.utils.set_random_seed(7)
    inputs = keras.Input((20,), name="features")
    x = layers.Dense(20, kernel_initializer="orthogonal")(inputs)
    return keras.Model(inputs, Some()(x), name="some_rows")


def boxes() -> Any:
    """A model that gives the boxes that are left of those of all rows, with their scores."""
    import keras
    import tensorflow as tf
    from keras import layers

    class Boxes(layers.Layer):
        def call(self, x: Any) -> Any:
            x = tf.reshape(x, (-1, 5))
            corners = tf.concat([x[:, :2], x[:, :2] + tf.abs(x[:, 2:4])], axis=1)
            kept = tf.image.non_max_suppression(corners, x[:, 4], 50, 0.3, 0.5)
            return {"corners": tf.gather(corners, kept), "scores": tf.gather(x[:, 4], kept)}

        def compute_output_shape(self, _: Any) -> Any:
            return {"corners": (None, 4), "scores": (None,)}

    inputs = keras.Input((6, 5), name="candidates")
    model = keras.Model(inputs, Boxes()(inputs), name="boxes")
    model.compile(jit_compile=False)  # XLA, which Keras uses where TensorFlow has a GPU, wants 50 boxes of any input
    return model


def resnet50() -> Any:
    """ResNet50 whose untrained weights answer as trained ones do: differently to different images.

    One pass in training mode sets the statistics of each batch normalization to those of its own input, so that all
    activations have unit scale. Each block adds little to what passes it by, or else so many random layers amplify
    every rounding more than a hundredfold, which training prevents. The bias of the last layer takes away what the
    answers to all images have in common.
    """
    import keras

    keras.utils.set_random_seed(6)
    model = keras.applications.ResNet50(weights=None, classifier_activation=None)
    normalizations = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in normalizations]
    for layer in normalizations:
        layer.momentum = 0.0
        if layer.name.endswith("_3_bn"):
            layer.gamma.assign(0.05 * layer.gamma)
    some = images(16, seed=100)
    model(some, training=True)
    for layer, momentum in zip(normalizations, momenta, strict=True):
        layer.momentum = momentum
    last = model.layers[-1]
    last.bias.assign(last.bias - np.asarray(model(some, training=False)).mean(axis=0))
    return model


def images(rows: int, seed: int = 0) -> Array:
    """Return random images with structure of all sizes, more of one or another, as photographs have."""
    generator = np.random.default_rng(seed)
    total = np.zeros((rows, 224, 224, 3))
    for size in (2, 7, 28, 112, 224):
        coarse = generator.standard_normal((rows, size, size, 3)) * generator.lognormal(0, 1.25, (rows, 1, 1, 1))
        total += coarse.repeat(224 // size, axis=1).repeat(224 // size, axis=2)
    return total.astype("float32")


def random_rows(model: Any, rows: int, seed: int = 0) -> Array:
    """Return random rows for a model with one input."""
    generator = np.random.default_rng([rows, seed])
    (tensor,) = model.inputs
    shape = (rows, *tensor.shape[1:])
    if tensor.dtype.startswith("int"):
        return generator.integers(0, 50, shape).astype(tensor.dtype)
    return generator.standard_normal(shape).astype(tensor.dtype)


def relative(answers: Array, reference: Array) -> float:
    """Return ‖answers - reference‖ / ‖reference‖."""
    reference = reference.astype("float64")
    return float(np.linalg.norm(answers.astype("float64") - reference) / np.linalg.norm(reference))


def assert_lively(reference: Array, tolerance: float) -> None:
    """Assert that rows differ by so much that a comparison with `tolerance` can fail: answers to other rows do."""
    difference = relative(np.roll(reference, 1, axis=0), reference)
    assert difference > 100 * tolerance, f"rows differ by {difference:.2g} only, at a tolerance of {tolerance}"


def require_gpu() -> None:
    """Skip where there is no GPU with TensorRT."""
    try:
        count = cuda.device_count()
    except keras_trt.KerasTRTError as error:
        pytest.skip(f"CUDA cannot be used here: {error}")
    if not count:
        pytest.skip("CUDA shows no GPU")
    pytest.importorskip("tensorrt", reason="TensorRT is not installed", exc_type=ImportError)
