"""Convolutions and biases along every axis, in sizes that tf2onnx takes for others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from keras_trt.backends import BuildSpec
from keras_trt.backends.tensorrt.builder import PlanBuilder
from keras_trt.backends.tensorrt.flavor import flavor
from keras_trt.export import export
from keras_trt.specs import OptimizationProfile, ShapeRange

from .. import zoo
from ..models import accelerate, keras, kl, ops, rows_differ, same

FIRST = {"data_format": "channels_first"}


class Plus(kl.Layer):
    """Adds a weight of a shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self._shape = shape

    def build(self, _: Any) -> None:
        self.b = self.add_weight(shape=self._shape, name="b")

    def call(self, x: Any) -> Any:
        return ops.add(x, self.b)


def compare(model: Any, sizes: tuple[int, ...] = (5,)) -> None:
    """Hold an engine against Keras, and let TensorRT-RTX build it; open axes have each of `sizes`."""
    zoo.lively(model)
    (given,) = model.inputs
    shapes = [tuple(size if axis is None else axis for axis in given.shape[1:]) for size in sizes]
    largest, smallest = shapes[0], shapes[-1]
    profile = OptimizationProfile({given.name: ShapeRange((1, *smallest), (2, *largest), (8, *largest))})
    with accelerate(model, fallback="raise", profiles=profile) as fast:
        for shape in shapes:
            x = np.random.default_rng(1).standard_normal((3, *shape)).astype("float32")
            expected = model.predict(x, verbose=0)
            rows_differ(expected)
            same(expected, fast.predict(x, verbose=0), 1e-4)
    assert PlanBuilder(flavor("tensorrt_rtx")).build(
        export(model).onnx, BuildSpec("fp32", profile, 0), for_this_gpu=False
    )


@pytest.mark.parametrize(
    "layer",
    [
        lambda: kl.DepthwiseConv2D(3, padding="same", depth_multiplier=2, **FIRST),
        lambda: kl.SeparableConv2D(4, 3, strides=2, **FIRST),
        lambda: kl.Conv2D(4, 3, strides=2, padding="same", **FIRST),
        lambda: kl.Conv2DTranspose(10, 3, **FIRST),
    ],
    ids=["depthwise", "separable", "as many columns as channels", "transposed"],
)
def test_a_bias_is_added_where_keras_adds_it(layer: Any) -> None:
    x = keras.Input((3, 8, 8), name="x")
    compare(keras.Model(x, layer()(x)))


def test_a_bias_of_rows_is_no_bias_of_a_convolution() -> None:
    x = keras.Input((8, 8, 3), name="x")
    compare(keras.Model(x, Plus(1, 10, 1, 1)(kl.Conv2DTranspose(4, 3, use_bias=False)(x))))


@pytest.mark.parametrize(
    ("kernel", "strides", "padding"), [(1, 3, "valid"), (1, 3, "same"), (3, 1, "same"), (3, 2, "same")]
)
@pytest.mark.parametrize("is_open", [False, True], ids=["fixed", "open"])
@pytest.mark.parametrize("kind", ["1D", "2D", "2D, channels first"])
def test_transposed_convolutions_of_all_sizes(
    kind: str, is_open: bool, kernel: int, strides: int, padding: str
) -> None:
    sizes, first = (None if is_open else 5,) * int(kind[0]), "first" in kind
    x = keras.Input((3, *sizes) if first else (*sizes, 3), name="x")
    layer = getattr(kl, f"Conv{kind[:2]}Transpose")
    made = layer(4, kernel, strides=strides, padding=padding, **(FIRST if first else {}))
    compare(keras.Model(x, made(x)), (7, 5, 4) if is_open else (5,))


def test_transposed_convolutions_with_output_padding() -> None:
    x = keras.Input((5, 3), name="x")
    compare(keras.Model(x, kl.Conv1DTranspose(4, 2, strides=3, output_padding=2)(x)))
    x = keras.Input((5, 4, 4, 3), name="x")
    compare(keras.Model(x, kl.Conv3DTranspose(4, 3, strides=2, padding="same", output_padding=0)(x)))
