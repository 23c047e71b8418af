"""A case or more for each public class of `keras.layers`, or why there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import layers

from .check import Case, Input

IMAGE, SEQUENCE, VOLUME, VECTOR = Input((8, 8, 4)), Input((6, 4)), Input((6, 6, 6, 4)), Input((6,))
IDS = Input((5,), "int32", 7)
FRAMES = Input((3, 6, 6, 2))

#: Classes that no engine runs, and why. `doctor` says the same of them.
NOT_EXPORTABLE = {
    "FlaxLayer": "runs on JAX",
    "JaxLayer": "runs on JAX",
    "TorchModuleWrapper": "runs on PyTorch",
    "HashedCrossing": "takes strings, or hashes: runs on the CPU in front of the engine",
    "Hashing": "takes strings, or hashes: runs on the CPU in front of the engine",
    "IntegerLookup": "looks words up: runs on the CPU in front of the engine",
    "StringLookup": "takes strings: runs on the CPU in front of the engine",
    "TextVectorization": "takes strings: runs on the CPU in front of the engine",
    "TFSMLayer": "wraps a SavedModel, of which there is none here",
    "InputLayer": "is in each case",
    "Layer": "is abstract",
    "Wrapper": "is abstract",
    "Equalization": "Keras makes no Functional model of it ('is part of a cycle')",
    "MaxNumBoundingBoxes": "works on boxes of training data",
}

#: Cases that fail today, by class, and why.
NOT_YET: dict[str, str] = {}


def _of(name: str, *arguments: Any, **options: Any) -> Callable[..., Any]:
    return lambda *x: getattr(layers, name)(*arguments, **options)(*x)


def _merged(name: str, **options: Any) -> Callable[..., Any]:
    return lambda x: getattr(layers, name)(**options)([x, 0.5 - x * x])


def _cell(name: str) -> Callable[..., Any]:
    return lambda x: layers.RNN(getattr(layers, name)(3))(x)


CASES: dict[str, list[Case]] = {}


def _add(name: str, given: Input, *builds: Callable[..., Any], lively: bool = True) -> None:
    CASES.setdefault(name, []).extend(Case([given], build, lively) for build in builds)


def _fill() -> None:
    by_rank = {1: SEQUENCE, 2: IMAGE, 3: VOLUME}
    for rank, given in by_rank.items():
        d = f"{rank}D"
        for kind in ("Average", "Max"):
            _add(f"{kind}Pooling{d}", given, _of(f"{kind}Pooling{d}", 2),
                 _of(f"{kind}Pooling{d}", 3, strides=2, padding="same"))  # fmt: skip
            _add(f"Global{kind}Pooling{d}", given, *(_of(f"Global{kind}Pooling{d}", keepdims=k) for k in (False, True)))
            _add(f"Adaptive{kind}Pooling{d}", given, _of(f"Adaptive{kind}Pooling{d}", 3))
        _add(f"Conv{d}", given, _of(f"Conv{d}", 3, 3), _of(f"Conv{d}", 4, 2, groups=2, padding="same"),
             _of(f"Conv{d}", 3, 3, dilation_rate=2, padding="same"), _of(f"Conv{d}", 3, 3, strides=2))  # fmt: skip
        _add(f"Conv{d}Transpose", given, _of(f"Conv{d}Transpose", 3, 3),
             _of(f"Conv{d}Transpose", 3, 3, strides=2, padding="same"))  # fmt: skip
        _add(f"Cropping{d}", given, _of(f"Cropping{d}", 1))
        _add(f"ZeroPadding{d}", given, _of(f"ZeroPadding{d}", 1))
        _add(f"UpSampling{d}", given, _of(f"UpSampling{d}"))
        _add(f"SpatialDropout{d}", given, _of(f"SpatialDropout{d}", 0.5))
    _add("Conv1D", SEQUENCE, _of("Conv1D", 3, 2, padding="causal", dilation_rate=2))
    _add("Conv2D", Input((4, 8, 8)), _of("Conv2D", 3, 3, data_format="channels_first", kernel_initializer="ones"))
    _add("UpSampling2D", IMAGE, _of("UpSampling2D", interpolation="bilinear"),
         _of("UpSampling2D", interpolation="bicubic"))  # fmt: skip
    for rank, given in ((1, SEQUENCE), (2, IMAGE)):
        _add(f"DepthwiseConv{rank}D", given, _of(f"DepthwiseConv{rank}D", 3, depth_multiplier=2, padding="same"))
        _add(f"SeparableConv{rank}D", given, _of(f"SeparableConv{rank}D", 3, 3, depth_multiplier=2))
    for rank, given in ((1, Input((3, 6, 2))), (2, FRAMES), (3, Input((2, 4, 4, 4, 2)))):
        _add(f"ConvLSTM{rank}D", given, _of(f"ConvLSTM{rank}D", 3, 3))
    for name in ("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract", "Concatenate"):
        _add(name, SEQUENCE, _merged(name))
    _add("Dot", SEQUENCE, _merged("Dot", axes=2), _merged("Dot", axes=1, normalize=True))
    for name in ("GRU", "LSTM", "SimpleRNN"):
        _add(name, SEQUENCE, _of(name, 3), _of(name, 3, return_sequences=True, go_backwards=True),
             lambda x, name=name: _of(name, 3, return_sequences=True)(layers.Masking()(x)))  # fmt: skip
        _add(f"{name}Cell", SEQUENCE, _cell(f"{name}Cell"))
    _add("LSTM", SEQUENCE, _of("LSTM", 3, activation="selu"))
    _add("RNN", SEQUENCE, _cell("LSTMCell"))
    _add("StackedRNNCells", SEQUENCE, lambda x: layers.RNN([layers.LSTMCell(3), layers.GRUCell(4)])(x))
    _add("Bidirectional", SEQUENCE, lambda x: layers.Bidirectional(layers.GRU(3, return_sequences=True))(x))
    _add("TimeDistributed", FRAMES, lambda x: layers.TimeDistributed(layers.Conv2D(3, 3))(x))
    _add("MultiHeadAttention", SEQUENCE, lambda x: layers.MultiHeadAttention(2, 3)(x, x),
         lambda x: layers.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True))  # fmt: skip
    _add("MultiHeadAttention", Input((None, 4)), lambda x: layers.MultiHeadAttention(2, 3)(x, x))
    _add("GroupQueryAttention", SEQUENCE, lambda x: layers.GroupQueryAttention(2, 4, 2)(x, x))
    _add("Attention", SEQUENCE, lambda x: layers.Attention(use_scale=True)([x, x]))
    _add("AdditiveAttention", SEQUENCE, lambda x: layers.AdditiveAttention()([x, x]))
    for name in ("BatchNormalization", "LayerNormalization", "RMSNormalization", "UnitNormalization"):
        _add(name, IMAGE, _of(name))
    _add("LayerNormalization", IMAGE, _of("LayerNormalization", axis=[1, 2, 3]), _of("LayerNormalization", axis=1))
    _add("BatchNormalization", IMAGE, _of("BatchNormalization", axis=1))
    _add("GroupNormalization", IMAGE, _of("GroupNormalization", 2))
    _add("Normalization", IMAGE, _of("Normalization", mean=[0.0, 1, 2, 3], variance=[1.0, 2, 3, 4]))
    _add("SpectralNormalization", IMAGE, lambda x: layers.SpectralNormalization(layers.Conv2D(3, 3))(x))
    _add("Dense", VECTOR, _of("Dense", 3, activation="gelu"))
    _add("Dense", Input((None, 4)), _of("Dense", 3))
    _add("EinsumDense", SEQUENCE, _of("EinsumDense", "abc,cd->abd", output_shape=(None, 5), bias_axes="d"),
         _of("EinsumDense", "abc,cde->aebd", output_shape=(2, None, 5)))  # fmt: skip
    _add("Embedding", IDS, _of("Embedding", 7, 3))
    _add("ReversibleEmbedding", IDS, lambda x: (e := layers.ReversibleEmbedding(7, 3))(e(x), reverse=True))
    _add("CategoryEncoding", IDS, *(_of("CategoryEncoding", 7, output_mode=m) for m in ("multi_hot", "count")),
         lively=False)  # fmt: skip
    _add("CategoryEncoding", Input((1,), "int32", 7), _of("CategoryEncoding", 7, output_mode="one_hot"), lively=False)
    _add("Discretization", SEQUENCE, _of("Discretization", [-1.0, 0.0, 1.0]), lively=False)
    _add("MelSpectrogram", Input((256,)), _of("MelSpectrogram", fft_length=64, sequence_stride=32, num_mel_bins=8,
                                               sampling_rate=8000))  # fmt: skip
    _add("STFTSpectrogram", Input((256, 1)), _of("STFTSpectrogram", mode="log", frame_length=32, frame_step=16,
                                                  fft_length=32))  # fmt: skip
    for name in ("ELU", "LeakyReLU", "PReLU", "ReLU", "Softmax", "Identity", "ActivityRegularization"):
        _add(name, SEQUENCE, _of(name))
    _add("Softmax", SEQUENCE, _of("Softmax", axis=1))
    _add("ReLU", SEQUENCE, _of("ReLU", max_value=1.0, negative_slope=0.1, threshold=0.2))
    _add("Activation", SEQUENCE, _of("Activation", "mish"))
    _add("Lambda", SEQUENCE, _of("Lambda", lambda x: x * x))
    for name in ("AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise"):
        _add(name, SEQUENCE, _of(name, 0.5))
    _add("Flatten", IMAGE, _of("Flatten"))
    _add("Masking", SEQUENCE, _of("Masking"))
    _add("Permute", IMAGE, _of("Permute", (3, 1, 2)))
    _add("RepeatVector", VECTOR, _of("RepeatVector", 3))
    _add("Reshape", SEQUENCE, _of("Reshape", (-1, 3)))
    _add("CenterCrop", IMAGE, _of("CenterCrop", 5, 4))
    _add("Rescaling", IMAGE, _of("Rescaling", 1 / 255, 0.5))
    _add("Rescaling", Input((8, 8, 4), "uint8", 256), _of("Rescaling", 1 / 255))
    _add("Resizing", IMAGE, _of("Resizing", 5, 6), _of("Resizing", 16, 11, interpolation="nearest"),
         _of("Resizing", 16, 16, interpolation="bicubic"),
         _of("Resizing", 5, 6, crop_to_aspect_ratio=True))  # fmt: skip
    _add("Pipeline", IMAGE, lambda x: layers.Pipeline([layers.Rescaling(2.0), layers.CenterCrop(4, 4)])(x))
    _fill_augmentation()


def _fill_augmentation() -> None:
    rgb = Input((8, 8, 3))
    with_options: dict[str, dict[str, Any]] = {
        "RandomBrightness": {"factor": 0.2},
        "RandomColorDegeneration": {"factor": 0.5},
        "RandomContrast": {"factor": 0.2},
        "RandomCrop": {"height": 6, "width": 6},
        "RandomHue": {"factor": 0.2},
        "RandomPosterization": {"factor": 4},
        "RandomRotation": {"factor": 0.2},
        "RandomSaturation": {"factor": 0.2},
        "RandomSharpness": {"factor": 0.2},
        "RandomTranslation": {"height_factor": 0.2, "width_factor": 0.2},
        "RandomZoom": {"height_factor": 0.2},
    }
    plain = (
        "AugMix AutoContrast ContrastLimitedAdaptiveHistogramEqualization CutMix MixUp RandAugment "
        "RandomColorJitter RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale "
        "RandomInvert RandomPerspective RandomShear Solarization"
    )
    for name in (*with_options, *plain.split()):
        _add(name, rgb, _of(name, **with_options.get(name, {})))


_fill()
