"""A pytest plugin: Keras's own tests of its trainer, with each `predict`, `evaluate`, … run by `compile_trt`.

Keras's tests make their models of a trainer and a layer. Here the trainer is a `keras.Model`, and the first call of a
method that an engine runs builds the model on the data of that call, as Keras does, and compiles it. How each test
ended, and how often an engine ran in it, goes into the file that the environment names.
"""

from __future__ import annotations

import itertools
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import keras
    import keras.src.backend.tensorflow.trainer as trainer
    import tensorflow as tf

from keras_trt.runtime import Session
from keras_trt.source import ON_ENGINE, own

_PLAIN = trainer.TensorFlowTrainer
_runs = 0


def _first_batch(x: Any) -> tuple[Any, Any]:
    """Return a batch of inputs, and the data with nothing missing."""
    if isinstance(x, tf.data.Dataset):
        batch = next(iter(x), None)
    elif isinstance(x, keras.utils.PyDataset):
        batch = x[0]
    elif hasattr(x, "__next__"):
        batch = next(x, None)
        x = itertools.chain([] if batch is None else [batch], x)
        x = (item for item in x)  # Keras takes generators, not every iterator
    else:
        return x, x
    return _dense(keras.utils.unpack_x_y_sample_weight(batch)[0] if isinstance(batch, tuple) else batch), x


def _dense(sample: Any) -> Any:
    if isinstance(sample, tf.SparseTensor):
        return tf.sparse.to_dense(sample)
    return sample.todense() if hasattr(sample, "todense") else sample


def _start(model: Any, method: str) -> Any:
    def call(x: Any = None, *arguments: Any, **keywords: Any) -> Any:
        if "_use_cached_eval_dataset" in keywords:
            return own(model, method)(x, *arguments, **keywords)
        sample, x = _first_batch(x)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.compile_trt(backend="onnxruntime", cache=None, sample=sample, verbose=0)
        except Exception as error:  # of any kind: the test goes on with Keras, and is counted so
            print(f"no engine for {type(model).__name__}: {type(error).__name__}: {error}")  # noqa: T201
            for name in ON_ENGINE:
                vars(model).pop(name, None)
        return getattr(model, method)(x, *arguments, **keywords)

    call.in_place_of = None  # type: ignore[attr-defined]
    return call


def _prepare(model: Any) -> None:
    for method in ON_ENGINE:
        vars(model)[method] = _start(model, method)


class TrainerThatIsAModel(keras.Model):
    """Stands for the trainer in `class X(Trainer, layers.Dense)`."""

    def __init__(self, *_: Any, **__: Any) -> None:
        _PLAIN.__init__(self)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        layers = [kind for kind in cls.__mro__ if not issubclass(kind, keras.Model)]
        for name in ("call", "build", "get_config", "compute_output_shape"):  # the layer's, not the model's
            if not any(name in vars(kind) for kind in cls.__mro__[: cls.__mro__.index(TrainerThatIsAModel)]):
                found = next((vars(kind)[name] for kind in layers if name in vars(kind)), None)
                if found is not None:
                    setattr(cls, name, found)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "requires_trainable_backend: Keras's own")
    trainer.TensorFlowTrainer = TrainerThatIsAModel
    import keras.src.trainers.trainer_test  # now, with that in place

    trainer.TensorFlowTrainer = _PLAIN
    made, run = keras.Model.__new__, Session.run

    def new(cls: type, *arguments: Any, **keywords: Any) -> Any:
        model = made(cls, *arguments, **keywords)
        _prepare(model)
        return model

    def counted(*arguments: Any) -> Any:
        global _runs
        _runs += 1
        return run(*arguments)

    keras.Model.__new__ = new
    Session.run = counted  # type: ignore[method-assign]


@pytest.hookimpl
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write one line for each test: how it ended, and how often an engine ran in it."""
    global _runs
    if report.when == "call" or report.skipped:
        with Path(os.environ["KERAS_OWN_RESULTS"]).open("a") as file:
            file.write(f"{report.outcome} {_runs} {report.nodeid.rpartition('::')[2]}\n")
        _runs = 0
