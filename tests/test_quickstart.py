"""The demo as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def child_environment() -> dict[str, str]:
    """Return an environment in which this repository comes before what the parent's own path holds."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}


def run_quickstart(*arguments: str) -> dict[str, str]:
    """Run the demo, and return the table that it prints."""
    result = subprocess.run(
        [sys.executable, REPOSITORY / "examples" / "quickstart.py", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=500,
        env=child_environment(),
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr[-6000:]}"
    table = {}
    for line in result.stdout.splitlines():
        name, separator, value = line.partition("  ")
        assert separator, f"a line that is no row of the table: {line!r}"
        table[name] = value.strip()
    return table


def assert_agrees(table: dict[str, str], digits: int) -> None:
    keras, engine = table["accuracy, Keras"], table["accuracy, engine"]
    assert float(keras.split()[0]) >= 0.9
    assert float(engine.split()[0]) >= 0.9
    assert " of 500 test digits" in keras
    differ = re.search(r"(\d+) digits differ", engine)
    assert differ
    assert int(differ[1]) <= digits
    assert float(table["largest difference"].split()[0]) < 0.1
    assert "engine from the cache" in table["second start"]
    for name in ("rows/s, Keras predict", "rows/s, engine predict"):
        assert float(table[name].split()[0].replace(",", "")) > 0
    assert re.search(r"export \d+\.\d+, build \d+\.\d+, verify \d+\.\d+", table["first start"])


@pytest.mark.parametrize(
    ("precision", "digits"), [("fp32", 0), pytest.param("fp16", 1, marks=pytest.mark.long)], ids=["fp32", "fp16"]
)
def test_quickstart(precision: str, digits: int) -> None:
    table = run_quickstart("--backend", "onnxruntime", "--precision", precision)
    assert table["backend"].startswith("ONNX Runtime")
    assert table["precision"] == precision
    assert_agrees(table, digits)
