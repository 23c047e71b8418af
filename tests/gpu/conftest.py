from __future__ import annotations

import pytest

from . import models


@pytest.fixture(scope="module", autouse=True)
def _on_a_gpu() -> None:
    """Skips where there is none; TensorFlow must leave room on it, and be the reference in full float32."""
    models.require_gpu()
    import tensorflow as tf

    for device in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(device, enable=True)
    tf.config.experimental.enable_tensor_float_32_execution(False)
