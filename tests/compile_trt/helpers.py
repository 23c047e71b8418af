"""What the tests of `model.compile_trt()` share: a network, its data, and a count of what engines run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from keras_trt.runtime import Session

from ..models import floats, keras, kl

QUIET: dict[str, Any] = {"backend": "onnxruntime", "cache": None, "batch_sizes": (1, 8, 32), "verbose": 0}
X, Y = floats(4)(40), floats(3)(40)[::-1]


def network(optimizer: Any = "sgd") -> Any:
    model = keras.Sequential(
        [keras.Input((4,)), kl.Dense(8, activation="tanh"), kl.BatchNormalization(), kl.Dense(3, name="last")]
    )
    if optimizer is not None:
        model.compile(optimizer, "mse", metrics=["mae"])
    return model


def by_keras(model: Any, x: Any = X) -> Any:
    """What the model itself answers now, whatever runs its `predict`."""
    return np.asarray(model(x, training=False))


class Engine:
    """Counts what the engines run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs = 0
        run = Session.run

        def counted(session: Any, *arguments: Any) -> Any:
            self.runs += 1
            return run(session, *arguments)

        monkeypatch.setattr(Session, "run", counted)


def assign(model: Any) -> None:
    model.layers[0].kernel.assign(model.layers[0].kernel * 1.5 + 0.1)
