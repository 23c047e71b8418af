"""What the tests of `.ktrt` files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras_trt

PACKAGE = Path(keras_trt.__file__).parent


def load(path: Any, **options: Any) -> keras_trt.TRTModel:
    return keras_trt.load(path, **{"backend": "onnxruntime", "verbose": 0, **options})
