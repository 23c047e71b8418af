"""Recurrent layers as one ONNX operator against the loop that TensorFlow traces: size of the plan, time of a batch.

python benchmarks/recurrent.py [--precision tf32]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent))

import environment
import keras
import numpy as np

from keras_trt.backends import BuildSpec
from keras_trt.backends.tensorrt import TensorRTBackend
from keras_trt.export import export
from keras_trt.precision import typed
from keras_trt.runtime import Session
from keras_trt.specs import OptimizationProfile, ShapeRange

STEPS, FEATURES, UNITS, BATCHES, RUNS = 64, 64, 128, (1, 32, 128), 200
LAYERS = ("LSTM", "GRU")


@contextmanager
def as_loop() -> Iterator[None]:
    """Trace layers as Keras wrote them."""
    with mock.patch("keras_trt.export.trace.as_onnx_operators", return_value=nullcontext()):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--precision", default="tf32", choices=["fp16", "tf32", "fp32"])
    precision = parser.parse_args().precision
    backend = TensorRTBackend("tensorrt", [0])
    rows = []
    for kind in LAYERS:
        keras.utils.set_random_seed(0)
        layer = getattr(keras.layers, kind)(UNITS)
        model = keras.Sequential([keras.Input((STEPS, FEATURES)), layer], name=kind.lower())
        one_operator = export(model)
        with as_loop():
            loop = export(model)
        for form, exported in (("operator", one_operator), ("loop", loop)):
            rows += measure(backend, model, form, exported, precision)
    print("written:", environment.write("recurrent", {**environment.describe("recurrent.py"), "rows": rows}))


def measure(backend: Any, model: Any, form: str, exported: Any, precision: Any) -> list[dict[str, Any]]:
    shapes = [(batch, STEPS, FEATURES) for batch in BATCHES]
    name = exported.signature.inputs[0].name
    start = time.perf_counter()
    profile = OptimizationProfile({name: ShapeRange(*shapes)})
    plan = backend.build(typed(exported.onnx, precision), BuildSpec(precision, profile))
    built = time.perf_counter() - start
    signature = exported.signature
    session, rows = Session(backend.load(plan), signature, profile, rows_independent=True), []
    for shape in shapes:
        x = np.random.default_rng(0).standard_normal(shape).astype("float32")
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            (answer,) = session.run([x])
            times.append((time.perf_counter() - start) * 1e3)
        wanted = model.predict_on_batch(x)
        row = {
            "model": model.name,
            "precision": precision,
            "engine": "keras_trt",
            "form": form,
            "batch": shape[0],
            "plan_bytes": len(plan),
            "build_s": built,
            "median_ms": statistics.median(times),
            "p99_ms": float(np.quantile(times, 0.99)),
            "rows_per_s": shape[0] / statistics.median(times) * 1e3,
            "relative_l2": float(np.linalg.norm(answer - wanted) / np.linalg.norm(wanted)),
        }
        rows.append(row)
        print(
            f"{row['model']} {form:9} batch {row['batch']:4}  {row['median_ms']:.3f} ms  plan {len(plan) >> 10} KiB  "
            f"build {built:.1f} s  difference {row['relative_l2']:.1e}"
        )
    session.close()
    return rows


if __name__ == "__main__":
    main()
