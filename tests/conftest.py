from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before anything imports TensorFlow

from keras_trt.cache import EngineCache

# A shell that puts the tests into the background lets them ignore Ctrl-C, which some of them send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes to the user's cache, not even with `cache=True`."""
    monkeypatch.setenv("KERAS_TRT_CACHE", str(tmp_path / "user-cache"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random weights in each run and in any order of tests; tests without Keras do not import it."""
    keras = sys.modules.get("keras")
    if keras is not None and "tensorflow" in sys.modules:
        keras.utils.set_random_seed(0)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    """An empty engine cache."""
    return EngineCache(tmp_path / "cache")
