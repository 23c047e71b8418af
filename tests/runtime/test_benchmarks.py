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
from keras_trt.specs import OptimizationProfile, ShapeRange, Signature, TensorSpec

from .helpers import Array, session
from .host_cuda import HostCuda
from .host_engine import HostContext, HostEngineOnDevice

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


class Doubling(HostContext):
    def set_shapes(self, shapes: Any) -> Any:
        super().set_shapes(shapes)
        del self.shapes["sums"]
        return {"y": self.shapes["y"]}

    def _infer(self, shapes: Any, addresses: Any) -> None:
        x, y = (
            self.engine.cuda.view(addresses[name], 4 * int(np.prod(shapes[name])), "device").view("float32")
            for name in ("x", "y")
        )
        y[...] = 2 * x


class OneInput(HostEngineOnDevice):
    input_names, output_names = ("x",), ("y",)  # type: ignore[assignment]

    def create_context(self, stream: int) -> HostContext:  # noqa: ARG002
        self.contexts.append(Doubling(self))
        return self.contexts[-1]


@pytest.mark.parametrize("way", ["engine alone", "with copies", "rows sent ahead", "rows sent ahead, host busy"])
@pytest.mark.parametrize("count", [1, 3])
def test_graphs_are_launched_with_what_their_way_copies(
    host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, way: str, count: int
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    pipeline = importlib.import_module("pipeline")
    assert way in pipeline.REPLAYS
    copied: list[int] = []
    monkeypatch.setattr(copying, "put", lambda _, source: copied.append(len(source)))
    x, y = TensorSpec("x", (None, 5), "float32"), TensorSpec("y", (None, 5), "float32")
    profile = OptimizationProfile({"x": ShapeRange((1, 5), (8, 5), (8, 5))})
    engine = OneInput(host_cuda)
    one = Session([engine], Signature((x,), (y,), 0, 0), profile, rows_independent=True)
    before = host_cuda.calls["cudaMemcpyAsync"]
    assert pipeline.replayed(Fast(one), np.ones((64, 5), "float32"), 8, count, way) > 0
    ahead = host_cuda.calls["cudaMemcpyAsync"] - before
    launched = host_cuda.calls["cudaGraphLaunch"]
    assert launched % 200 == 0
    assert (ahead >= launched) == way.startswith("rows sent ahead")
    assert copied == [8] * launched * way.endswith("host busy")
    assert not engine.open_contexts()
    one.close()
