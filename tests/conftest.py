from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

# Before anything imports TensorFlow, which is to leave room on a GPU.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
# TensorFlow's own choice on newer processors. Without, it convolves no image on a CPU whose channels come first.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

from keras_trt.cache import EngineCache

# A shell that puts the tests into the background lets them ignore Ctrl-C, which some of them send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes to the user's cache, not even with `cache=True`."""
    monkeypatch.setenv("KERAS_TRT_CACHE", str(tmp_path / "user-cache"))


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are laid out for the same width, whatever the tests are run from."""
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random weights in each run and in any order of tests; tests without Keras do not import it."""
    keras = sys.modules.get("keras")
    if keras is not None and "tensorflow" in sys.modules:
        keras.utils.set_random_seed(0)


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Takes what a test of faults has counted: it is printed at the end of the run."""
    return partial(record_property, "count")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what was counted."""
    passed = [report for report in terminalreporter.getreports("passed") if report.when == "call"]
    lines = [text for report in passed for name, text in report.user_properties if name == "count"]
    if lines:
        terminalreporter.section("counts")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    """An empty engine cache."""
    return EngineCache(tmp_path / "cache")
