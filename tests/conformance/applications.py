"""Every architecture of `keras.applications`, made small by its input; the smallest of each family in each run."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from .check import Input

#: Tried in each run of the tests; the others in the long ones.
SHORT = (
    "ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionV3", "MobileNet", "MobileNetV2",
    "MobileNetV3Small", "NASNetMobile", "ResNet50", "ResNet50V2", "VGG16", "Xception",
)  # fmt: skip

_SIZES = {"InceptionResNetV2": 128, "InceptionV3": 128, "Xception": 96, "NASNetMobile": 224, "NASNetLarge": 331}


def names() -> list[str]:
    return sorted(name for name in vars(keras.applications) if name[0].isupper())


def given(name: str) -> Input:
    size = _SIZES.get(name, 64)
    return Input((size, size, 3))


def make(name: str) -> Any:
    """Return a model whose answers depend on its input as those of a trained one do.

    One pass in training mode sets the statistics of each batch normalization to those of its own input; where blocks
    end in a scale (batch normalization before a sum, a layer scale), it is what the initializers make it.
    """
    keras.utils.set_random_seed(0)
    options: dict[str, Any] = {"weights": None, "classifier_activation": None, "input_shape": given(name).shape}
    model = getattr(keras.applications, name)(classes=10, **options)
    normalizations = [one for one in model._flatten_layers() if isinstance(one, keras.layers.BatchNormalization)]
    momenta = [one.momentum for one in normalizations]
    for one in normalizations:
        one.momentum = 0.0
    if normalizations:
        images = 48 if given(name).shape[0] <= 128 else 16  # more where the last feature maps have few places
        model(np.random.default_rng(9).standard_normal((images, *given(name).shape)).astype("float32"), training=True)
    for one, momentum in zip(normalizations, momenta, strict=True):
        one.momentum = momentum
    for layer in model._flatten_layers():
        if type(layer).__name__ == "LayerScale":  # 1e-6 at the start: the blocks would do nothing
            layer.gamma.assign(keras.ops.full_like(layer.gamma, 0.1))
    return model
