"""What the tests of the callbacks share: a network, its data, and one that has no engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import keras_trt

from ..models import floats, keras, kl, tf

#: Built in a thread, which takes the less time, but where it is the process that is tested.
QUIET: dict[str, Any] = {"backend": "onnxruntime", "cache": None, "batch_sizes": (1, 8, 32), "build": "thread"}
X, Y = floats(4)(60), floats(3)(60)[::-1] * 0.3


def network(**settings: Any) -> Any:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(8, activation="tanh"), kl.BatchNormalization(), kl.Dense(3)])
    model.compile(**{"optimizer": "adam", "loss": "mse", "metrics": ["mae"], **settings})
    return model


def loaded(path: Path) -> keras_trt.TRTModel:
    return keras_trt.load(path, backend="onnxruntime", cache=None, verbose=0)


class Weights(keras.callbacks.Callback):
    """Keeps the model's answers at the end of each epoch."""

    def __init__(self, x: Any = X) -> None:
        super().__init__()
        self.x, self.answers = x, list[Any]()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        self.answers.append(np.asarray(self.model(self.x, training=False)))


class NoOnnx(kl.Layer):
    def call(self, x: Any) -> Any:
        return tf.py_function(lambda y: y * 2, [x], tf.float32)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


def hopeless() -> Any:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3), NoOnnx()])
    model.compile("adam", "mse", run_eagerly=True)
    return model
