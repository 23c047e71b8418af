from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from keras_trt.cache import EngineCache

from .layout import KEY, MANIFEST, PAYLOAD, RECORD


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    """A cache with one entry and one record."""
    cache = EngineCache(tmp_path / "cache")
    cache.put(KEY, PAYLOAD, MANIFEST)
    cache.put_record(KEY, RECORD)
    return cache


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="keras_trt-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)
