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
from keras_trt.specs import OptimizationProfile, Pipelining, ShapeRange, Signature, TensorSpec

from .helpers import Array, runner_of, session
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
    one, how = session(HostEngineOnDevice(host_cuda)), Pipelining(3, 1)
    found = pipeline.piped(Fast(one), np.ones((64, 5), "float32"), 8, how, copies=copies)
    assert runner_of(one)._pool._limit == 3
    one.close()
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
    copied: list[tuple[int, int]] = []  # what, and to where
    monkeypatch.setattr(copying, "put", lambda to, rows: copied.append((int(rows[0, 0]), to.ctypes.data)))
    x, y = TensorSpec("x", (None, 5), "float32"), TensorSpec("y", (None, 5), "float32")
    profile = OptimizationProfile({"x": ShapeRange((1, 5), (8, 5), (8, 5))})
    engine = OneInput(host_cuda)
    one = Session([engine], Signature((x,), (y,), 0, 0), profile, rows_independent=True)
    rows = np.repeat(np.arange(64, dtype="float32")[:, np.newaxis] // 8, 5, axis=1)
    assert pipeline.replayed(Fast(one), rows, 8, Pipelining(count, 2), way) > 0
    launched, ahead = host_cuda.calls["cudaGraphLaunch"], way.startswith("rows sent ahead")
    assert launched
    assert launched % 200 == 0
    recorded = {"engine alone": 0, "with copies": 2}.get(way, 1)
    assert host_cuda.calls["cudaMemcpyAsync"] == count * (2 + recorded) + launched * ahead
    assert [batch for batch, _ in copied] == [i % 8 for i in range(launched * way.endswith("host busy"))]
    assert len({to for _, to in copied}) == count * way.endswith("host busy")
    assert not engine.open_contexts()
    one.close()
