"""What a timing cache saves, and whether this TensorRT takes back its own: `python benchmarks/timing_cache.py`.

Builds, on a GPU with TensorRT, each in a process of its own and without an engine in the cache:

    cold       the first model, with no timings stored
    same       the same model again
    family     another model of the same family, with the timings of the first
    family_cold  that model with no timings

Each row says what TensorRT logged of the timing cache. Where it refuses its own, the rows of `probe` narrow down why:
the serialized bytes are offered back in the same process, in half and in full precision.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent))

import environment
import models

MODELS = {"resnet": ("ResNet50", "ResNet101"), "mobilenet": ("MobileNet", "MobileNetV2")}


class Heard(logging.Handler):
    """Keeps what is logged of timing caches."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "iming cache" in message or "yelinCache" in message:
            self.lines.append(message)


def build(cache: str, name: str, precision: str) -> None:
    """Build one model and print what it took, as JSON."""
    heard = Heard()
    logging.getLogger("keras_trt.tensorrt").addHandler(heard)
    logging.getLogger("keras_trt.tensorrt").setLevel(logging.DEBUG)

    import keras_trt

    model = models.make(name)
    fast = keras_trt.accelerate(
        model, backend="tensorrt", precision=precision, cache=cache, verify=False, fallback="raise", verbose=0
    )
    report = fast.report()
    print(json.dumps({"origin": report.origin, "build_s": report.seconds["build"], "log": heard.lines}))


def probe(precision: str) -> None:
    """Serialize the timings of a small build, and offer them back in the same process."""
    import keras

    from keras_trt.backends import BuildSpec
    from keras_trt.backends.tensorrt.builder import PlanBuilder
    from keras_trt.backends.tensorrt.flavor import flavor
    from keras_trt.export import export
    from keras_trt.precision import typed
    from keras_trt.specs import OptimizationProfile, ShapeRange

    heard = Heard()
    logging.getLogger("keras_trt.tensorrt").addHandler(heard)
    logging.getLogger("keras_trt.tensorrt").setLevel(logging.DEBUG)
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([keras.Input((32, 32, 3)), layers.Conv2D(16, 3), layers.Flatten(), layers.Dense(8)])
    exported = export(model)
    shapes = [ShapeRange((1, 32, 32, 3), (4, 32, 32, 3), (8, 32, 32, 3))]
    names = [spec.name for spec in exported.signature.inputs]
    spec = BuildSpec(precision, OptimizationProfile(dict(zip(names, shapes, strict=True))))  # type: ignore[arg-type]
    timings = Kept()
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        PlanBuilder(flavor("tensorrt")).build(typed(exported.onnx, precision), spec, timings, for_this_gpu=True)  # type: ignore[arg-type]
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"build_s": seconds, "bytes": len(timings.data), "log": heard.lines}))


class Kept:
    """Timings in memory."""

    data = b""

    def read(self) -> bytes:
        return self.data

    def update(self, merge: Any) -> None:
        self.data = merge(self.data)


def child(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(MODELS), default="resnet")
    parser.add_argument("--precision", choices=("fp16", "tf32", "fp32"), default="fp16")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        globals()[chosen.child[0]](*chosen.child[1:])
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    first, second = MODELS[chosen.family]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, model, cache in (
            ("cold", first, "a"),
            ("same", first, "a"),
            ("family", second, "a"),
            ("family_cold", second, "b"),
        ):
            place = Path(folder, cache)
            forget_engines(place)
            found = child("--child", "build", str(place), model, chosen.precision)
            rows.append({"row": name, "model": model, "precision": chosen.precision, **found})
    rows += [
        {"row": "probe", "precision": precision, **child("--child", "probe", precision)}
        for precision in ("fp16", "fp32")
    ]
    print("written:", environment.write("timing_cache", {**environment.describe("timing_cache.py"), "rows": rows}))


def forget_engines(folder: Path) -> None:
    """Delete all but the timings."""
    from keras_trt.cache import EngineCache

    cache = EngineCache(folder)
    for item in cache.items():
        if "timings_of" not in item.manifest:
            cache.discard(item.key)


if __name__ == "__main__":
    main()
