"""Small models of every kind that can be exported today, with lively seeded weights (no two rows answer alike)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_trt.specs import OptimizationProfile, ShapeRange, TensorSpec


def _sequential(*layers: Any) -> Any:
    import keras

    return keras.Sequential(layers)


def cnn() -> Any:
    from keras import Input, layers

    return _sequential(
        Input((12, 12, 3)),
        layers.Conv2D(8, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.DepthwiseConv2D(3, strides=2),
        layers.SeparableConv2D(8, 3, activation="swish"),
        layers.MaxPooling2D(2, padding="same"),
        layers.Flatten(),
        layers.Dense(10),
    )


def mlp() -> Any:
    from keras import Input, layers

    return _sequential(Input((6,)), layers.Dense(16, activation="tanh"), layers.Dropout(0.5), layers.Dense(3))


def upsampling() -> Any:
    from keras import Input, layers

    return _sequential(
        Input((8, 8, 3)),
        layers.Conv2DTranspose(4, 3, strides=2, activation="leaky_relu"),
        layers.UpSampling2D(interpolation="bilinear"),
        layers.AveragePooling2D(2),
        layers.Conv2D(2, 1),
    )


def lstm() -> Any:
    from keras import Input, layers

    return _sequential(Input((7, 4)), layers.LSTM(6, return_sequences=True), layers.LSTM(5), layers.Dense(2))


def bidirectional_gru() -> Any:
    from keras import Input, layers

    return _sequential(Input((7, 4)), layers.Bidirectional(layers.GRU(6)), layers.Dense(2))


def embedding() -> Any:
    from keras import Input, layers

    return _sequential(
        Input((9,), dtype="int32"),
        layers.Embedding(20, 8, embeddings_initializer="random_normal"),
        layers.Conv1D(8, 3, activation="relu"),
        layers.GlobalMaxPooling1D(),
        layers.Dense(3),
    )


def attention() -> Any:
    import keras
    from keras import layers

    tokens = keras.Input((6, 8), name="tokens")
    attended = layers.MultiHeadAttention(2, 4)(tokens, tokens)
    normal = layers.LayerNormalization()(layers.Add()([tokens, attended]))
    return keras.Model(tokens, layers.Dense(4)(normal))


def gelu_and_expm1() -> Any:
    from keras import Input, layers

    return _sequential(
        Input((6,)), layers.Dense(16, "gelu"), layers.Dense(8, "celu"), layers.Dense(8, "selu"), layers.Dense(3)
    )


def normalized() -> Any:
    from keras import Input, layers

    return _sequential(Input((4,)), layers.Normalization(mean=[1.0, 2, 3, 4], variance=[1.0, 2, 3, 4]), layers.Dense(3))


def grouped() -> Any:
    from keras import Input, layers

    return _sequential(Input((8, 8, 4)), layers.Conv2D(8, 3, groups=2), layers.Conv2D(8, 3, groups=4), layers.Flatten())


def two_inputs_two_outputs() -> Any:
    import keras
    from keras import layers

    image, number = keras.Input((8, 8, 1), name="image"), keras.Input((3,), name="number")
    features = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(image))
    both = layers.Concatenate()([features, number])
    outputs = {"class": layers.Dense(5)(both), "score": layers.Dense(1)(both)}
    return keras.Model({"image": image, "number": number}, outputs)


def shared_and_nested() -> Any:
    import keras
    from keras import layers

    tower = _sequential(keras.Input((4,)), layers.Dense(5, activation="elu"), layers.Dense(3))
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    return keras.Model([left, right], [layers.Subtract()([tower(left), tower(right)]), tower(left)])


def bytes_in() -> Any:
    from keras import Input, layers

    return _sequential(
        Input((8, 8, 3), dtype="uint8"), layers.Rescaling(1 / 64), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D()
    )


def subclassed() -> Any:
    import keras
    from keras import layers

    class Residual(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = layers.Dense(6, activation="relu"), layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.last(x + self.inner(x))

    model = Residual()
    model(np.zeros((2, 6), "float32"))
    return model


ZOO: dict[str, Callable[[], Any]] = {
    build.__name__: build
    for build in (
        cnn,
        mlp,
        upsampling,
        lstm,
        bidirectional_gru,
        embedding,
        attention,
        gelu_and_expm1,
        normalized,
        grouped,
        two_inputs_two_outputs,
        shared_and_nested,
        bytes_in,
        subclassed,
    )
}


def make(name: str) -> Any:
    """Build a model of the zoo with seeded weights and batch-norm statistics that are not the initial ones."""
    import keras

    keras.utils.set_random_seed(7)
    model = ZOO[name]()
    generator = np.random.default_rng(7)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.moving_mean.shape
            layer.moving_mean.assign(generator.normal(0, 0.2, shape))
            layer.moving_variance.assign(generator.uniform(0.5, 1.5, shape))
    return model


def lively(model: Any) -> Any:
    """Give a model weights of which none is 0 or 1; variances stay positive."""
    generator = np.random.default_rng(5)
    for variable in model.variables:
        if "float" in variable.dtype:
            values = 0.5 * generator.standard_normal(variable.shape)
            variable.assign(np.abs(values) + 0.5 if "variance" in variable.path else values)
    return model


def random_inputs(specs: tuple[TensorSpec, ...], rows: int, seed: int) -> list[np.ndarray]:
    """Return fresh random inputs: integers stay below the smallest table of the zoo."""
    generator = np.random.default_rng(seed)
    inputs = []
    for spec in specs:
        shape = (rows, *(axis or 5 for axis in spec.shape[1:]))
        if spec.dtype.startswith("float"):
            inputs.append(generator.standard_normal(shape).astype(spec.dtype))
        else:
            inputs.append(generator.integers(0, 256 if spec.dtype == "uint8" else 20, shape).astype(spec.dtype))
    return inputs


def profile(specs: tuple[TensorSpec, ...], batches: tuple[int, int, int] = (1, 8, 32)) -> OptimizationProfile:
    """Return the profile of a model whose only open axis is the batch."""
    shapes = {spec.name: tuple(axis or 5 for axis in spec.shape[1:]) for spec in specs}
    return OptimizationProfile(
        {name: ShapeRange(*((size, *rest) for size in batches)) for name, rest in shapes.items()}
    )


def relative_l2(wanted: np.ndarray, got: np.ndarray) -> float:
    """Return the relative difference; two rows must differ by 100 times the float32 limit, or it proves nothing."""
    assert wanted.shape == got.shape
    wanted, got = wanted.astype("float64"), got.astype("float64")
    if len(wanted) > 1:
        spread = np.linalg.norm(wanted[0] - wanted[1]) / np.linalg.norm(wanted[0])
        assert spread > 100 * 1e-4, f"two rows differ by {spread:.1e} only: equal answers would prove nothing"
    return float(np.linalg.norm(wanted - got) / np.linalg.norm(wanted))
