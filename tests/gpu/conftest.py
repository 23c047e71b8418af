from __future__ import annotations

import pytest

from . import models


@pytest.fixture(scope="module", autouse=True)
def _on_a_gpu() -> None:
    """Skips where there is none; TensorFlow must be the reference in full float32."""
    models.require_gpu()
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)
