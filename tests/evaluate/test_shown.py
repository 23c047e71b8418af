"""What a drop-in shows of its Keras model."""

from __future__ import annotations

from pathlib import Path

import pytest

import keras_trt

from ..models import CASES, accelerate, keras
from .helpers import compiled


def test_it_describes_itself_as_its_model_does(capsys: pytest.CaptureFixture[str]) -> None:
    model = CASES["dict inputs"].build()
    model.compile(loss="mse", metrics=["mae"])
    fast = accelerate(model)
    for name in ("name", "inputs", "outputs", "input_shape", "output_shape", "metrics_names"):
        assert getattr(fast, name) == getattr(model, name), name
    lines: list[str] = []
    model.summary(print_fn=lines.append)
    shown: list[str] = []
    fast.summary(print_fn=shown.append)
    assert shown[: len(lines)] == lines
    assert "ONNX Runtime" in "".join(shown[len(lines) :])
    fast.summary()
    assert "broad" in (printed := capsys.readouterr().out)
    assert "ONNX Runtime" in printed


@pytest.mark.parametrize(("name", "layer"), [("image", "conv2d"), ("fixed batch", "dense")])
def test_the_summary_lists_what_the_engine_makes_of_the_layers(name: str, layer: str) -> None:
    lines: list[str] = []
    fast = accelerate(CASES[name].build())
    fast.summary(print_fn=lines.append)
    table = [row.split() for row in lines[-1].splitlines()[1:]]
    assert table[0][:3] == ["Keras", "layer", "type"]
    found = [row for row in table[1:] if row[0].startswith(layer)]
    assert found
    assert all("float" in row for row in found)
    assert {row[0] for row in table[1:]} <= {"(model)", *(one.name for one in fast._source.layers)}


def test_the_table_has_every_name_of_a_keras_model() -> None:
    table = (Path(keras_trt.__file__).parents[1] / "docs" / "keras-model.md").read_text()
    missing = [name for name in dir(keras.Model) if not name.startswith("_") and f"`{name}`" not in table]
    assert not missing


def test_what_a_drop_in_lacks_is_said() -> None:
    fast = accelerate(compiled())
    with pytest.raises(AttributeError, match="for inference and has no `fit`"):
        fast.fit  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'predictt'"):
        fast.predictt  # noqa: B018
    assert not hasattr(fast, "_private")
