"""`EngineCheckpoint` where an engine cannot be made, an argument is bad, or the training is interrupted."""

from __future__ import annotations

import contextlib
import math
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt.callbacks import checkpoint as checkpoint_module
from keras_trt.model.trt_model import TRTModel

from ..models import keras, recorded, same, warns_once
from .helpers import QUIET, Weights, X, Y, hopeless, loaded, network

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_training_goes_on_without_an_engine(tmp_path: Path) -> None:
    checkpoint = keras_trt.EngineCheckpoint(tmp_path / "a.ktrt", **QUIET, fallback="raise")
    with recorded() as records:
        history = hopeless().fit(X, Y, epochs=3, callbacks=[checkpoint], verbose=0).history
    assert len(history["loss"]) == 3
    assert all(map(math.isnan, history["engine_epoch"]))
    texts = [str(record.message) for record in records if record.category is keras_trt.FallbackWarning]
    assert len(texts) == 1, "the same reason is said once"
    assert "epoch 1 could not be made" in texts[0]
    assert not (tmp_path / "a.ktrt").exists()


def test_unless_it_is_asked_to_end(tmp_path: Path) -> None:
    checkpoint = keras_trt.EngineCheckpoint(tmp_path / "a.ktrt", raise_on_failure=True, fallback="raise", **QUIET)
    with pytest.raises(keras_trt.ExportError):
        hopeless().fit(X, Y, epochs=3, callbacks=[checkpoint], verbose=0)


def test_a_failure_leaves_the_last_good_file_and_the_next_engine_replaces_it(tmp_path: Path) -> None:
    model, weights, path = network(), Weights(), tmp_path / "a.ktrt"
    checkpoint = keras_trt.EngineCheckpoint(path, **QUIET)
    seen = []

    class Breaks(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            checkpoint._background.wait()
            if epoch:
                seen.append(loaded(path).predict(X, verbose=0))
            checkpoint.filepath = str(tmp_path / "none" / "a.ktrt") if epoch == 1 else str(path)
            if epoch == 1:
                (tmp_path / "none").write_text("a file where a folder should be")

    with recorded() as records:
        model.fit(X, Y, epochs=3, callbacks=[Breaks(), weights, checkpoint], verbose=0)
    warns_once(records, "epoch 2 could not be made")
    same(weights.answers[0], seen[0])
    same(weights.answers[0], seen[1])
    same(weights.answers[2], loaded(path).predict(X, verbose=0))


def test_where_warnings_are_errors_a_failure_ends_the_training(tmp_path: Path) -> None:
    checkpoint = keras_trt.EngineCheckpoint(tmp_path / "a.ktrt", fallback="raise", **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error", keras_trt.FallbackWarning)
        with pytest.raises(keras_trt.FallbackWarning, match="could not be made: ExportError"):
            hopeless().fit(X, Y, epochs=3, callbacks=[checkpoint], verbose=0)


def test_bad_arguments_are_answered_as_keras_does(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in `\.ktrt`"):
        keras_trt.EngineCheckpoint("a.keras")
    with pytest.raises(ValueError, match="Unrecognized save_freq"):
        keras_trt.EngineCheckpoint("a.ktrt", save_freq="day")
    with pytest.raises(TypeError, match="Unknown option colour"):
        keras_trt.EngineCheckpoint("a.ktrt", colour="red")
    with pytest.raises(ValueError, match="isn't able to automatically determine"):
        network().fit(
            X, Y, verbose=0, callbacks=[keras_trt.EngineCheckpoint(tmp_path / "a.ktrt", monitor="beauty", **QUIET)]
        )
    missing = keras_trt.EngineCheckpoint(
        tmp_path / "a.ktrt", monitor="beauty", mode="max", save_best_only=True, **QUIET
    )
    with pytest.warns(UserWarning, match="Can save best model only with beauty available"):
        network().fit(X, Y, verbose=0, callbacks=[missing])
    assert (tmp_path / "a.ktrt").exists()
    model = network()
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.ktrt").mkdir()
    before = model.get_weights()
    for path in (tmp_path / "file" / "a.ktrt", tmp_path / "file" / "{epoch}" / "a.ktrt", tmp_path / "folder.ktrt"):
        with pytest.raises(OSError, match="file"):
            model.fit(X, Y, verbose=0, callbacks=[keras_trt.EngineCheckpoint(path, **QUIET)])
    same(before, model.get_weights())


@pytest.mark.parametrize("at", ["build", "save"])
def test_an_interrupted_training_writes_over_no_later_one(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was begun is finished, but its file may be another training's by then, as in a notebook."""
    path, (reached, go_on) = tmp_path / "a.ktrt", (threading.Event(), threading.Event())
    first = keras_trt.EngineCheckpoint(path, **QUIET)
    owner, name = (checkpoint_module, "follow") if at == "build" else (TRTModel, "save")
    usual = getattr(owner, name)

    def waits(*arguments: Any, **keywords: Any) -> Any:
        if threading.current_thread() is first._background._thread and not reached.is_set():
            reached.set()
            assert go_on.wait(60)
        return usual(*arguments, **keywords)

    class Interrupts(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            assert reached.wait(60)
            raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, waits)
    with pytest.raises(KeyboardInterrupt):
        network().fit(X, Y, epochs=2, callbacks=[first, Interrupts()], verbose=0)
    if at == "save":  # whoever has begun to write is waited for
        threading.Timer(0.5, go_on.set).start()
    model, weights = network(), Weights()
    model.fit(X, Y, epochs=1, callbacks=[weights, keras_trt.EngineCheckpoint(path, **QUIET)], verbose=0)
    go_on.set()
    first._background.wait()
    same(weights.answers[0], loaded(path).predict(X, verbose=0))


INTERRUPTED = """
    import sys, warnings; warnings.simplefilter("ignore")
    import numpy as np, keras, keras_trt
    x = np.random.default_rng(0).standard_normal((64, 4), np.float32)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("adam", "mse")
    class Tells(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if logs["engine_epoch"] > 1:
                print("saved", flush=True)
    engine = keras_trt.EngineCheckpoint(sys.argv[1], backend="onnxruntime", cache=None)
    model.fit(x, x[:, :3], epochs=100000, callbacks=[engine, Tells()], verbose=0)
"""


@pytest.mark.parametrize("with_", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_training_leaves_the_last_good_engine(with_: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "a.ktrt"
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(INTERRUPTED), str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    with child:
        try:
            assert child.stdout.readline() == b"saved\n"
            time.sleep(0.2)
            _end(child, with_)
        finally:
            child.kill()
    assert child.returncode != 0
    found = loaded(path).predict(X, verbose=0)
    assert found.shape == (60, 3)
    assert np.isfinite(found).all()


def _end(child: subprocess.Popen[bytes], with_: signal.Signals) -> None:
    """Send a signal until a process has ended: of the Ctrl-C's that come while it collects garbage, some are lost.

    They come in finalizers of TensorFlow and JAX, from where Python cannot raise them: 2 to 3 of 100 in a `fit` of tiny
    batches without any callback.
    """
    for _ in range(10):
        child.send_signal(with_)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=20)
            return
    raise AssertionError(f"runs on after 10 times {with_.name}")
