"""Engines of TensorRT beside Keras's answers, and a look inside of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import keras_trt
from keras_trt.runtime.gpu import GpuRunner
from keras_trt.verification.verify import LIMITS

from . import models
from .summary import note


class Accelerated:
    """A Keras model, its engine, and Keras's answers to 300 rows that the engine was not verified with."""

    def __init__(self, build: Callable[[], Any], cache: Path, precision: str, **options: Any) -> None:
        self.model = build()
        with warnings.catch_warnings():
            warnings.simplefilter("error", keras_trt.FallbackWarning)
            self.fast = accelerate(self.model, cache, precision=precision, fallback="raise", **options)
        self.limit = LIMITS[precision]  # type: ignore[index]
        self.rows = models.random_rows(self.model, 300, seed=77)
        self.reference = np.asarray(self.model.predict(self.rows, verbose=0))
        report = self.fast.report()
        assert report.backend == "tensorrt"
        assert report.origin == "built"
        assert report.precision == self.fast.precision == precision
        assert report.fell_back == ()
        assert report.differences
        assert all(difference.within for difference in report.differences)
        note("build_seconds", f"{self.model.name} {precision}", round(report.seconds["build"], 1))

    def assert_right(self, start: int, stop: int, answers: Any = None) -> None:
        if answers is None:
            answers = self.fast.predict(self.rows[start:stop], verbose=0)
        reference = self.reference[start:stop]
        assert answers.shape == reference.shape
        assert np.isfinite(answers).all()
        assert models.relative(answers, reference) < self.limit
        # Every row for itself: one wrong row among many must show.
        for answer, wanted in zip(answers, reference, strict=True):
            assert (
                np.linalg.norm(answer - wanted)
                < 10 * self.limit * np.linalg.norm(self.reference) / len(self.reference) ** 0.5
            )


def accelerate(model: Any, cache: Any, **options: Any) -> keras_trt.TRTModel:
    fixed = {"backend": "tensorrt", "optimization_level": 0, "cache": cache, "verbose": 0}
    return keras_trt.accelerate(model, **(fixed | options))


def runner_of(fast: keras_trt.TRTModel) -> GpuRunner:
    assert fast._predictor is not None
    runner = fast._predictor._session._runner
    assert isinstance(runner, GpuRunner)
    return runner


def engine_layers(fast: keras_trt.TRTModel) -> list[Any]:
    """Return what TensorRT's inspector says of each layer of the engine."""
    import tensorrt

    from keras_trt.backends.tensorrt import types

    engine: Any = runner_of(fast)._engine
    inspector = engine._engine.create_engine_inspector()
    return types._entries(inspector.get_engine_information(tensorrt.LayerInformationFormat.JSON))
