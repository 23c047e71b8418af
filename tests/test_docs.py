"""What README.md, docs/usage.md and the docstrings of public names show, run as a reader runs it.

A block that this cannot run has `<!-- not run: why -->` on the line above it.
"""

from __future__ import annotations

import ast
import asyncio
import doctest
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt

from .models import keras, kl

ROOT = Path(__file__).parents[1]
NOT_RUN = "<!-- not run: "
#: Examples whose answers are those of other models and data than the ones here.
OTHER_ANSWERS = ("Finding", "TRTModel.evaluate")

# Where TensorRT is installed and there is no GPU, each engine says so, as the documents tell.
pytestmark = pytest.mark.filterwarnings("ignore:ONNX Runtime .* on the CPU")


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the reader has already: a compiled model, data for it, and an empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), kl.Conv2D(4, 3, activation="relu"), kl.Flatten(), kl.Dense(3, name="logits")]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    x = np.random.default_rng(0).normal(size=(96, 8, 8, 1)).astype("float32")
    y = (x.mean((1, 2, 3)) > 0).astype("int32")
    rows = {"x": x, "x_train": x, "x_val": x[:32], "y": y, "y_val": y[:32], "images": x[:32], "labels": y[:32]}
    batches = {"batch": x[:8], "batches": [x[:8], x[8:16]], "logits": np.empty((32, 3), "float32")}
    return {"keras": keras, "keras_trt": keras_trt, "model": model, **rows, **batches}


def run(code: str, title: str, names: dict[str, Any], mode: str = "exec") -> Any:
    """Run code, which may await at its top as in a notebook."""
    value = eval(compile(code, title, mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)  # noqa: S307 (our own)
    if not inspect.iscoroutine(value):
        return value
    return asyncio.run(value)


@pytest.mark.parametrize("document", ["README.md", "docs/usage.md"])
def test_python_blocks(document: str, names: dict[str, Any]) -> None:
    text = (ROOT / document).read_text()
    found = list(re.finditer(r"(.*)\n```python\n(?s:(.*?))\n```", text))
    assert len(found) == text.count("```python")
    ran = 0
    for block in found:
        line = text.count("\n", 0, block.start(2)) + 1
        if not block[1].startswith(NOT_RUN):
            run("\n" * (line - 1) + block[2], document, names)  # so that a traceback shows the document's own line
            ran += 1
    assert ran >= 3


def public() -> dict[str, str]:
    """Return the docstring of each public name, of the methods of the drop-in, and of what Keras models get."""
    things = {name: getattr(keras_trt, name) for name in keras_trt.__all__ if name != "__version__"}
    things |= {
        f"TRTModel.{name}": getattr(keras_trt.TRTModel, name) for name in dir(keras_trt.TRTModel) if name[0] != "_"
    }
    things |= {f"Model.{name}": getattr(keras.Model, name) for name in ("compile_trt", "uncompile_trt")}
    return {name: inspect.getdoc(thing) or "" for name, thing in things.items()}


EXAMPLES = {name: found for name, text in public().items() if (found := doctest.DocTestParser().get_examples(text))}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_docstrings(name: str, names: dict[str, Any]) -> None:
    names |= {one: getattr(keras_trt, one) for one in keras_trt.__all__}
    names["fast"] = keras_trt.accelerate(names["model"], verbose=0)
    names["fast"].save("model.ktrt")
    for example in EXAMPLES[name]:
        expected = example.want.strip()
        value = run(example.source.strip(), name, names, "eval" if expected else "exec")
        if name not in OTHER_ANSWERS:
            assert not expected or repr(value) == expected


def test_everything_but_errors_has_an_example() -> None:
    errors = {name for name in keras_trt.__all__ if name.endswith(("Error", "Warning"))}
    assert errors.isdisjoint(EXAMPLES)
    assert set(keras_trt.__all__) - errors - {"__version__"} <= set(EXAMPLES)
