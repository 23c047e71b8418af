"""The examples, each run on its real data, and what they must show."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .models import keras

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

EXAMPLES = Path(__file__).parents[1] / "examples"
QUIET: dict[str, Any] = {"backend": "onnxruntime", "cache": None, "verbose": 0}


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_image_classification() -> None:
    found = example("image_classification").main(backend="onnxruntime", cache=None)
    assert found["accuracy of the file"] == pytest.approx(found["best accuracy in training"])
    assert found["accuracy of the file"] > 0.9


def test_an_existing_script_needs_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("existing_script")
    source = inspect.getsource(module)
    added = [
        line[1:]
        for line in (EXAMPLES / "existing_script.diff").read_text().splitlines()
        if line.startswith("+") and not line.startswith("+++")
    ]
    assert len(added) == 1
    before = "    model.fit(x, y, epochs=10, verbose=0)\n    before"
    changed = source.replace(before, f"{added[0]}\n{before}")
    patch = difflib.unified_diff(
        source.splitlines(), changed.splitlines(), *["examples/existing_script.py"] * 2, lineterm="", n=2
    )
    shipped = (EXAMPLES / "existing_script.diff").read_text().splitlines()
    assert [line for line in patch if not line.startswith("@@")][2:-1] == [
        line for line in shipped if not line.startswith("@@")
    ][2:]
    runs = []
    monkeypatch.setattr(keras.Model, "compile_trt", lambda self: runs.append(_compile(self, **QUIET)))
    other: dict[str, Any] = {"__name__": "changed"}
    exec(changed, other)  # noqa: S102 (our own example)
    expected, found = module.main(), other["main"]()
    assert len(runs) == 1
    assert runs[0].backend == "onnxruntime"
    assert expected["accuracy"] > 0.9
    assert np.abs(expected["after"] - expected["before"]).max() > 0.1
    for name in ("before", "after", "loss", "accuracy"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


_compile = keras.Model.compile_trt


def test_text_classification() -> None:
    found = example("text_classification").main(**QUIET)
    assert found["Keras"] > 0.8
    assert found["engine"] == pytest.approx(found["Keras"])
    assert found["guess"] == "sklearn.linear_model"
    (layer,) = found["on the CPU"]
    assert layer.startswith("text_vectorization")


def test_multiple_inputs() -> None:
    found = example("multiple_inputs").main(**QUIET)
    assert found["accuracy"] > 0.9
    assert found["largest difference"] < 1e-5


def test_object_detection() -> None:
    found = example("object_detection").main(**QUIET)
    assert found["digits found"] > 0.65
    assert found["pictures that differ from Keras"] == 0


def test_time_series() -> None:
    found = example("time_series").main(**QUIET)
    assert found["error of the engine's forecast"] < 0.9 * found["error of the line's mean"]
    assert found["largest difference to Keras"] < 1e-4


def test_the_notebook_runs_and_its_figures_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = json.loads((EXAMPLES / "digits.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    shown = [output for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(shown) == 3, "it is kept with its figures"
    for cell in code:
        compile(cell, "digits.ipynb", "exec")
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in code:
        exec(cell, names)  # noqa: S102 (our own example)
    assert (names["fast_answers"].argmax(-1) == names["labels"][names["test"]]).mean() > 0.9
    np.testing.assert_allclose(names["fast_answers"], names["slow_answers"], atol=1e-4)
    assert (tmp_path / "digits.ktrt").exists()
