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
from keras import layers, ops

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
        lambda x: ops.irfft(ops.rfft(x)),
        lambda x: ops.irfft((x, 0.5 * x), fft_length=9),
        lambda x: ops.irfft((x, 0.5 * x), fft_length=30),
        lambda x: ops.stft(x, sequence_length=8, sequence_stride=4, fft_length=8),
    ],
    ids=["rfft", "cut", "padded", "fft", "there and back", "odd", "whole", "stft"],
)
def test_fourier(function: Any) -> None:
    compare(Function(function), random(4, 16))


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
