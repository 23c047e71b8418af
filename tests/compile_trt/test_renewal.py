"""What follows a change of a compiled model: by each policy, between trainings, in a file, and nothing too much."""

from __future__ import annotations

import gc
import logging
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt

from ..models import keras, kl, same, tf
from .helpers import QUIET, Engine, X, Y, assign, by_keras, network

# numpy 2 says so of TensorFlow's variables when Keras saves them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_nothing_is_made_anew_where_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    model.compile_trt(**QUIET)
    made = []
    monkeypatch.setattr("keras_trt.compiled.attach.renew", lambda *_, **__: made.append(1))
    model.set_weights(model.get_weights())
    model.compile("adam", "mae")
    model.evaluate(X, Y, verbose=0)
    same(by_keras(model), model.predict(X, verbose=0))
    assert not made
    assign(model)
    model.predict(X, verbose=0)
    assert made


@pytest.mark.parametrize("policy", ["refit", "rebuild", "keras", "raise"])
def test_each_policy(policy: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    fast = model.compile_trt(**QUIET, on_weight_change=policy)
    original = model.get_weights()
    engine = Engine(monkeypatch)
    assign(model)
    expected, tested = by_keras(model), model.compute_loss(X, Y, by_keras(model))
    if policy == "raise":
        for call in (
            lambda: model.predict(X),
            lambda: fast(X),
            lambda: model.evaluate(X, Y),
            lambda: fast.predict_on_batch(X),
        ):
            with pytest.raises(keras_trt.StaleEngineError, match=r"weights of .* changed"):
                call()
        assert engine.runs == 0
    else:
        with caplog.at_level(logging.INFO, "keras_trt"):
            for found in (model.predict(X, verbose=0), fast.predict(X, verbose=0), fast(X), model.predict_on_batch(X)):
                same(expected, found)
        assert model.evaluate(X, Y, verbose=0)[0] == pytest.approx(float(tested), rel=1e-5)
        assert (engine.runs > 0) == (policy != "keras")
    model.set_weights(original)
    before = engine.runs
    same(by_keras(model), model.predict(X, verbose=0))
    assert engine.runs > before


def test_training_on_gives_the_same_with_and_without_it() -> None:
    """Train, predict, train on, predict again."""

    def script(policy: str | None) -> list[Any]:
        keras.utils.set_random_seed(3)
        model = network("adam")
        if policy is not None:
            model.compile_trt(**QUIET, on_weight_change=policy)
        results = []
        for _ in range(2):
            model.fit(X, Y, epochs=1, verbose=0, validation_split=0.2)
            results += [model.predict(X, verbose=0), model.evaluate(X, Y, verbose=0)]
        return results

    expected = script(None)
    assert np.abs(expected[0] - expected[2]).max() > 1e-3
    for policy in ("refit", "rebuild", "keras"):
        for wanted, found in zip(expected, script(policy), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_what_is_saved_is_the_engine_of_the_weights_of_now(tmp_path: Path) -> None:
    model = network()
    fast = model.compile_trt(**QUIET)
    assign(model)
    fast.save(tmp_path / "one.ktrt")
    with keras_trt.load(tmp_path / "one.ktrt", backend="onnxruntime", verbose=0) as loaded:
        same(by_keras(model), loaded.predict(X, verbose=0))
        with pytest.raises(NotImplementedError, match="loaded from a file"):
            loaded.evaluate(X, Y)
        with pytest.raises(AttributeError, match="has no `inputs`"):
            loaded.inputs  # noqa: B018
    fast = model.compile_trt(**QUIET, on_weight_change="keras")
    assign(model)
    with pytest.raises(keras_trt.StaleEngineError, match="nothing is saved"):
        fast.save(tmp_path / "two.ktrt")
    assert not (tmp_path / "two.ktrt").exists()


def test_data_that_can_be_read_but_once_are_refused_where_engines_are_made_again() -> None:
    def batches() -> Any:
        yield from ((X[start : start + 8], Y[start : start + 8]) for start in range(0, len(X), 8))

    model = network()
    for options in (
        {"precision": "int8", "calibration_data": batches()},
        {"precision": "auto", "validation_data": batches()},
    ):
        with pytest.raises(ValueError, match=r"_data` is read again .* of type generator"):
            model.compile_trt(**QUIET, **options)
    once: dict[str, Any] = {"precision": "int8", "calibration_data": batches()}
    for make in (
        lambda: keras_trt.EngineCheckpoint("best.ktrt", **once),
        lambda: keras_trt.EngineValidation((X, Y), **once),
    ):
        with pytest.raises(ValueError, match="is read again"):
            make()
    assert model.compile_trt(**QUIET, **once, on_weight_change="keras").precision == "int8"
    again = [tf.data.Dataset.from_tensor_slices(X).batch(8), X]
    for data in again:
        fast = model.compile_trt(**QUIET, precision="int8", calibration_data=data)
        for _ in range(2):
            assign(model)
            model.predict(X, verbose=0)
            assert (fast.precision, fast.report().compared_on) == ("int8", "calibration data")


def test_validation_inside_fit_is_keras_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    model.compile_trt(**QUIET)
    engine = Engine(monkeypatch)
    history = model.fit(X, Y, validation_data=(X, Y), epochs=2, verbose=0).history
    assert len(history["val_loss"]) == 2
    assert engine.runs == 0


def test_evaluating_on_other_weights_traces_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    fast = model.compile_trt(**QUIET)
    model.evaluate(X, Y, verbose=0)
    traced: list[str] = []
    loss = model.compute_loss
    monkeypatch.setattr(model, "compute_loss", lambda *args, **keywords: traced.append("") or loss(*args, **keywords))
    engine = Engine(monkeypatch)
    found = []
    for _ in range(2):
        assign(model)
        found.append(model.evaluate(X, Y, verbose=0)[0])
        assert found[-1] == pytest.approx(float(np.mean((by_keras(model) - Y) ** 2)), rel=1e-5)
    assert abs(found[0] - found[1]) > 1e-3
    assert engine.runs
    assert not traced
    model.add(kl.Dense(3))  # what is traced would not be that of this model
    assert model.evaluate(X, Y, verbose=0)[0] == pytest.approx(float(np.mean((by_keras(model) - Y) ** 2)), rel=1e-5)
    assert fast.backend == "onnxruntime"


def test_nothing_is_kept_of_a_model_that_is_no_longer_used() -> None:
    held = []
    model = network()
    fast = model.compile_trt(**QUIET)
    for _ in range(2):
        model.evaluate(X, Y, verbose=0)
        model.test_on_batch(X, Y)
        held += [weakref.ref(one) for one in (model, fast, fast._predictor, fast._session)]
        assign(model)
    del model, fast
    gc.collect()
    assert [one() for one in held] == [None] * 8
