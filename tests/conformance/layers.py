"""Every public class of `keras.layers`."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from typing import Any

import keras
from keras import layers as kl
from keras import ops

from .case import Case, functional
from .ops import Wrapped


def layer_names() -> set[str]:
    """The public classes, each once: `Convolution2D` is `Conv2D`."""
    classes = {name: value for name, value in vars(kl).items() if inspect.isclass(value)}
    return {name for name, value in classes.items() if name == value.__name__ or value.__name__ not in classes}


ROW = (6,)
SEQUENCE = (12, 4)
IMAGE = (8, 8, 3)
SPATIAL = {1: (12, 4), 2: IMAGE, 3: (6, 6, 6, 2)}
#: `ConvLSTM…` take a sequence of those.
FILMS = {n: (3, *shape) for n, shape in SPATIAL.items()}


def layer(name: str, make: Callable[[], Any], *shapes: tuple[int, ...], **options: Any) -> Case:
    """Return a case of one layer, or of a list of layers one after the other."""

    def call(*inputs: Any) -> Any:
        made = make()
        x = list(inputs) if len(inputs) > 1 else inputs[0]
        for one in made if isinstance(made, list) else [made]:
            x = one(x)
        return x

    return functional(name, list(shapes) or [ROW], call, **options)


def pick(name: str, *arguments: Any, **keywords: Any) -> Callable[[], Any]:
    """Return what makes a layer by its name, so that a table can run over names."""
    return lambda: getattr(kl, name)(*arguments, **keywords)


def silenced() -> Any:
    """Zeroes the steps that begin with a negative number, which is what `Masking` looks for."""
    return Wrapped(lambda x: x * ops.cast(x[..., :1] > 0, "float32"))


IDENTITIES = """Dropout AlphaDropout GaussianDropout GaussianNoise SpatialDropout1D SpatialDropout2D
    SpatialDropout3D"""
AUGMENTATIONS = """AugMix CutMix MixUp RandAugment RandomColorJitter RandomElasticTransform RandomErasing RandomFlip
    RandomGaussianBlur RandomGrayscale RandomInvert RandomPerspective RandomShear"""
WITH_FACTOR = """RandomBrightness RandomColorDegeneration RandomContrast RandomHue RandomPosterization RandomRotation
    RandomSaturation RandomSharpness RandomTranslation RandomZoom"""
FACTORS: dict[str, Any] = {
    "RandomHue": {"factor": 0.5},
    "RandomPosterization": {"factor": 4},
    "RandomSaturation": {"factor": 0.5},
    "RandomTranslation": {"height_factor": 0.2, "width_factor": 0.2},
    "RandomZoom": {"height_factor": 0.2},
}

CORE = [
    layer("Activation", lambda: kl.Activation("tanh")),
    layer("ActivityRegularization", lambda: kl.ActivityRegularization(0.1)),
    layer("Dense", lambda: kl.Dense(5, "relu")),
    layer("Dense: of a sequence", lambda: kl.Dense(5), SEQUENCE),
    layer("EinsumDense", lambda: kl.EinsumDense("abc,cde->abde", (None, 2, 5), bias_axes="de"), SEQUENCE),
    layer("Embedding", lambda: kl.Embedding(10, 5), dtype="int32"),
    layer("Embedding: mask_zero", lambda: [kl.Embedding(3, 5, mask_zero=True), kl.LSTM(4)], dtype="int32", high=3),
    layer("Identity", kl.Identity),
    layer("InputLayer", lambda: kl.Dense(5)),
    layer("Lambda", lambda: kl.Lambda(lambda x: x * 2 + 1)),
    layer("Masking", lambda: [silenced(), kl.Masking(), kl.GlobalAveragePooling1D()], SEQUENCE),
    layer("Masking: LSTM", lambda: [silenced(), kl.Masking(), kl.LSTM(4)], SEQUENCE),
    layer("Masking: GRU", lambda: [silenced(), kl.Masking(), kl.GRU(4, return_sequences=True)], SEQUENCE),
    functional("ReversibleEmbedding", [ROW], lambda x: there_and_back(kl.ReversibleEmbedding(10, 5), x), dtype="int32"),
    layer("ELU", kl.ELU),
    layer("LeakyReLU", kl.LeakyReLU),
    layer("PReLU", lambda: kl.PReLU(shared_axes=[1, 2]), IMAGE),
    layer("ReLU", lambda: kl.ReLU(max_value=1.0, negative_slope=0.1, threshold=0.2)),
    layer("Softmax", kl.Softmax),
    layer("TFSMLayer", lambda: from_saved_model()),
]


def from_saved_model() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        keras.Sequential([keras.Input(ROW), kl.Dense(5)]).export(folder, verbose=False)
        return kl.TFSMLayer(folder, call_endpoint="serve")


def there_and_back(embedding: Any, x: Any) -> Any:
    return embedding(embedding(x), reverse=True)


RESHAPING = [
    layer("Flatten", kl.Flatten, IMAGE),
    layer("Permute", lambda: kl.Permute((2, 1)), SEQUENCE),
    layer("RepeatVector", lambda: kl.RepeatVector(3)),
    layer("Reshape", lambda: kl.Reshape((-1, 2))),
    *(layer(f"Cropping{n}D", pick(f"Cropping{n}D", 1), SPATIAL[n]) for n in SPATIAL),
    *(layer(f"UpSampling{n}D", pick(f"UpSampling{n}D", 2), SPATIAL[n]) for n in SPATIAL),
    *(layer(f"ZeroPadding{n}D", pick(f"ZeroPadding{n}D", 1), SPATIAL[n]) for n in SPATIAL),
    layer("UpSampling2D: bilinear", lambda: kl.UpSampling2D(interpolation="bilinear"), IMAGE),
    layer("UpSampling2D: bicubic", lambda: kl.UpSampling2D(interpolation="bicubic"), IMAGE),
]

CONVOLUTIONS = [
    *(layer(f"Conv{n}D", pick(f"Conv{n}D", 4, 3, padding="same"), SPATIAL[n]) for n in SPATIAL),
    *(layer(f"Conv{n}D: dilated", pick(f"Conv{n}D", 4, 2, dilation_rate=2), SPATIAL[n]) for n in SPATIAL),
    *(layer(f"Conv{n}D: strided", pick(f"Conv{n}D", 4, 3, 2, padding="same"), SPATIAL[n]) for n in SPATIAL),
    *(layer(f"Conv{n}DTranspose", pick(f"Conv{n}DTranspose", 4, 3, 2), SPATIAL[n]) for n in SPATIAL),
    layer("Conv1D: causal", lambda: kl.Conv1D(4, 3, padding="causal"), SEQUENCE),
    layer("Conv1D: grouped", lambda: kl.Conv1D(4, 3, groups=2), SEQUENCE),
    layer("Conv2D: grouped", lambda: kl.Conv2D(6, 3, groups=3), IMAGE),
    layer("Conv2D: channels_first", lambda: [kl.Permute((3, 1, 2)), *channels_first()], IMAGE),
    layer("Conv2DTranspose: same", lambda: kl.Conv2DTranspose(4, 3, 2, padding="same"), IMAGE),
    *(layer(f"DepthwiseConv{n}D", pick(f"DepthwiseConv{n}D", 3, depth_multiplier=2), SPATIAL[n]) for n in (1, 2)),
    layer("DepthwiseConv2D: strided", lambda: kl.DepthwiseConv2D(3, 2, padding="same"), IMAGE),
    *(layer(f"SeparableConv{n}D", pick(f"SeparableConv{n}D", 4, 3), SPATIAL[n]) for n in (1, 2)),
]


def channels_first() -> list[Any]:
    """TensorFlow has no such convolution on a CPU: it is pooling and upsampling that the layout is tried on."""
    return [kl.UpSampling2D(data_format="channels_first"), kl.GlobalAveragePooling2D(data_format="channels_first")]


POOLING = [
    *(
        layer(f"{kind}{n}D", pick(f"{kind}{n}D", 2), SPATIAL[n])
        for kind in ("AveragePooling", "MaxPooling")
        for n in SPATIAL
    ),
    *(
        layer(f"{kind}{n}D: same", pick(f"{kind}{n}D", 3, 2, padding="same"), SPATIAL[n])
        for kind in ("AveragePooling", "MaxPooling")
        for n in SPATIAL
    ),
    *(
        layer(f"{kind}{n}D", pick(f"{kind}{n}D", 3), SPATIAL[n])
        for kind in ("AdaptiveAveragePooling", "AdaptiveMaxPooling")
        for n in SPATIAL
    ),
    *(
        layer(f"{kind}{n}D", pick(f"{kind}{n}D"), SPATIAL[n])
        for kind in ("GlobalAveragePooling", "GlobalMaxPooling")
        for n in SPATIAL
    ),
]

MERGING = [
    *(
        layer(name, pick(name), ROW, ROW)
        for name in ["Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply", "Subtract"]
    ),
    layer("Dot", lambda: kl.Dot(axes=2), SEQUENCE, (5, 4)),
    layer("Dot: normalize", lambda: kl.Dot(axes=1, normalize=True), SEQUENCE, (12, 2)),
]

ATTENTION = [
    layer("AdditiveAttention", kl.AdditiveAttention, (5, 4), (7, 4)),
    layer("Attention", lambda: kl.Attention(use_scale=True), (5, 4), (7, 4)),
    functional("GroupQueryAttention", [(5, 8), (7, 8)], lambda x, y: kl.GroupQueryAttention(4, 4, 2)(x, y)),
    functional("MultiHeadAttention", [(5, 8), (7, 8)], lambda x, y: kl.MultiHeadAttention(2, 4)(x, y)),
    functional(
        "MultiHeadAttention: causal", [(5, 8)], lambda x: kl.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)
    ),
    functional("MultiHeadAttention: of images", [(4, 4, 8)], lambda x: kl.MultiHeadAttention(2, 4)(x, x)),
]

NORMALIZING = [
    layer("BatchNormalization", kl.BatchNormalization, IMAGE),
    layer("GroupNormalization", lambda: kl.GroupNormalization(2), SEQUENCE),
    layer("LayerNormalization", kl.LayerNormalization, SEQUENCE),
    layer("RMSNormalization", kl.RMSNormalization, SEQUENCE),
    layer("SpectralNormalization", lambda: kl.SpectralNormalization(kl.Dense(5))),
    layer("UnitNormalization", kl.UnitNormalization),
    layer("Normalization", lambda: kl.Normalization(mean=[1, 2, 3, 4, 5, 6], variance=[1, 2, 3, 4, 5, 6])),
]

RECURRENT = [
    *(layer(name, pick(name, 5), SEQUENCE) for name in ("GRU", "LSTM", "SimpleRNN")),
    *(
        layer(f"{name}: sequences", pick(name, 5, return_sequences=True), SEQUENCE)
        for name in ("GRU", "LSTM", "SimpleRNN")
    ),
    *(layer(f"{name}: state", pick(name, 5, return_state=True), SEQUENCE) for name in ("GRU", "LSTM", "SimpleRNN")),
    *(layer(f"{name}: backwards", pick(name, 5, go_backwards=True), SEQUENCE) for name in ("GRU", "LSTM", "SimpleRNN")),
    *(layer(f"{name}: unrolled", pick(name, 5, unroll=True), SEQUENCE) for name in ("GRU", "LSTM", "SimpleRNN")),
    *(
        layer(f"{name}", lambda n=name: kl.RNN(getattr(kl, n)(5)), SEQUENCE)
        for name in ("GRUCell", "LSTMCell", "SimpleRNNCell")
    ),
    layer("GRU: reset before", lambda: kl.GRU(5, reset_after=False), SEQUENCE),
    layer("RNN", lambda: kl.RNN(kl.GRUCell(5), return_sequences=True), SEQUENCE),
    layer("StackedRNNCells", lambda: kl.RNN(kl.StackedRNNCells([kl.LSTMCell(5), kl.LSTMCell(4)])), SEQUENCE),
    layer("Bidirectional", lambda: kl.Bidirectional(kl.LSTM(5, return_sequences=True)), SEQUENCE),
    layer("Bidirectional: sum", lambda: kl.Bidirectional(kl.GRU(5), merge_mode="sum"), SEQUENCE),
    layer("TimeDistributed", lambda: kl.TimeDistributed(kl.Conv2D(4, 3)), FILMS[2]),
    *(layer(f"ConvLSTM{n}D", pick(f"ConvLSTM{n}D", 4, 3, padding="same"), FILMS[n]) for n in SPATIAL),
]

PREPROCESSING = [
    *(
        layer(name, pick(name, 0.5), shape)
        for name, shape in zip(IDENTITIES.split(), [ROW] * 4 + list(SPATIAL.values()), strict=True)
    ),
    *(layer(name, pick(name), IMAGE, low=0, high=255) for name in AUGMENTATIONS.split()),
    *(
        layer(name, pick(name, **FACTORS.get(name, {"factor": 0.2})), IMAGE, low=0, high=255)
        for name in WITH_FACTOR.split()
    ),
    layer("RandomCrop", lambda: kl.RandomCrop(5, 6), IMAGE),
    layer("AutoContrast", kl.AutoContrast, IMAGE, low=20, high=200),
    layer("CenterCrop", lambda: kl.CenterCrop(5, 6), IMAGE),
    layer(
        "ContrastLimitedAdaptiveHistogramEqualization",
        lambda: kl.ContrastLimitedAdaptiveHistogramEqualization(tile_grid_size=(2, 2)),
        IMAGE,
        low=20,
        high=200,
    ),
    layer("Equalization", lambda: inside(kl.Equalization()), IMAGE, low=20, high=200),
    layer("Solarization", lambda: kl.Solarization(0.1, 0.4), IMAGE, low=0, high=255),
    layer("Rescaling", lambda: kl.Rescaling(0.5, 1)),
    layer("Resizing", lambda: kl.Resizing(5, 11), IMAGE),
    layer("Resizing: cropped", lambda: kl.Resizing(4, 6, crop_to_aspect_ratio=True), IMAGE),
    layer("Pipeline", lambda: kl.Pipeline([kl.Rescaling(0.5), kl.CenterCrop(5, 6)]), IMAGE),
    layer("CategoryEncoding", lambda: kl.CategoryEncoding(10), dtype="int32"),
    layer("CategoryEncoding: one_hot", lambda: kl.CategoryEncoding(10, "one_hot"), (1,), dtype="int32"),
    layer("CategoryEncoding: count", lambda: kl.CategoryEncoding(10, "count"), dtype="int32"),
    layer("Discretization", lambda: kl.Discretization([-1.0, 0.0, 0.5])),
    layer("Discretization: one_hot", lambda: kl.Discretization([-1.0, 0.0, 0.5], output_mode="one_hot"), (1,)),
    layer("IntegerLookup", lambda: kl.IntegerLookup(vocabulary=[1, 3, 5, 7]), dtype="int64"),
    layer(
        "IntegerLookup: one_hot",
        lambda: kl.IntegerLookup(vocabulary=[1, 3, 5, 7], output_mode="one_hot"),
        (1,),
        dtype="int64",
    ),
    functional("MaxNumBoundingBoxes", [IMAGE, (5, 4), (5,)], lambda x, boxes, labels: boxed(x, boxes, labels)),
    layer("MelSpectrogram", lambda: kl.MelSpectrogram(64, 32, num_mel_bins=8), (256,)),
    layer("STFTSpectrogram", lambda: kl.STFTSpectrogram("log", 32, 16), (128, 1)),
]


def inside(inner: Any) -> Any:
    """Wrap a layer that Keras cannot put into a Functional model, because it returns its symbolic input itself."""
    wrapped = Wrapped(inner)
    wrapped.built = inner.built = True
    return wrapped


def boxed(images: Any, boxes: Any, labels: Any) -> Any:
    bounding = {"boxes": boxes, "labels": labels}
    return kl.MaxNumBoundingBoxes(3, bounding_box_format="xyxy")({"images": images, "bounding_boxes": bounding})


LAYERS = [
    *CORE,
    *RESHAPING,
    *CONVOLUTIONS,
    *POOLING,
    *MERGING,
    *ATTENTION,
    *NORMALIZING,
    *RECURRENT,
    *PREPROCESSING,
]
