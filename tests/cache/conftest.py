from __future__ import annotations

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
