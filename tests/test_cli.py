"""The command line: what it prints and how it ends."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt.cli.main import main

from .models import keras, kl, ops

# Keras's own, when it saves and loads under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@keras.saving.register_keras_serializable("tests")
class Inverse(kl.Layer):
    """Has no form in ONNX."""

    def call(self, x: Any) -> Any:
        return ops.erfinv(x)


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    def save(*layers: Any, shape: Any = (8,)) -> str:
        path = tmp_path / "model.keras"
        keras.Sequential([keras.Input(shape, name="given"), *layers]).save(path)
        return str(path)

    return save


def test_a_model_that_runs(saved: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", saved(kl.Dense(2))]) == 0
    assert "runs on an engine" in capsys.readouterr().out


def test_a_model_that_does_not(saved: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", saved(Inverse(name="guilty"), kl.Dense(2))]) == 1
    out = capsys.readouterr().out
    assert "guilty" in out
    assert "falls back" in out


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "keras_trt", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"keras_trt {keras_trt.__version__}\n"


def test_json(saved: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", saved(Inverse(name="guilty"))]) == 1
    diagnosis = json.loads(capsys.readouterr().out)
    assert diagnosis["ok"] is False
    assert {"model", "judge", "engine", "findings"} <= set(diagnosis)
    assert diagnosis["findings"][0]["layer"] == "guilty"
    assert set(diagnosis["findings"][0]) == {"problem", "layer", "action", "cost"}


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_options_and_a_sample(saved: Any, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, sample = saved(kl.LSTM(3), shape=(None, 4)), tmp_path / f"sample.{kind}"
    rows = np.random.default_rng(0).standard_normal((4, 5, 4)).astype("float32")
    np.save(sample, rows) if kind == "npy" else np.savez(sample, given=rows)
    assert main(["doctor", model]) == 1
    assert "has no fixed size" in " ".join(capsys.readouterr().out.split())
    given = ["--sample", str(sample), "--backend", "onnxruntime", "--batch-sizes", "1", "2", "4"]
    assert main(["doctor", model, *given, "--precision", "fp32"]) == 0
    assert main(["doctor", model, *given, "--precision", "tf32"]) == 1
    assert main(["doctor", model, *given, "--precision", "int8"]) == 1
    assert "can be in int8" in " ".join(capsys.readouterr().out.split())
    assert main(["doctor", saved(kl.Dense(2), shape=(None, 4)), *given, "--precision", "int8"]) == 0
    assert main(["doctor", saved(kl.Dense(2)), *given[2:], "--precision", "int8"]) == 1
    assert "needs `calibration_data`" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["doctor", "missing.keras"], "no model at this path"),
        (["doctor", "text.keras"], "could not load this file"),
        (["doctor", "good.keras", "--batch-sizes", "4", "2", "1"], "batch_sizes"),
        (["doctor", "good.keras", "--sample", "missing.npy"], "missing.npy"),
        (["doctor", "good.keras", "--sample", "wrong.npy"], "Received"),
        (["doctor", "good.keras", "--device", "-1"], "device"),
    ],
)
def test_bad_input_is_one_message_and_status_2(
    arguments: list[str],
    words: str,
    saved: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = Path(saved(kl.Dense(2)))
    monkeypatch.chdir(good.parent)
    good.rename("good.keras")
    Path("text.keras").write_text("not a model")
    np.save("wrong.npy", np.ones((4, 3)))
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("keras-trt: ")
    assert words in captured.err


@pytest.mark.parametrize(
    "arguments", [[], ["doctor"], ["docter", "x"], ["doctor", "x", "--precision", "fp12"], ["doctor", "x", "--odd"]]
)
def test_bad_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: keras-trt" in capsys.readouterr().err


def test_the_command_is_installed_under_its_name() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["keras-trt"].partition(":")
    assert getattr(importlib.import_module(module), name) is main


def test_as_a_process_its_output_is_nothing_but_json(saved: Any) -> None:
    code = "import sys; from keras_trt.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", "--json", saved(kl.Dense(2))],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from keras_trt.cli.main import main\n"
        "try: main(['doctor', '--help'])\n"
        "except SystemExit: print('numpy' in sys.modules or 'keras' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stdout + done.stderr
