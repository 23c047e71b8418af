"""What the tests of the store put into a cache, and where it must then lie."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from keras_trt.cache import EngineCache, digest, documents

KEY, OTHER = digest("engine", {"onnx": "a"}), digest("engine", {"onnx": "b"})
PAYLOAD, MANIFEST = bytes(range(256)) * 8, {"tensorrt": "10.13", "profile": [1, 32, 128], "plan": None}
RECORD = {"engine": OTHER, "runs": 3}


def entry_file(cache: EngineCache, key: str = KEY) -> Path:
    return cache.path / "entries" / key[:2] / f"{key[2:]}.json"


def record_file(cache: EngineCache) -> Path:
    return cache.path / "records" / KEY[:2] / f"{KEY[2:]}.json"


def payload_file(cache: EngineCache, payload: bytes = PAYLOAD) -> Path:
    name = hashlib.sha256(payload).hexdigest()
    return cache.path / "payloads" / name[:2] / name[2:]


def sealed(**changed: Any) -> bytes:
    """A manifest whose seal is right, so that only what it says can be wrong."""
    name = hashlib.sha256(PAYLOAD).hexdigest()
    document = {"schema": 1, "kind": "entry", "key": KEY, "payload_sha256": name, "payload_size": len(PAYLOAD)}
    return documents.seal(document | {"manifest": MANIFEST} | changed)
