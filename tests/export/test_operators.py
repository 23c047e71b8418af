"""TensorFlow's operators that tf2onnx has no handler for, or no good one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_trt.errors import ExportError
from keras_trt.export import export

from .. import zoo


class Function(layers.Layer):
    """A function as a layer."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self._function = function

    def call(self, x: Any) -> Any:
        return self._function(x)


def compare(layer: Any, x: np.ndarray[Any, Any], limit: float = 1e-5) -> Counter[str]:
    """Compare an exported layer with Keras on two sizes of a batch, and return the operators of its graph."""
    given = keras.Input(x.shape[1:], dtype=x.dtype.name)
    model = keras.Model(given, layer(given))
    result = export(model)
    session = onnxruntime.InferenceSession(result.onnx, providers=["CPUExecutionProvider"])
    for rows in (1, len(x)):
        wanted = keras.tree.flatten(model.predict_on_batch(x[:rows]))
        got = session.run(None, {result.signature.inputs[0].name: x[:rows]})
        for one, two in zip(wanted, got, strict=True):
            assert (one.shape, one.dtype) == (two.shape, two.dtype)
            if one.dtype.kind == "f":
                assert zoo.relative_l2(one, two) < limit
                assert rows == 1 or zoo.relative_l2(one, np.roll(one, 1, axis=0)) > 1e-2
            else:
                np.testing.assert_array_equal(one, two)
    return Counter(node.op_type for node in onnx.load_from_string(result.onnx).graph.node)


def random(*shape: int) -> Any:
    return np.random.default_rng(1).standard_normal(shape).astype("float32")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ops.rfft(x),
        lambda x: ops.rfft(x, fft_length=10),
        lambda x: ops.rfft(x, fft_length=24),
        lambda x: ops.fft((x, ops.flip(x, -1))),
        lambda x: ops.fft2((ops.reshape(x, (-1, 2, 8)), ops.flip(ops.reshape(x, (-1, 2, 8)), -1))),
        lambda x: ops.ifft2((ops.reshape(x, (-1, 2, 8)), ops.flip(ops.reshape(x, (-1, 2, 8)), -1))),
        lambda x: ops.irfft(ops.rfft(x)),
        lambda x: ops.irfft((x, 0.5 * x), fft_length=9),
        lambda x: ops.irfft((x, 0.5 * x), fft_length=30),
        lambda x: ops.stft(x, sequence_length=8, sequence_stride=4, fft_length=8),
    ],
    ids=["rfft", "cut", "padded", "fft", "fft2", "ifft2", "there and back", "odd", "whole", "stft"],
)
def test_fourier(function: Any) -> None:
    compare(Function(function), random(4, 16))


@pytest.mark.parametrize("function", [ops.fft, ops.fft2])
def test_a_transform_of_open_size(function: Any) -> None:
    x = keras.Input((None, None) if function is ops.fft2 else (3, None))
    model = keras.Model(x, Function(lambda x: function((x, 0.5 * x)))(x))
    result = export(model)
    session = onnxruntime.InferenceSession(result.onnx, providers=["CPUExecutionProvider"])
    for size in (5, 130):
        given = random(2, 3, size)
        for wanted, got in zip(
            model.predict_on_batch(given), session.run(None, {result.signature.inputs[0].name: given}), strict=True
        ):
            assert zoo.relative_l2(wanted, got) < 1e-5


def test_spectra_of_audio() -> None:
    audio = random(3, 256)
    found = compare(layers.MelSpectrogram(fft_length=64, sequence_stride=32, num_mel_bins=8, sampling_rate=8000), audio)
    assert found["MatMul"] == 3  # real part, imaginary part, mel filters
    compare(layers.STFTSpectrogram(mode="log", frame_length=32, frame_step=16, fft_length=32), audio[..., None])


@pytest.mark.parametrize("output_mode", ["int", "one_hot", "multi_hot", "count"])
def test_discretization(output_mode: str) -> None:
    x = random(5, 4)
    x[0] = [-1.0, 0.0, 0.5, np.inf]  # on the boundaries
    layer = layers.Discretization([-1.0, 0.0, 0.5], output_mode=output_mode)
    if output_mode == "one_hot":
        x = x[:, :1]
    given = keras.Input(x.shape[1:])
    model = keras.Model(given, layer(given))
    result = export(model)
    session = onnxruntime.InferenceSession(result.onnx, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {result.signature.inputs[0].name: x})
    np.testing.assert_array_equal(got, model.predict_on_batch(x))


@pytest.mark.parametrize(
    "layer",
    [layers.RandomFlip(), layers.RandomRotation(0.2), layers.RandomHue(0.2), layers.RandomGrayscale(), layers.MixUp()],
    ids=lambda layer: layer.name,
)
def test_augmentation_is_the_identity(layer: Any) -> None:
    assert compare(layer, random(3, 8, 8, 3)) in (Counter(), Counter(Identity=1))


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("options", [{}, {"crop_to_aspect_ratio": True}, {"pad_to_aspect_ratio": True}])
@pytest.mark.parametrize(("height", "width"), [(5, 6), (16, 11)])
def test_resizing(height: int, width: int, options: dict[str, bool], interpolation: str) -> None:
    compare(layers.Resizing(height, width, interpolation=interpolation, **options), random(3, 8, 9, 2))


def test_gelu_has_the_form_that_tensorrt_fuses() -> None:
    found = compare(layers.Activation("gelu"), random(3, 8))
    assert found == Counter(Mul=3, Add=1, Erf=1)


def test_argmax_takes_negative_zeros_for_smaller() -> None:
    x = random(4, 6)
    x[0] = [-1.0, -0.0, 0.0, -0.0, -2.0, 0.0]
    compare(Function(lambda x: ops.argmax(x, axis=-1)), x)


def test_a_reshape_with_two_open_sizes() -> None:
    compare(Function(lambda x: ops.reshape(x, (ops.shape(x)[0], -1, 5))), random(3, 4, 3, 5))


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
@pytest.mark.parametrize("divisor", [3, -3])
def test_floor_division(dtype: str, divisor: int) -> None:
    x = np.arange(-8, 8).reshape(4, 4).astype(dtype)
    compare(Function(lambda x: ops.mod(x, divisor)), x)
    compare(Function(lambda x: ops.floor_divide(x, divisor)), x)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8"])
@pytest.mark.parametrize("open_count", [False, True])
def test_shifts(dtype: str, open_count: bool) -> None:
    """The lowest and the highest number, and counts that no type has bits for, too."""
    limits = np.iinfo(dtype)
    x = np.concatenate([np.arange(-9 if limits.min else 0, 11), [limits.min, limits.max, 77]]).astype(dtype)[:, None]
    counts = np.arange(8 if dtype == "uint8" else 70, dtype=dtype)

    def both(x: Any) -> Any:
        count = counts + (x - x) if open_count else counts
        return [ops.bitwise_left_shift(x, count), ops.bitwise_right_shift(x, count)]

    compare(Function(both), x)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot_of_numbers_out_of_range(axis: int) -> None:
    x = np.array([[0, 3, -1], [4, 1, -5], [2, 2, 100]], "int32")
    compare(Function(lambda x: ops.one_hot(x, 4, axis=axis)), x)
    compare(Function(lambda x: ops.one_hot(x, 4, axis=axis, dtype="int32")), x)


@pytest.mark.parametrize("name", ["log1p", "expm1"])
def test_near_zero(name: str) -> None:
    x = random(5, 8) ** 2 * np.float32(10.0) ** np.arange(-20, 20, 5, dtype="float32")
    x[0, :3], x[1] = [-1.0, np.inf, -0.0], -x[1] / (1 + x[1])
    result = export(keras.Sequential([keras.Input((8,)), Function(getattr(ops, name))]))
    session = onnxruntime.InferenceSession(result.onnx, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {result.signature.inputs[0].name: x})
    with np.errstate(divide="ignore", over="ignore"):
        wanted = getattr(np, name)(x.astype("float64")).astype("float32")
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("equation", "shape"),
    [("...ab,...bc->...ac", (1, 4, 5)), ("...ab,...cb->c...a", (1, 5, 4)), ("...ab,...bcd->...acd", (1, 4, 5, 2))],
)
def test_an_einsum_that_broadcasts_the_batch(equation: str, shape: tuple[int, ...]) -> None:
    other = random(*shape)

    class Whole(layers.Layer):
        def call(self, x: Any) -> Any:
            product = ops.einsum(equation, x, other)
            return ops.transpose(product, (1, 0, 2)) if equation.endswith("c...a") else product

    compare(Whole(), random(3, 3, 4))


@pytest.mark.parametrize("axis", [-1, [1, 2], [-1, -2], [2, 1], 1])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_normalization(axis: Any, affine: bool) -> None:
    layer = layers.LayerNormalization(axis=axis, center=affine, scale=affine)
    layer.build((None, 4, 4))
    zoo.lively(layer)
    found = compare(layer, random(3, 4, 4))
    assert found["LayerNormalization"] == (axis != 1)


def test_layer_normalization_over_open_sizes() -> None:
    x = keras.Input((None, 4))
    model = keras.Model(x, layers.LayerNormalization(axis=[1, 2], center=False, scale=False)(x))
    result = export(model)
    session = onnxruntime.InferenceSession(result.onnx, providers=["CPUExecutionProvider"])
    given = random(3, 5, 4)
    (got,) = session.run(None, {result.signature.inputs[0].name: given})
    assert zoo.relative_l2(model.predict_on_batch(given), got) < 1e-5


def test_a_reduction_over_no_axis() -> None:
    compare(Function(lambda x: ops.sum(ops.transpose(x, (0, 2, 1)), axis=())), random(3, 4, 5))


def test_constants_that_onnx_runtime_cannot_compute_are_told_as_an_export_error() -> None:
    class Outside(layers.Layer):
        def build(self, _: Any) -> None:
            self.w = self.add_weight(shape=(3,))

        def call(self, x: Any) -> Any:
            return x + ops.take(self.w, np.array([7], "int32"))

    with pytest.raises(ExportError, match="simplified"):
        export(keras.Sequential([keras.Input((3,)), Outside()]))


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("function", [ops.sort, ops.argsort, lambda x: ops.top_k(x, 2)])
def test_integers_are_sorted_by_all_their_digits(function: Callable[[Any], Any], dtype: str) -> None:
    x = np.random.default_rng(1).permuted(np.tile(np.arange(6), (5, 1)), axis=1) + 2**24
    compare(Function(function), x.astype(dtype))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ops.where(x > 0, ops.log(x), 0.0),
        lambda x: ops.where(x > 0, ops.cast(100 * x, "int32"), -1),
        lambda x: ops.where(x > 0, x > 1, x < -1),
        lambda x: ops.where(x[:, :1] > 0, ops.sqrt(x[:, :1]), x),
        lambda x: tf.compat.v1.where(x[:, 0] > 0, ops.log(ops.abs(x)), x),
    ],
    ids=["log", "int32", "bool", "broadcast", "rows"],
)
def test_what_is_not_chosen_does_not_show(function: Callable[[Any], Any]) -> None:
    x = random(6, 5)
    x[2, 0], x[2, 3] = -1.0, 0.0  # not chosen, and its logarithm is infinite
    found = compare(Function(function), x)
    assert found["Where"] + found["Or"] == 1
