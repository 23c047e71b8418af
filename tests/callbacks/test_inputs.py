"""What the callbacks know of a model's inputs: open axes when training begins, types by the validation data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt

from ..models import Ids, accelerate, floats, integers, keras, kl, recorded, same, warns_once
from .helpers import QUIET, Y, loaded

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = floats(5, 4)(60)
IDS = integers(11, 7, dtype="int64")(60)

each = pytest.mark.parametrize("callback", ["validation", "checkpoint", "checkpoint that raises"])


def made(callback: str, folder: Path, **options: Any) -> Any:
    if callback == "validation":
        return keras_trt.EngineValidation((STEPS, Y), **QUIET, **options)
    raises = callback == "checkpoint that raises"
    return keras_trt.EngineCheckpoint(folder / "a.ktrt", raise_on_failure=raises, **QUIET, **options)


def with_open_axis(kind: type[keras.Model] = keras.Model) -> Any:
    steps = keras.Input((None, 4), name="steps")
    model = kind(steps, kl.Dense(3)(kl.GlobalAveragePooling1D()(steps)))
    model.compile("sgd", "mse")
    return model


@each
def test_an_open_axis_is_refused_before_time_is_spent(callback: str, tmp_path: Path) -> None:
    model, begun = with_open_axis(), list[int]()
    watch = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, _: begun.append(epoch))
    with pytest.raises(ValueError, match="has no fixed size") as expected:
        accelerate(model)
    with pytest.raises(ValueError, match="has no fixed size") as caught:
        model.fit(STEPS, Y, verbose=0, callbacks=[watch, made(callback, tmp_path)])
    assert str(caught.value) == str(expected.value)
    assert not begun
    assert not list(tmp_path.iterdir())


@each
@pytest.mark.parametrize("by", ["profiles", "sample", "calibration_data"])
def test_unless_its_size_is_said(callback: str, by: str, tmp_path: Path) -> None:
    model = with_open_axis()
    sizes = keras_trt.ShapeRange((1, 2, 4), (8, 5, 4), (32, 9, 4))
    options: dict[str, Any] = {
        "profiles": {"profiles": keras_trt.OptimizationProfile({"steps": sizes})},
        "sample": {"sample": STEPS[:4]},
        "calibration_data": {"precision": "int8", "calibration_data": STEPS},
    }[by]
    history = model.fit(STEPS, Y, verbose=0, callbacks=[made(callback, tmp_path, **options)]).history
    tolerance = 0.05 if by == "calibration_data" else 1e-4
    if callback == "validation":
        assert history["val_loss"][0] == pytest.approx(model.evaluate(STEPS, Y, verbose=0), rel=tolerance)
    else:
        same(model.predict(STEPS, verbose=0), loaded(tmp_path / "a.ktrt").predict(STEPS, verbose=0), tolerance)


def test_where_keras_alone_can_run_a_model_its_sizes_are_nothing_to_it() -> None:
    class Own(keras.Model):
        def predict_step(self, data: Any) -> Any:
            return super().predict_step(data)

    model = with_open_axis(Own)
    with recorded() as records:
        history = model.fit(STEPS, Y, verbose=0, callbacks=[made("validation", Path())], epochs=2).history
    warns_once(records, "overrides `predict_step`")
    assert len(history["val_loss"]) == 2


@each
def test_a_model_that_is_not_built_is_not_asked(callback: str, tmp_path: Path) -> None:
    one = made(callback, tmp_path)
    one.set_model(keras.Sequential([kl.Dense(3)]))
    one.on_train_begin()


def ids() -> Any:
    model = Ids()
    model.compile("sgd", "mse")
    return model


def test_validation_data_says_that_a_subclassed_model_takes_integers(tmp_path: Path) -> None:
    model, path = ids(), tmp_path / "ids.ktrt"
    callbacks = [
        keras_trt.EngineValidation((IDS, Y), **QUIET),
        keras_trt.EngineCheckpoint(path, validation_data=(IDS, Y), **QUIET),
    ]
    history = model.fit(IDS, Y, epochs=2, verbose=0, callbacks=callbacks).history  # without a warning
    assert history["val_loss"][1] == pytest.approx(model.evaluate(IDS, Y, verbose=0), rel=1e-4)
    same(model.predict(IDS, verbose=0), loaded(path).predict(IDS, verbose=0))


def test_but_not_its_sizes(tmp_path: Path) -> None:
    longer, path = np.pad(IDS, ((0, 0), (0, 2))), tmp_path / "ids.ktrt"
    with recorded() as records:
        ids().fit(IDS, Y, verbose=0, callbacks=[keras_trt.EngineCheckpoint(path, validation_data=(longer, Y), **QUIET)])
    warns_once(records, "Input 'input' takes the shape (batch, 7)")
    (spec,) = loaded(path)._predictor.signature.inputs
    assert (spec.shape, spec.dtype) == ((None, 7), "float32")


def test_and_nothing_where_there_is_a_sample(tmp_path: Path) -> None:
    path = tmp_path / "ids.ktrt"
    checkpoint = keras_trt.EngineCheckpoint(path, validation_data=(IDS, Y), sample=IDS[:4].astype("int32"), **QUIET)
    ids().fit(IDS, Y, verbose=0, callbacks=[checkpoint])
    (spec,) = loaded(path)._predictor.signature.inputs
    assert (spec.shape, spec.dtype) == ((None, 7), "int32")
