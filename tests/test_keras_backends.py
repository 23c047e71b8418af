"""Keras on JAX and on PyTorch: the export goes through TensorFlow in another process, all else stays where it is.

PyTorch is no part of the test environment, as its wheel takes gigabytes on Linux: `pip install torch`, and these run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BACKENDS = [
    "jax",
    pytest.param(
        "torch", marks=pytest.mark.skipif(find_spec("torch") is None, reason="needs PyTorch: pip install torch")
    ),
]


@pytest.fixture(scope="module", params=BACKENDS)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    environment = {**os.environ, "KERAS_BACKEND": request.param, "KERAS_TRT_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "tests.keras_backends.run", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((folder / "seen.json").read_text())
    assert found["backend"] == request.param
    return found


@pytest.mark.parametrize("model", ["mlp", "two_inputs", "subclassed"])
def test_an_engine_answers_as_the_model_and_takes_other_weights_without_an_export(seen: Any, model: str) -> None:
    found = seen[model]
    tolerance = 2e-2 if model == "subclassed" else 1e-5  # which computes in float16
    assert found["warnings"] == []
    assert found["backend"] == "onnxruntime"
    assert (found["again"], found["other"]) == ("cache", "refitted")
    assert found["moved"] > 10 * tolerance
    assert max(found["apart"], found["apart_then"]) < tolerance


def test_a_call_gives_tensors_for_tensors(seen: Any) -> None:
    for name, runs in ("engine", "onnxruntime"), ("keras", "keras"):
        found = seen["calls"][name]
        assert found["backend"] == runs
        assert found["kinds"] == ["numpy", seen["backend"], "numpy"]
        assert found["apart"] < 1e-5


def test_compile_trt_follows_each_change(seen: Any) -> None:
    found = seen["following"]
    assert max(found["apart"]) < 1e-5
    changes = [abs(one - other) for one, other in zip(found["answers"], found["answers"][1:], strict=False)]
    assert min(changes) > 1e-3
    assert found["origins"][1:] == ["refitted"] * 4


def test_keras_evaluates_and_says_so_once(seen: Any) -> None:
    found = seen["following"]
    assert found["evaluate"][0] == found["evaluate"][1] == found["evaluate"][2]
    assert len(found["warnings"]) == 1
    assert f"its trainer runs on '{seen['backend']}'" in found["warnings"][0]


def test_callbacks_of_a_training(seen: Any) -> None:
    found = seen["training"]
    assert found["warnings"] == []
    assert found["files"] == ["1.ktrt", "2.ktrt"]
    assert found["keys"] == ["engine_difference", "engine_epoch", "engine_latency_ms", "loss"]
    assert found["apart"] < 1e-5
    assert len(found["validation"]) == 1
    assert found["val_loss"] < 1e-5


def test_what_cannot_be_exported_says_what_to_do(seen: Any) -> None:
    found = seen["refused"]
    assert "cannot import 'InTheScript' from the script that runs. Move it to a module" in found["script"]
    assert "(IntegerLookup) must run on the CPU" in found["lookup"]
    assert "KERAS_BACKEND=tensorflow" in found["lookup"]
    assert "answers otherwise than on" in found["another"]


def test_a_training_goes_on_without_engines_and_says_so_once(seen: Any) -> None:
    assert seen["refused"]["epochs"] == 3
    assert len(seen["refused"]["warnings"]) == 1


def test_files(seen: Any) -> None:
    assert seen["files"]["onnx"] < 1e-4
    assert seen["files"]["command"] == 0
