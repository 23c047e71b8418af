"""Batches that are under way at once, through futures and `asyncio`; predictions in the caller's own arrays."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_trt
from keras_trt import FallbackWarning
from keras_trt.inputs import standardize_out
from keras_trt.runtime import Session
from keras_trt.specs import TensorSpec

from . import zoo
from .runtime.host_arrays import GpuArray
from .runtime.host_cuda import installed


@pytest.fixture(scope="module")
def model() -> Any:
    return zoo.lively(keras.Sequential([keras.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(3)]))


def batches(count: int) -> list[Any]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal((1 + number % 5, 6)).astype("float32") for number in range(count)]


def test_futures_have_the_answers_of_their_own_batches(model: Any) -> None:
    given = batches(60)
    with keras_trt.accelerate(model, backend="onnxruntime", cache=None, verbose=0) as fast:
        futures = [fast.submit(batch) for batch in given]
        for batch, future in zip(given, futures, strict=True):
            np.testing.assert_array_equal(future.result(), fast.predict_on_batch(batch))


def test_what_the_caller_puts_on_its_stream_is_waited_for(model: Any) -> None:
    """A library's current stream is a thread's own: the worker's is another."""
    (rows,) = batches(1)
    with installed() as cuda, keras_trt.accelerate(model, backend="onnxruntime", cache=None, verbose=0) as fast:
        array = GpuArray(cuda, rows)
        np.testing.assert_array_equal(fast.submit(array).result(), fast.predict_on_batch(rows))
        array.free()


def test_asyncio(model: Any) -> None:
    given = batches(20)

    async def all_at_once(fast: Any) -> list[Any]:
        return await asyncio.gather(*(fast.predict_async(batch) for batch in given))

    with keras_trt.accelerate(model, backend="onnxruntime", cache=None, verbose=0) as fast:
        answers = asyncio.run(all_at_once(fast))
        for batch, answer in zip(given, answers, strict=True):
            np.testing.assert_array_equal(answer, fast.predict_on_batch(batch))


def test_errors_are_the_futures(model: Any) -> None:
    with keras_trt.accelerate(model, backend="onnxruntime", cache=None, verbose=0) as fast:
        future = fast.submit(np.zeros((2, 7), "float32"))
        with pytest.raises(keras_trt.InputError, match="shape"):
            future.result()
        with pytest.raises(keras_trt.InputError, match="shape"):
            asyncio.run(fast.predict_async(np.zeros((2, 7), "float32")))


def test_close_answers_what_was_submitted(model: Any) -> None:
    fast = keras_trt.accelerate(model, backend="onnxruntime", cache=None, verbose=0)
    futures = [fast.submit(batch) for batch in batches(40)]
    fast.close()
    assert all(len(future.result()) == 1 + number % 5 for number, future in enumerate(futures))
    with pytest.raises(RuntimeError, match="closed"):
        fast.submit(np.zeros((2, 6), "float32"))
    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(fast.predict_async(np.zeros((2, 6), "float32")))


class Closes(keras.callbacks.Callback):
    """Closes the engine at the first batch: from within the call, or from another thread."""

    def __init__(self, fast: Any, own_thread: bool) -> None:
        super().__init__()
        self.closer = threading.Thread(target=fast.close, daemon=True)
        self._close = fast.close if own_thread else self._beside

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        if batch == 0:
            self._close()

    on_test_batch_end = on_predict_batch_end

    def _beside(self) -> None:
        self.closer.start()
        self.closer.join(0.2)


@pytest.mark.parametrize("own_thread", [False, True])
@pytest.mark.parametrize("method", ["predict", "evaluate"])
def test_close_lets_a_call_of_many_batches_end(model: Any, method: str, own_thread: bool) -> None:
    x = np.concatenate(batches(20))
    model.compile("sgd", "mse")
    arguments = (x,) if method == "predict" else (x, np.ones((len(x), 3), "float32"))
    expected = getattr(model, method)(*arguments, batch_size=8, verbose=0)
    fast = keras_trt.accelerate(model, backend="onnxruntime", cache=None, verbose=0)
    session, closes, found = fast._session, Closes(fast, own_thread), []
    assert session is not None

    def call() -> None:
        found.append(getattr(fast, method)(*arguments, batch_size=8, verbose=0, callbacks=[closes]))

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    caller.join(60)
    assert not caller.is_alive()
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)
    if not own_thread:
        closes.closer.join(60)
    assert session._life._closed
    with pytest.raises(RuntimeError, match="closed"):
        fast.predict_on_batch(x)


def test_what_keras_runs_may_be_submitted_too(model: Any) -> None:
    with pytest.warns(keras_trt.FallbackWarning):
        fast = keras_trt.accelerate(Stateful(), backend="onnxruntime", cache=None, verbose=0, sample=batches(1)[0])
    assert fast.backend == "keras"
    assert fast.memory() == []
    given = batches(3)[2]
    np.testing.assert_allclose(fast.submit(given).result(), 2 * given)
    fast.close()
    with keras_trt.accelerate(model, backend="onnxruntime", cache=None, verbose=0) as fast:
        assert fast.memory() == []  # the CPU's


class Stateful(keras.Model):
    """Writes to a variable at inference, which only Keras can do."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.add_weight(shape=(), trainable=False)

    def call(self, x: Any) -> Any:
        self.count.assign_add(1.0)
        return 2 * x


def test_predictions_in_arrays_of_the_caller(model: Any) -> None:
    given = batches(5)[4]
    out = np.full((len(given), 3), np.nan, "float32")
    with keras_trt.accelerate(model, backend="onnxruntime", cache=None, verbose=0) as fast:
        assert fast.predict_on_batch(given, out=out) is out
        np.testing.assert_array_equal(out, fast.predict_on_batch(given))
        with pytest.raises(keras_trt.InputError, match="out"):
            fast.predict_on_batch(given, out=out[:2])
    with pytest.warns(keras_trt.FallbackWarning):
        fast = keras_trt.accelerate(Stateful(), backend="onnxruntime", cache=None, verbose=0, sample=given)
    doubled = np.empty_like(given)
    assert fast.predict_on_batch(given, out=doubled) is doubled
    np.testing.assert_allclose(doubled, 2 * given)
    for unfit in (np.full((4, 6), 7.0, "float32"), np.full((1, 6), 7.0, "float32"), np.full(given.shape, 7)):
        with pytest.raises(keras_trt.InputError, match="out"):
            fast.predict_on_batch(given, out=unfit)
        assert (unfit == 7).all()
    fast.close()


def test_the_array_that_does_not_fit_is_named() -> None:
    specs = [TensorSpec("a", (None, 2), "float32"), TensorSpec("b", (None, 2), "float32")]
    with pytest.raises(keras_trt.InputError, match="a read-only memoryview of"):
        standardize_out([np.zeros((3, 2), "float32"), memoryview(b"abc")], specs, 3)


def test_an_engine_is_freed_where_a_warning_is_an_error(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with keras_trt.accelerate(model, backend="onnxruntime", cache=None, verbose=0) as fast:
        fast.save(tmp_path / "one.ktrt")
    opened, init = [], Session.__init__

    def noted(session: Session, *arguments: Any, **keywords: Any) -> None:
        opened.append(session)
        init(session, *arguments, **keywords)

    def warns(*_: Any) -> Any:
        raise FallbackWarning("as an error")

    monkeypatch.setattr(Session, "__init__", noted)
    for module, make in (
        ("api", lambda: keras_trt.accelerate(model, backend="onnxruntime", cache=None, verbose=0)),
        ("loaded", lambda: keras_trt.load(tmp_path / "one.ktrt", backend="onnxruntime", cache=None, verbose=0)),
    ):
        monkeypatch.setattr(f"keras_trt.{module}.Predictor", warns)
        with pytest.raises(FallbackWarning):
            make()
        assert opened.pop()._life._closed
