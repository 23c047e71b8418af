"""What `Engines` keeps beside engines: measurements that all builds share, merged and never lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keras_trt import OptimizationProfile, ShapeRange, backends
from keras_trt.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeEngine
from keras_trt.building.engines import Engines
from keras_trt.building.timings import CachedTimings
from keras_trt.cache import EngineCache
from keras_trt.options import ENGINE_OPTIONS, OTHER_OPTIONS

from .models import accelerate, floats, keras, kl, same

REPOSITORY = Path(__file__).parents[1]
IDENTITY = {"backend": "tensorrt", "TensorRT": "10.9.0.34", "gpu": "L4"}


def stored(cache: EngineCache, write: Any) -> bool:
    write(cache)
    return True


def test_timings_are_kept_for_one_tensorrt_on_one_gpu(cache: EngineCache) -> None:
    timings = CachedTimings(cache, IDENTITY, lambda write: stored(cache, write))
    assert timings.read() == b""
    timings.update(lambda before: before + b"measured ")
    timings.update(lambda before: before + b"more")
    assert timings.read() == b"measured more"
    for other in ({**IDENTITY, "TensorRT": "10.9.0.35"}, {**IDENTITY, "gpu": "L40"}):
        assert CachedTimings(cache, other, lambda write: stored(cache, write)).read() == b""


def test_engines_that_are_not_kept_share_what_was_measured(cache: EngineCache) -> None:
    backend = backends.choose("onnxruntime", [0])[0]
    engines = [Engines(backend, cache, keep=keep) for keep in (False, True)]
    first, second = (one._timings() for one in engines)
    assert first is not None
    assert second is not None
    first.update(lambda before: before + b"measured")
    assert second.read() == b"measured"


def test_builds_at_once_lose_nothing_of_each_other(cache: EngineCache, count: Callable[[str], None]) -> None:
    """Eight processes add ten measurements each: all are there at the end."""
    code = """
import sys
from keras_trt.cache import EngineCache
from keras_trt.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeEngine
from keras_trt.building.timings import CachedTimings
cache = EngineCache(sys.argv[1])
timings = CachedTimings(cache, {"gpu": "L4"}, lambda write: write(cache) or True)
for turn in range(10):
    timings.update(lambda before: before + f"{sys.argv[2]}.{turn} ".encode())
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(cache.path), str(number)], cwd=REPOSITORY)
        for number in range(8)
    ]
    assert [process.wait(timeout=200) for process in processes] == [0] * 8
    found = CachedTimings(cache, {"gpu": "L4"}, lambda write: stored(cache, write)).read().split()
    assert sorted(found) == sorted(f"{number}.{turn}".encode() for number in range(8) for turn in range(10))
    count(f"8 processes that build at once: {len(found)} of 80 measurements kept")


@pytest.mark.parametrize("keyed", [True, False])
def test_a_stored_plan_that_cannot_be_loaded_is_built_again(cache: EngineCache, keyed: bool) -> None:
    numbers = iter(range(3))  # what no key can be made of
    shift = kl.Dense(3) if keyed else kl.Lambda(lambda x: x + (0 if numbers is None else 1))
    model = keras.Sequential([keras.Input((4,)), kl.Dense(4), shift])
    x = floats(4)(20)
    expected = model.predict(x, verbose=0)
    assert accelerate(model, cache=cache).report().origin == "built"
    (engine,) = (item for item in cache.items() if item.kind == "entry" and "backend" in item.manifest)
    cache.put(engine.key, b"of another ONNX Runtime", engine.manifest)
    for origin in ("built", "cache"):
        fast = accelerate(model, cache=cache)
        assert fast.report().origin == origin
        same(expected, fast.predict(x, verbose=0))


def test_an_engine_is_freed_after_ctrl_c_while_it_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(EngineCache):
        def put(self, key: str, payload: bytes, manifest: Any) -> None:
            if "backend" in manifest:
                raise KeyboardInterrupt
            super().put(key, payload, manifest)

    loaded: list[OnnxRuntimeEngine] = []
    freed: list[OnnxRuntimeEngine] = []
    load = OnnxRuntimeBackend.load
    monkeypatch.setattr(OnnxRuntimeBackend, "load", lambda self, plan: loaded.extend(made := load(self, plan)) or made)
    monkeypatch.setattr(OnnxRuntimeEngine, "close", lambda self: freed.append(self))
    with pytest.raises(KeyboardInterrupt):
        accelerate(keras.Sequential([keras.Input((4,)), kl.Dense(3)]), cache=Interrupted(tmp_path))
    assert loaded
    assert freed == loaded


# Which options change the engine: what the two lists say is what the keys do.

CHANGED: dict[str, Any] = {
    "precision": "fp16",
    "batch_sizes": (1, 4, 16),
    "profiles": OptimizationProfile({"given": ShapeRange((2, 4), (3, 4), (5, 4))}),
    "optimization_level": 1,
}
SAME: dict[str, Any] = {
    "sample": floats(4)(40),
    "verify": False,
    "fallback": "raise",
    "device": 1,
    "verbose": 1,
    # ONNX Runtime's engines can always be refitted; TensorRT's are told apart in tests/gpu.
    "refittable": True,
}


def engines_for(cache: EngineCache, **options: Any) -> set[str]:
    """Return the keys of all engines after one more start."""
    model = keras.Sequential([keras.Input((4,), name="given"), kl.Dense(3, kernel_initializer="ones")])
    accelerate(model, cache=cache, **options)
    return {item.key for item in cache.items() if "fields" in item.manifest}


@pytest.mark.parametrize("option", sorted(CHANGED))
def test_an_engine_option_changes_the_engine(option: str, cache: EngineCache) -> None:
    assert option in ENGINE_OPTIONS
    before = engines_for(cache)
    assert before < engines_for(cache, **{option: CHANGED[option]})


@pytest.mark.parametrize("option", sorted(SAME))
def test_another_option_does_not(option: str, cache: EngineCache) -> None:
    before = engines_for(cache)
    assert len(before) == 1
    assert engines_for(cache, **{option: SAME[option]}) == before


# Tried where they are at home: they need data, or a precision of 8 bits, or two backends.
ELSEWHERE = {"calibration_data", "calibration_method", "precision_plan"}
OTHERS_ELSEWHERE = {"backend", "cache", "build", "build_timeout"}
OTHERS_ELSEWHERE |= {"validation_data", "accuracy_budget", "monitor", "mode"}


def test_each_option_is_tried() -> None:
    assert set(CHANGED) | {"refittable"} | ELSEWHERE == ENGINE_OPTIONS
    assert (set(SAME) - {"refittable"}) | OTHERS_ELSEWHERE == OTHER_OPTIONS
