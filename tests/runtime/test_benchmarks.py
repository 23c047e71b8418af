"""The benchmark that looks into `predict`, whose ways it changes: what it changes must be there (see `host_cuda`)."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_trt.runtime import Session, copying
from keras_trt.runtime.slots import _Buffer

from .helpers import Array, session
from .host_cuda import HostCuda
from .host_engine import HostEngineOnDevice

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


class Fast(AbstractContextManager["Fast"]):
    """As much of a `TRTModel` as the benchmark uses."""

    def __init__(self, one: Session) -> None:
        self._session = one

    def __exit__(self, *exception: object) -> None:
        self._session.close()

    def predict(self, rows: Array, **_: object) -> Any:
        return self._session.run([rows, np.zeros(len(rows), "int32")])


@pytest.mark.parametrize("copies", [True, False])
def test_the_pipeline_is_timed_with_and_without_copies(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, copies: bool
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    pipeline = importlib.import_module("pipeline")
    monkeypatch.setattr(pipeline.environment, "alone", nullcontext)
    put, begin, copied = copying.put, _Buffer.begin, list[int]()
    monkeypatch.setattr(copying, "put", lambda target, source: (copied.append(len(source)), put(target, source)))
    found = pipeline.piped(
        lambda: Fast(session(HostEngineOnDevice(host_cuda))), np.ones((64, 5), "float32"), 8, copies=copies
    )
    assert found["rows_per_s"] > 0
    assert set(found["us_per_batch"]) | {"sleeps"} == {part for part, *_ in pipeline.PARTS}
    assert bool(copied) == copies
    assert _Buffer.begin is begin
