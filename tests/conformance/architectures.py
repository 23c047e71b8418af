"""Every architecture of `keras.applications`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import applications

from .case import Case


def architecture_names() -> set[str]:
    return {name for name, value in vars(applications).items() if callable(value)}


#: What each run exports: residual, depthwise, squeezing and layer-normalized networks. The others take a minute and a
#: half together, or half a minute and more alone (InceptionResNetV2, NASNet).
QUICK = "ConvNeXtTiny EfficientNetB0 MobileNetV2 ResNet50"


def architecture(name: str) -> Callable[[], Any]:
    # 75 is the least that each of them takes. The answer is compared before the softmax.
    return lambda: getattr(applications, name)(
        weights=None, input_shape=(75, 75, 3), classes=10, classifier_activation=None
    )


ARCHITECTURES = [
    Case(name, architecture(name), low=-128, high=128, deep=True, long=name not in QUICK.split())
    for name in sorted(architecture_names())
]
