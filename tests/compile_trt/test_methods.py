"""`model.compile_trt()`: the model's own methods on an engine, and the model given back as it was."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt.source import ON_ENGINE

from ..models import keras, rows_differ, same, tf
from .helpers import QUIET, Engine, X, Y, by_keras, network

# numpy 2 says so of TensorFlow's variables when Keras saves them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


# The methods, and what is given back.


def test_the_models_own_methods_run_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    expected = [by_keras(model), model.evaluate(X, Y, verbose=0), model.test_on_batch(X, Y)]
    rows_differ(expected[0])
    fast = model.compile_trt(**QUIET)
    assert isinstance(fast, keras_trt.TRTModel)
    model.evaluate(X, Y, verbose=0)
    engine = Engine(monkeypatch)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("Keras ran the model")

    monkeypatch.setattr(type(model), "call", refuse)
    for call, wanted in (
        (lambda: model.predict(X, verbose=0), expected[0]),
        (lambda: model.predict_on_batch(X), expected[0]),
        (lambda: model.predict(X, 16, 0, None, None), expected[0]),
        (lambda: model.evaluate(X, Y, verbose=0), expected[1]),
        (lambda: model.test_on_batch(X, Y), expected[2]),
    ):
        before = engine.runs
        np.testing.assert_allclose(call(), wanted, rtol=1e-5, atol=1e-5)
        assert engine.runs > before


@keras.saving.register_keras_serializable("keras_trt_tests")
class OwnEvaluate(keras.Sequential):
    """Evaluates what it is given in a manner of its own."""

    def evaluate(self, dataset: Any, *, scale: float = 1.0) -> float:
        return scale * super().evaluate(dataset, verbose=0, return_dict=True)["loss"]


def test_an_evaluate_of_the_models_own_takes_what_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = OwnEvaluate([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(loss="mse")
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    expected = model.evaluate(dataset)
    model.compile_trt(**QUIET)
    model.evaluate(dataset)
    engine = Engine(monkeypatch)
    assert model.evaluate(dataset) == pytest.approx(expected)
    assert model.evaluate(dataset=dataset, scale=3.0) == pytest.approx(3 * expected)
    assert engine.runs == 6


def test_it_is_given_back_exactly_as_it_was() -> None:
    model = network()
    model.predict(X, verbose=0)
    held, variables = dict(vars(model)), [dict(vars(variable.value)) for variable in model.variables]
    for end in ("uncompile", "with", "close", "twice"):
        fast = model.compile_trt(**QUIET)
        assert all("in_place_of" in vars(getattr(model, method)) for method in ON_ENGINE)
        match end:
            case "uncompile":
                model.uncompile_trt()
                model.uncompile_trt()
            case "with":
                with fast:
                    model.predict(X, verbose=0)
            case "close":
                fast.close()
                fast.close()
            case "twice":
                again = model.compile_trt(**QUIET)
                with pytest.raises(RuntimeError, match="closed"):
                    fast.predict(X)
                fast.close()  # of the first: the second stays
                same(by_keras(model), model.predict(X, verbose=0))
                assert model.predict.of is again
                model.uncompile_trt()
        assert {key: value for key, value in vars(model).items() if held.get(key, "") is not value} == {}
        assert held.keys() == vars(model).keys()
        assert [dict(vars(variable.value)) for variable in model.variables] == variables


def test_what_stood_in_a_methods_place_is_put_back() -> None:
    model = network()
    own = model.evaluate
    model.evaluate = own
    model.compile_trt(**QUIET)
    assert model.evaluate is not own
    model.uncompile_trt()
    assert vars(model)["evaluate"] is own


def test_saving_cloning_pickling_and_configuration_are_as_before(tmp_path: Path) -> None:
    model = network()
    config, weights = model.get_config(), model.get_weights()
    model.compile_trt(**QUIET)
    assert json.dumps(model.get_config(), sort_keys=True) == json.dumps(config, sort_keys=True)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    model.export(tmp_path / "saved", verbose=False)
    copies = {
        "saved": keras.saving.load_model(tmp_path / "model.keras"),
        "pickled": pickle.loads(pickle.dumps(model)),  # noqa: S301 (our own)
        "copied": copy.deepcopy(model),
        "cloned": keras.models.clone_model(model),
        "from its configuration": type(model).from_config(config),
    }
    for name, other in copies.items():
        assert not set(ON_ENGINE) & vars(other).keys(), name
        other.set_weights(weights)
        same(by_keras(model), other.predict(X, verbose=0))
    exported = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(exported.serve(X), by_keras(model), atol=1e-5)


def test_callbacks_of_predict_see_the_model() -> None:
    model = network()
    model.compile_trt(**QUIET)
    seen = []

    class Stops(keras.callbacks.Callback):
        def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append((batch, self.model is model, logs["outputs"].shape))
            self.model.stop_predicting = batch == 1

    assert model.predict(X, batch_size=8, callbacks=[Stops()], verbose=0).shape == (16, 3)
    assert seen == [(0, True, (8, 3)), (1, True, (8, 3))]


def test_a_method_that_was_taken_before_it_was_uncompiled() -> None:
    model = network()
    model.compile_trt(**QUIET)
    methods = [model.predict_on_batch, model.predict]
    model.uncompile_trt()
    for method in methods:
        same(by_keras(model), method(X))
    model.predict = methods[1]  # put back by who had taken it
    same(by_keras(model), model.predict(X))
    del model.predict
    fast = model.compile_trt(**QUIET)
    closed = keras_trt.accelerate(model, **QUIET)
    closed.close()

    class Calls(keras.callbacks.Callback):
        def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            closed.predict(X)

    with pytest.raises(RuntimeError, match="closed"):  # of another: it is the callback's own mistake
        model.predict(X, callbacks=[Calls()], verbose=0)
    assert model.predict.of is fast


# Import order.


@pytest.mark.parametrize(
    "code",
    [
        "import keras, keras_trt",
        "import keras_trt, sys; assert 'keras' not in sys.modules; import tensorflow as tf; keras = tf.keras",
    ],
)
def test_it_is_there_in_either_import_order(code: str) -> None:
    code += """
import sys
assert keras.Model.compile_trt.__doc__ and keras.Sequential([]).uncompile_trt() is None
class Own(keras.Model): pass
assert Own.compile_trt is keras.Model.compile_trt
print('there')
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "there", done.stderr[-2000:]
