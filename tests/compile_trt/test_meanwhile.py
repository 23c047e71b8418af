"""Changes of a compiled model while a call of it runs: in a callback, and in other threads."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from ..models import keras, same
from .helpers import QUIET, X, Y, assign, by_keras, network

# numpy 2 says so of TensorFlow's variables when Keras saves them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_an_evaluation_within_an_evaluation() -> None:
    model, inner = network(), []
    model.compile_trt(**QUIET)
    last = float(np.mean((by_keras(model, X[32:]) - Y[32:]) ** 2))

    class Evaluates(keras.callbacks.Callback):
        def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            if batch == 1:
                assign(model)
                inner.append(model.evaluate(X, Y, verbose=0)[0])

    outer = model.evaluate(X, Y, verbose=0, callbacks=[Evaluates()])
    assert inner == [pytest.approx(float(np.mean((by_keras(model) - Y) ** 2)), rel=1e-5)]
    # The inner one has reset the metrics; then the second batch was run by the engine that the outer one began with.
    assert outer[0] == pytest.approx((40 * inner[0] + 8 * last) / 48, rel=1e-5)


def test_the_weights_of_one_engine_may_change_while_another_call_runs() -> None:
    model = network()
    fast = model.compile_trt(**QUIET)

    class Trains(keras.callbacks.Callback):
        def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            if batch == 0:
                assign(model)
                same(by_keras(model), fast.predict(X, verbose=0))  # puts another engine in place of the running one

    assert model.predict(X, batch_size=8, callbacks=[Trains()], verbose=0).shape == (40, 3)
    same(by_keras(model), model.predict(X, verbose=0))


def test_threads_predict_while_the_weights_change() -> None:
    model = network()
    fast = model.compile_trt(**QUIET)
    allowed, failures, stop = [by_keras(model)], [], threading.Event()

    def predict() -> None:
        while not stop.is_set():
            found = fast.predict_on_batch(X)
            if not any(np.allclose(found, answer, atol=1e-5) for answer in allowed):
                failures.append(found)

    threads = [threading.Thread(target=predict) for _ in range(3)]
    weights = model.get_weights()
    other = keras.models.clone_model(model)
    other.set_weights([weight * 1.5 for weight in weights])
    allowed.append(by_keras(other))
    for thread in threads:
        thread.start()
    for _ in range(2):
        with fast._changing:  # not half of the weights
            model.set_weights(other.get_weights())
        same(allowed[1], fast.predict_on_batch(X))
        with fast._changing:
            model.set_weights(weights)
        same(allowed[0], fast.predict_on_batch(X))
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


def test_threads_predict_while_it_is_compiled_and_uncompiled() -> None:
    model = network()
    model.predict_on_batch(X)  # Keras makes its function for all threads
    expected, failures, stop = by_keras(model), [], threading.Event()

    def predict() -> None:
        while not stop.is_set():
            try:
                same(expected, model.predict_on_batch(X))
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=predict) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        model.compile_trt(**QUIET)
        model.compile_trt(**QUIET)
        model.uncompile_trt()
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
