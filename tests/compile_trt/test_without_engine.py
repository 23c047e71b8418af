"""`compile_trt` where no engine can be had, or not now: bad options, failed builds, batches that it cannot run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt.source import ON_ENGINE

from ..models import CASES, floats, keras, kl, recorded, same, warns_once
from .helpers import QUIET, X, Y, assign, by_keras, network

# numpy 2 says so of TensorFlow's variables when Keras saves them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_an_unbuilt_model_says_so_and_is_left_alone() -> None:
    model = keras.Sequential([kl.Dense(2)])
    with pytest.raises(keras_trt.ExportError, match="has not been built"):
        model.compile_trt(**QUIET)
    assert not set(ON_ENGINE) & vars(model).keys()
    model.compile_trt(**QUIET, sample=X)
    same(by_keras(model), model.predict(X, verbose=0))
    model.layers[0].bias.assign([1, 2])
    same(by_keras(model), model.predict(X, verbose=0))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"colour": "red"}, "Unknown option colour"),
        ({"precision": "fp7"}, "`precision` is one of"),
        ({"on_weight_change": "ignore"}, "`on_weight_change` is one of"),
        ({"check_weights": "never"}, "`check_weights` is one of"),
    ],
)
def test_wrong_options_leave_an_earlier_engine(options: dict[str, Any], error: str) -> None:
    model = network()
    fast = model.compile_trt(**QUIET)
    with pytest.raises((TypeError, ValueError), match=error):
        model.compile_trt(**{**QUIET, **options})
    assert model.predict.of is fast
    assign(model)
    same(by_keras(model), model.predict(X, verbose=0))


def test_a_rebuild_that_fails_raises_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    model.compile_trt(**QUIET)
    assign(model)
    with monkeypatch.context() as patch:

        def fail(*_: Any, **__: Any) -> Any:
            raise keras_trt.BuildError("no memory")

        patch.setattr("keras_trt.compiled.attach.renew", fail)
        for _ in range(2):
            with pytest.raises(keras_trt.BuildError, match="no memory"):
                model.predict(X, verbose=0)
    same(by_keras(model), model.predict(X, verbose=0))


def test_after_a_rebuild_that_ended_with_keras_the_next_change_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    fast = model.compile_trt(**QUIET)
    assign(model)
    with monkeypatch.context() as patch:

        def fail(*_: Any, **__: Any) -> Any:
            raise keras_trt.BuildError("no memory")

        patch.setattr("keras_trt.api.provision", fail)
        with recorded() as records:
            for _ in range(2):
                same(by_keras(model), model.predict(X, verbose=0))
        warns_once(records, "no memory")
    assert fast.backend == "keras"
    assign(model)
    same(by_keras(model), model.predict(X, verbose=0))
    assert fast.backend == "onnxruntime"


def test_where_no_engine_can_be_had_keras_runs() -> None:
    class Doubles(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = kl.Dense(3)

        def call(self, x: Any) -> Any:
            return self.dense(x)

        def predict_step(self, data: Any) -> Any:
            return 2 * super().predict_step(data)

    model = Doubles()
    model(X)
    with recorded() as records:
        model.compile_trt(**QUIET)
        found = model.predict(X, verbose=0)
    warns_once(records, "predict_step")
    same(2 * by_keras(model), found)
    model.dense.bias.assign([1, 2, 3])
    same(2 * by_keras(model), model.predict(X, verbose=0))
    model.uncompile_trt()
    assert not set(ON_ENGINE) & vars(model).keys()


def test_during_fit() -> None:
    model = network()
    found = []

    class Compiles(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            with self.model.compile_trt(**QUIET):
                found.append(np.abs(self.model.predict(X, verbose=0) - by_keras(self.model)).max())

    history = model.fit(X, Y, epochs=2, validation_split=0.2, callbacks=[Compiles()], verbose=0).history
    assert len(history["val_loss"]) == 2
    assert max(found) < 1e-5
    assert len(found) == 2


def test_batches_that_the_engine_cannot_run_are_run_by_keras() -> None:
    model = CASES["minus mean"].build()
    model.compile_trt(**QUIET)
    expected = by_keras(model, floats(4)(50))
    with recorded() as records:
        same(expected, model.predict(floats(4)(50), batch_size=50, verbose=0))
    warns_once(records, "50")
