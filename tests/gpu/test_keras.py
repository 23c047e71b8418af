"""`compile_trt`, `evaluate` and the callbacks on a real GPU, beside a TensorFlow that trains: `pytest -m gpu tests`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt.verification.verify import LIMITS

from . import models

pytestmark = pytest.mark.gpu

ROWS = 96


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {
        "backend": "tensorrt", "precision": "fp32", "optimization_level": 0, "batch_sizes": (1, 32, 64),
        "cache": tmp_path / "cache", "fallback": "raise",
    }  # fmt: skip


def trained() -> tuple[Any, Any, Any]:
    model = models.cnn()
    # Without XLA, which finds no convolution in full float32 in some of TensorFlow's builds for GPUs.
    model.compile("adam", "mse", metrics=["mae"], jit_compile=False)
    generator = np.random.default_rng(0)
    return model, generator.standard_normal((ROWS, 16, 16, 3), np.float32), generator.standard_normal((ROWS, 10))


def close(expected: Any, found: Any) -> None:
    assert np.linalg.norm(found - expected) <= LIMITS["fp32"] * np.linalg.norm(expected)


@pytest.mark.parametrize("refittable", [False, True])
def test_a_compiled_model_follows_its_weights(refittable: bool, options: dict[str, Any]) -> None:
    model, x, y = trained()
    fast = model.compile_trt(**options, refittable=refittable, verbose=0)
    before = model.predict(x, verbose=0)
    close(np.asarray(model(x, training=False)), before)
    for _ in range(2):
        model.fit(x, y, verbose=0)
        after = model.predict(x, verbose=0)
        close(np.asarray(model(x, training=False)), after)
        assert np.linalg.norm(after - before) > 100 * LIMITS["fp32"] * np.linalg.norm(before)
        assert fast.report().origin == ("refitted" if refittable else "built")
        before = after
    by_keras = type(model).evaluate(model, x, y, verbose=0)
    np.testing.assert_allclose(model.evaluate(x, y, verbose=0), by_keras, rtol=1e-3)
    model.uncompile_trt()
    close(before, model.predict(x, verbose=0))


def test_engines_of_a_training(tmp_path: Path, options: dict[str, Any]) -> None:
    import keras

    model, x, y = trained()
    answers = []

    class Answers(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            answers.append(np.asarray(self.model(x, training=False)))

    checkpoint = keras_trt.EngineCheckpoint(tmp_path / "{epoch}.ktrt", validation_data=(x, y), **options)
    validation = keras_trt.EngineValidation((x, y), **options)
    history = model.fit(x, y, epochs=3, callbacks=[Answers(), validation, checkpoint], verbose=0).history
    assert len(history["val_mae"]) == 3
    for epoch, expected in enumerate(answers):
        with keras_trt.load(tmp_path / f"{epoch + 1}.ktrt", backend="tensorrt", verbose=0) as fast:
            assert fast.report().origin == "artifact"
            close(expected, fast.predict(x, verbose=0))


def test_the_layers_of_an_engine_are_listed(options: dict[str, Any]) -> None:
    model, _, _ = trained()
    lines: list[str] = []
    with keras_trt.accelerate(model, **options, verbose=0) as fast:
        fast.summary(print_fn=lines.append)
    assert "engine's types" in lines[-1]
    assert "conv2d" in lines[-1]


def test_a_build_in_a_process_of_its_own(options: dict[str, Any]) -> None:
    model, x, _ = trained()
    with keras_trt.accelerate(model, **options, build="process", build_timeout=300, verbose=0) as fast:
        assert fast.report().origin == "built"
        close(np.asarray(model(x, training=False)), fast.predict(x, verbose=0))
