"""The keys of Keras's own layers and models: of the same model made again, loaded from its file and cloned."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from keras_trt.fingerprint import structure_key, weights_key

from ..models import keras, kl
from .helpers import Registered, registered_activation, registered_model

# Keras 3 itself, when it saves a model with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def _stock(shape: tuple[int, ...], *make: Callable[[], Any], dtype: str | None = None) -> Callable[[], Any]:
    return lambda: keras.Sequential([keras.Input(shape, dtype=dtype), *(one() for one in make)])


def _branches() -> Any:
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    shared = kl.Dense(3)
    x = keras.ops.reshape(kl.Concatenate()([shared(a), shared(b)]), (-1, 2, 3))
    y = x[:, 0] * 2.0 + keras.ops.mean(x, axis=(1,))
    return keras.Model({"a": a, "b": b}, {"o": kl.Dense(2)(y), "p": y})


def _attention() -> Any:
    i = keras.Input((5, 8))
    x = kl.Add()([kl.MultiHeadAttention(2, 4)(i, i), kl.GroupQueryAttention(4, 2, 2)(i, i)])
    return keras.Model(i, [kl.Dense(3, activation="gelu")(kl.LayerNormalization()(x)), kl.Attention()([x, i])])


def _recurrent() -> Any:
    i = keras.Input((5,), dtype="int32")
    x = kl.Bidirectional(kl.LSTM(3, return_sequences=True))(kl.Embedding(10, 4, mask_zero=True)(i))
    return keras.Model(i, kl.GRU(3)(kl.TimeDistributed(kl.Dense(2))(x)))


def _nested() -> Any:
    i, k = keras.Input((4,)), keras.Input((3,))
    inner = keras.Sequential([kl.Dense(3), kl.ReLU()])
    return keras.Model(i, keras.Model(k, kl.Dense(2)(k))(inner(i)))


STOCK: dict[str, Callable[[], Any]] = {
    "convolutions": _stock(
        (8, 8, 3),
        lambda: kl.Conv2D(4, 3, padding="same"),
        kl.BatchNormalization,
        lambda: kl.Activation("relu"),
        kl.MaxPooling2D,
        lambda: kl.SeparableConv2D(4, 3),
        lambda: kl.Conv2DTranspose(3, 2),
        lambda: kl.DepthwiseConv2D(2),
        kl.UpSampling2D,
        kl.ZeroPadding2D,
        kl.GlobalAveragePooling2D,
        lambda: kl.Dropout(0.5),
        lambda: kl.Dense(3, activation="softmax"),
    ),
    "one dimension": _stock(
        (8, 3),
        lambda: kl.Conv1D(4, 3),
        lambda: kl.GroupNormalization(2),
        kl.PReLU,
        lambda: kl.SpatialDropout1D(0.1),
        lambda: kl.Permute((2, 1)),
        lambda: kl.Reshape((-1,)),
        kl.UnitNormalization,
        lambda: kl.RepeatVector(2),
        lambda: kl.GaussianNoise(0.1),
        kl.Flatten,
    ),
    "three dimensions": _stock((4, 4, 4, 2), lambda: kl.Conv3D(2, 2), kl.GlobalMaxPooling3D),
    "images": _stock(
        (16, 16, 3),
        kl.RandomFlip,
        lambda: kl.RandomRotation(0.1),
        lambda: kl.RandomCrop(8, 8),
        lambda: kl.Rescaling(1 / 255),
        lambda: kl.Resizing(8, 8),
        lambda: kl.CenterCrop(4, 4),
    ),
    "cells": _stock((5, 8), lambda: kl.RNN(kl.StackedRNNCells([kl.LSTMCell(2), kl.GRUCell(3)]))),
    "recurrent convolution": _stock((3, 8, 8, 2), lambda: kl.ConvLSTM2D(2, 2)),
    "masking": _stock((4, 2), lambda: kl.Masking(0.0), lambda: kl.LSTM(2)),
    "einsum": _stock((5, 8), lambda: kl.EinsumDense("abc,cd->abd", output_shape=(None, 7), bias_axes="d")),
    "spectral": _stock((4,), lambda: kl.SpectralNormalization(kl.Dense(3))),
    "mixed precision": _stock((4,), lambda: kl.Dense(3, dtype="mixed_float16"), lambda: kl.Dense(3, dtype="float32")),
    "given statistics": _stock((3,), lambda: kl.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 1.0, 4.0])),
    "strings": _stock((1,), lambda: kl.StringLookup(vocabulary=["a", "b"]), dtype="string"),
    "hashing": _stock((1,), lambda: kl.Hashing(5), dtype="int32"),
    "buckets": _stock((1,), lambda: kl.Discretization([0.0, 1.0]), lambda: kl.CategoryEncoding(3)),
    "user's layer": _stock((4,), lambda: Registered(3.0)),
    "user's activation": _stock((4,), lambda: kl.Dense(3, activation=registered_activation)),
    "user's model": registered_model,
    "branches": _branches,
    "attention": _attention,
    "recurrent": _recurrent,
    "nested": _nested,
}


@pytest.mark.parametrize("build", STOCK.values(), ids=STOCK)
def test_same_model_again_loaded_and_cloned(build: Callable[[], Any], tmp_path: Any) -> None:
    model = build()
    structure, weights = structure_key(model), weights_key(model)
    assert structure_key(build()) == structure
    assert structure_key(keras.models.clone_model(model)) == structure
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (structure_key(loaded), weights_key(loaded)) == (structure, weights)


def test_models_differ_from_each_other() -> None:
    keys = [structure_key(build()) for build in STOCK.values()]
    assert len(set(keys)) == len(keys)


def test_lambda_loaded_from_a_file(tmp_path: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = keras.Sequential([keras.Input((4,)), kl.Lambda(lambda x: x * 2.0)])
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=False)
    assert structure_key(loaded) == structure_key(model)


@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0"])
def test_applications_have_keys(name: str) -> None:
    model = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=3)
    assert structure_key(model) == structure_key(keras.models.clone_model(model))


def test_graphs_deeper_than_the_stack() -> None:
    i = o = keras.Input((4,))
    for _ in range(100):
        o = o + 1.0
    limit = sys.getrecursionlimit()
    model = keras.Model(i, o)
    depth = len(__import__("inspect").stack())
    sys.setrecursionlimit(depth + 120)
    try:
        assert len(structure_key(model)) == 64
    finally:
        sys.setrecursionlimit(limit)
