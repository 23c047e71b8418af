"""`keras.activations`, and those functions of `keras.ops` that Keras's own layers and activations are written with."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import activations, ops

from .case import Case, functional


def activation_names() -> set[str]:
    return {name for name, value in vars(activations).items() if callable(value)}


def op_names() -> set[str]:
    """What the source of Keras's layers and activations calls of `keras.ops`, and of the backend under its name."""
    call = re.compile(r"\b(?:ops|backend)\.(?:(?:core|linalg|math|nn|numpy)\.)?((?:image\.)?[a-z]\w*)\(")
    source = Path(keras.__file__).parent / "src"
    files = [file for part in ("layers", "activations") for file in sorted((source / part).rglob("*.py"))]
    called = {name for file in files if not file.stem.endswith("_test") for name in call.findall(file.read_text())}
    return {name for name in called if callable(_public(name))}


def _public(name: str) -> Any:
    module, _, function = name.rpartition(".")
    return getattr(getattr(ops, module) if module else ops, function, None)


class Wrapped(keras.Layer):
    """A user's own layer that calls one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def call(self, *inputs: Any) -> Any:
        return self.function(*inputs)


ROW = (6,)
SEQUENCE = (12, 3)
IMAGE = (8, 8, 3)


def op(name: str, function: Callable[..., Any], *shapes: tuple[int, ...], **options: Any) -> Case:
    return functional(name, list(shapes) or [ROW], lambda *inputs: Wrapped(function)(*inputs), **options)


def constant(*shape: int) -> Any:
    return np.random.default_rng(3).normal(0, 0.5, shape).astype("float32")


ACTIVATIONS = [
    op(name, getattr(activations, name))
    for name in sorted(activation_names() - {"get", "serialize", "deserialize", "sparsemax", "threshold"})
] + [
    op("sparsemax", activations.sparsemax, SEQUENCE),  # of a single row it may be 0 in Keras
    op("threshold", lambda x: activations.threshold(x, 0.5, -1.0)),
]

ELEMENTWISE = """abs arctan celu copy cos elu exp floor gelu glu hard_shrink hard_sigmoid hard_silu hard_tanh
    leaky_relu log_sigmoid log_softmax relu relu6 round selu sigmoid silu sin soft_shrink softmax softplus softsign
    sparse_plus sparse_sigmoid square squareplus stop_gradient tan tanh tanh_shrink convert_to_tensor
    rms_normalization layer_normalization"""
OF_POSITIVE = "log log10 rsqrt sqrt"
OF_TWO = "add arctan2 divide_no_nan maximum minimum multiply subtract"
COMPARING = "equal greater greater_equal less less_equal not_equal"
REDUCING = "amax amin max mean min prod sum var logsumexp argmax"

OPS = [
    *(op(name, getattr(ops, name)) for name in ELEMENTWISE.split()),
    *(op(name, getattr(ops, name), low=0.5, high=3) for name in OF_POSITIVE.split()),
    *(op(name, getattr(ops, name), ROW, ROW) for name in OF_TWO.split()),
    *(op(name, getattr(ops, name), ROW, ROW, low=0.5, high=3) for name in ("divide", "power", "floor_divide")),
    *(op(name, getattr(ops, name), ROW, ROW, dtype="int32", high=3) for name in COMPARING.split()),
    *(op(name, lambda x, name=name: getattr(ops, name)(x, axis=1), SEQUENCE) for name in REDUCING.split()),
    op("adaptive_average_pool", lambda x: ops.adaptive_average_pool(x, 3), IMAGE),
    op("adaptive_max_pool", lambda x: ops.adaptive_max_pool(x, 3), IMAGE),
    op("all", lambda x: ops.all(x > -1, axis=1)),
    op("any", lambda x: ops.any(x > 1, axis=1)),
    op("arange", lambda x: x * ops.arange(6, dtype="float32")),
    op("average_pool", lambda x: ops.average_pool(x, 3, 2, padding="same"), IMAGE),
    op("batch_normalization", lambda x: ops.batch_normalization(x, constant(6), constant(6) ** 2, -1, constant(6))),
    op("bincount", lambda x: ops.bincount(x, minlength=10), dtype="int32"),
    op("bitwise_left_shift", lambda x: ops.bitwise_left_shift(x, 2), dtype="int32"),
    op("bitwise_right_shift", lambda x: ops.bitwise_right_shift(x, 1), dtype="int32"),
    op("broadcast_to", lambda x: ops.broadcast_to(x[:, None], (ops.shape(x)[0], 3, 6))),
    op("cast", lambda x: ops.cast(x, "int32"), low=-9, high=9),
    op("clip", lambda x: ops.clip(x, -0.5, 0.5)),
    op("concatenate", lambda x, y: ops.concatenate([x, y], axis=-1), ROW, (4,)),
    op("cond", lambda x: ops.cond(ops.sum(x) > 0, lambda: x * 2, lambda: x - 1)),
    op("conv", lambda x: ops.conv(x, constant(3, 3, 3, 4), 2, "same"), IMAGE),
    op("conv_transpose", lambda x: ops.conv_transpose(x, constant(3, 3, 4, 3), 2, "same"), IMAGE),
    op("count_nonzero", lambda x: ops.count_nonzero(ops.relu(x), axis=1)),
    op("cumsum", lambda x: ops.cumsum(x, axis=1), SEQUENCE),
    op("depthwise_conv", lambda x: ops.depthwise_conv(x, constant(3, 3, 3, 2)), IMAGE),
    op("digitize", lambda x: ops.digitize(x, np.array([-1.0, 0.0, 0.5]))),
    op("dot_product_attention", ops.dot_product_attention, (5, 2, 4), (7, 2, 4), (7, 2, 4)),
    op("einsum", lambda x, y: ops.einsum("bij,bkj->bik", x, y), SEQUENCE, (5, 3)),
    op("expand_dims", lambda x: ops.expand_dims(x, 1)),
    op("extract_sequences", lambda x: ops.extract_sequences(x, 4, 2), (12,)),
    op("flip", lambda x: ops.flip(x, axis=1)),
    op("full_like", lambda x: x + ops.full_like(x, 2)),
    op("inv", lambda x: ops.inv(x @ ops.transpose(x, (0, 2, 1)) + ops.eye(3)), (3, 3)),
    op("isnan", lambda x: ops.isnan(ops.sqrt(x))),
    op("linspace", lambda x, y: ops.linspace(x, y, 5, axis=1), ROW, ROW),
    op("logical_and", lambda x, y: ops.logical_and(x > 0, y > 0), ROW, ROW),
    op("logical_or", lambda x, y: ops.logical_or(x > 0, y > 0), ROW, ROW),
    op("logical_not", lambda x: ops.logical_not(x > 0)),
    op("matmul", ops.matmul, SEQUENCE, (3, 4)),
    op("max_pool", lambda x: ops.max_pool(x, 3, 2, padding="same"), IMAGE),
    op("meshgrid", lambda x: x[:, None, :] * ops.meshgrid(ops.arange(6.0), ops.arange(3.0))[1]),
    op("moments", lambda x: ops.moments(x, axes=[1]), SEQUENCE),
    op("moveaxis", lambda x: ops.moveaxis(x, 1, -1), IMAGE),
    op("nonzero", lambda x: x + ops.cast(ops.sum(ops.nonzero(x > 0)[1]), "float32")),
    op("normalize", lambda x: ops.normalize(x, axis=-1)),
    op("one_hot", lambda x: ops.one_hot(x, 10), dtype="int32"),
    op("ones", lambda x: x + ops.ones((6,))),
    op("ones_like", lambda x: x + ops.ones_like(x)),
    op("pad", lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 0)), mode="reflect"), SEQUENCE),
    op("repeat", lambda x: ops.repeat(x, 2, axis=1)),
    op("reshape", lambda x: ops.reshape(x, (-1, 3, 2))),
    op("separable_conv", lambda x: ops.separable_conv(x, constant(3, 3, 3, 2), constant(1, 1, 6, 4)), IMAGE),
    op("shape", lambda x: ops.reshape(x, (ops.shape(x)[0], 2, 3))),
    op("sparsemax", ops.sparsemax, SEQUENCE),
    op("split", lambda x: ops.split(x, [1, 4], axis=1)),
    op("squeeze", lambda x: ops.squeeze(x, 1), (1, 6)),
    op("stack", lambda x, y: ops.stack([x, y], axis=1), ROW, ROW),
    op("stft", lambda x: ops.stft(x, 16, 8, 16), (64,)),
    op("swapaxes", lambda x: ops.swapaxes(x, 1, 2), SEQUENCE),
    op("take", lambda x: ops.take(x, [2, 0, 5], axis=1)),
    op("tensordot", lambda x: ops.tensordot(x, constant(3, 4), axes=1), SEQUENCE),
    op("threshold", lambda x: ops.threshold(x, 0.5, -1.0)),
    op("tile", lambda x: ops.tile(x, (1, 2))),
    op("transpose", lambda x: ops.transpose(x, (0, 2, 1)), SEQUENCE),
    op("vectorized_map", lambda x: ops.vectorized_map(lambda row: row / ops.sum(ops.abs(row)), x)),
    op("where", lambda x, y: ops.where(x > 0, x, y), ROW, ROW),
    op("zeros", lambda x: ops.concatenate([x, ops.zeros((ops.shape(x)[0], 2))], axis=1)),
    op("zeros_like", lambda x: ops.concatenate([x, ops.zeros_like(x)], axis=1)),
    op(
        "image.affine_transform",
        lambda x: ops.image.affine_transform(x, np.float32([1, 0.2, 0, 0, 0.9, 1, 0, 0])),
        IMAGE,
    ),
    op("image.elastic_transform", lambda x: ops.image.elastic_transform(x, seed=3), IMAGE),
    op("image.gaussian_blur", ops.image.gaussian_blur, IMAGE),
    op("image.hsv_to_rgb", ops.image.hsv_to_rgb, IMAGE, low=0, high=1),
    op("image.perspective_transform", lambda x: ops.image.perspective_transform(x, *CORNERS), IMAGE),
    op("image.resize", lambda x: ops.image.resize(x, (5, 11)), IMAGE),
    op("image.resize: bicubic", lambda x: ops.image.resize(x, (16, 16), "bicubic"), IMAGE),
    op("image.resize: nearest", lambda x: ops.image.resize(x, (5, 16), "nearest"), IMAGE),
    op("image.rgb_to_grayscale", ops.image.rgb_to_grayscale, IMAGE),
    op("image.rgb_to_hsv", ops.image.rgb_to_hsv, IMAGE, low=0, high=1),
]

CORNERS = np.float32([[0, 0], [0, 7], [7, 0], [7, 7]]), np.float32([[1, 0], [0, 6], [7, 1], [6, 7]])
