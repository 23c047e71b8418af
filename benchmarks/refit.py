"""What a refit takes, against a build, and what refittability costs: `python benchmarks/refit.py [--backend tensorrt]`.

For each model and precision, in one process: an engine is built that cannot be refitted and one that can, both are
timed at two batch sizes, then all weights change and the second is refitted. Each row has its steps and what came
of it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent))

import environment
import models
import numpy as np

MODELS = ("ResNet50", "MobileNetV2")


class Heard(logging.Handler):
    """Keeps why a refit failed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage()[:500])


def calls_per_second(fast: Any, rows: Any, seconds: float) -> float:
    """Return how many batches a second run, numpy to numpy, after a warm-up."""
    for _ in range(5):
        fast.predict_on_batch(rows)
    start, calls = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        fast.predict_on_batch(rows)
        calls += 1
    return calls / passed


def measure(name: str, backend: Any, precision: Any, level: int | None, seconds: float) -> list[dict[str, Any]]:

    import keras_trt

    heard = Heard()
    logging.getLogger("keras_trt").addHandler(heard)
    model = models.make(name)
    images = np.random.default_rng(0).standard_normal((32, *model.input_shape[1:])).astype("float32")
    rows = []
    with tempfile.TemporaryDirectory() as cache:

        def row(what: str, *, refittable: bool) -> None:
            heard.lines.clear()
            fast = keras_trt.accelerate(
                model, backend=backend, precision=precision, optimization_level=level, batch_sizes=(1, 8, 32),
                refittable=refittable, cache=cache, verbose=0,
            )  # fmt: skip
            with fast:
                report = fast.report()
                rows.append(
                    {
                        "what": what,
                        "model": name,
                        "engine": report.title,
                        "precision": report.precision,
                        "refittable": refittable,
                        "origin": report.origin,
                        "steps_s": dict(report.seconds),
                        "relative_l2": max((one.relative_l2 for one in report.differences), default=None),
                        "batches_per_s": {
                            size: calls_per_second(fast, images[:size], seconds) for size in (1, 32) if seconds
                        },
                        "log": list(heard.lines),
                    }
                )
            print(rows[-1], flush=True)

        row("first", refittable=False)
        row("first", refittable=True)
        generator = np.random.default_rng(1)
        for variable in model.variables:
            value = np.asarray(variable)
            if value.dtype == np.float32:
                variable.assign(value * generator.uniform(0.9, 1.1, value.shape))
        row("other weights", refittable=True)
        row("other weights", refittable=False)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="tensorrt")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--precisions", nargs="+", default=["fp16"])
    parser.add_argument("--optimization-level", type=int)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each batch size is timed; 0: not at all")
    chosen = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    rows = [
        row
        for name in chosen.models
        for precision in chosen.precisions
        for row in measure(name, chosen.backend, precision, chosen.optimization_level, chosen.seconds)
    ]
    print("written:", environment.write("refit", {**environment.describe("refit.py"), "rows": rows}))


if __name__ == "__main__":
    main()
