from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from keras_trt.backends.onnxruntime import OnnxRuntimeBackend

from ..models import pair


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small artifact. Tests must not change it."""
    path = tmp_path_factory.mktemp("saved") / "model.ktrt"
    pair("sequential")[1].save(path)
    return path


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What has been given to the backend to load or build."""
    given: list[bytes] = []
    for name in ("load", "build"):
        real = getattr(OnnxRuntimeBackend, name)

        def watched(self: Any, data: bytes, *rest: Any, real: Any = real, **keywords: Any) -> Any:
            given.append(data)
            return real(self, data, *rest, **keywords)

        monkeypatch.setattr(OnnxRuntimeBackend, name, watched)
    return given
