"""Many threads on one model, and very many calls: throughput, right answers, and whether memory grows.

python benchmarks/load.py [--models MLP MobileNetV2] [--precision fp16] [--threads 1 5 16 32] [--calls 200000]

Each thread calls `predict_on_batch` with one row or 32 of its own, for moments with each number of threads by turns, of
which the median counts: the same calls of one thread were seen to take a fifth longer or shorter some seconds later.
The calls after that are of mixed batch sizes; between them the memory of the process and what is taken of the GPU's are
read.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent))

import environment
import models

BATCH = 32
#: How often each number of threads has its turn.
ROUNDS = 10
#: Sizes of single calls: the usual ones, odd ones, and more than an engine takes; each as often as it is small, so that
#: of all calls together each size has as many rows.
SIZES = np.array((1, 2, 3, 7, 8, 16, 31, 32, 33, 57, 150))


def run_threads(
    fast: Any, rows: np.ndarray, wanted: np.ndarray, limit: float, *, batch: int, count: int, seconds: float
) -> dict[str, Any]:
    """Let threads call for a while; return rows a second of all and how many answers were wrong."""
    calls, wrong, ends = [0] * count, [0] * count, float("inf")
    started = threading.Barrier(count + 1)

    def run(index: int) -> None:
        start = index * batch % (len(rows) - batch)
        mine = slice(start, start + batch)
        given, right = rows[mine].copy(), wanted[mine]
        started.wait()
        while time.perf_counter() < ends:
            got = fast.predict_on_batch(given)
            calls[index] += 1
            wrong[index] += not bool(np.abs(got - right).max() <= limit)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    started.wait()
    begin = time.perf_counter()
    ends = begin + seconds
    for thread in threads:
        thread.join()
    passed = time.perf_counter() - begin
    found = {"batch": batch, "threads": count, "rows_per_s": sum(calls) * batch / passed}
    return {**found, "calls": sum(calls), "wrong": sum(wrong)}


def summed(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what rounds of one number of threads gave."""
    rates = sorted(one["rows_per_s"] for one in found)
    rate = {"rows_per_s": statistics.median(rates), "slowest": rates[0], "fastest": rates[-1]}
    return {**found[0], **rate, **{what: sum(one[what] for one in found) for what in ("calls", "wrong")}}


def largest_difference(fast: Any, rows: np.ndarray, wanted: np.ndarray) -> float:
    """Return how far the engine is from Keras, one batch at a time; rows are farther apart, or nothing is proved."""
    differences = [
        np.abs(fast.predict_on_batch(rows[i : i + BATCH]) - wanted[i : i + BATCH]).max()
        for i in range(0, len(rows), BATCH)
    ]
    found = max(float(max(differences)), 1e-6)
    apart = float(np.abs(np.diff(wanted, axis=0)).max(axis=1).min())
    if apart < 10 * found:
        raise SystemExit(f"Rows are {apart:.1e} apart and the engine is {found:.1e} off: a mix-up would not show.")
    return found


def run_calls(fast: Any, rows: np.ndarray, count: int, reads: int = 10) -> list[dict[str, Any]]:
    """Make single calls of mixed sizes and return what memory is held after each part of them."""
    generator, found, begin = np.random.default_rng(0), [], time.perf_counter()
    for part in range(reads + 1):
        calls = 2000 if part == 0 else count // reads  # the first part is a warm-up
        for size in generator.choice(SIZES, calls, p=1 / SIZES / (1 / SIZES).sum()):
            fast.predict_on_batch(rows[:size])
        found.append({"calls": part * (count // reads), "seconds": time.perf_counter() - begin, **memory()})
        print(found[-1], flush=True)
    return found


def memory() -> dict[str, float]:
    from keras_trt import cuda

    status = Path("/proc/self/status").read_text().splitlines()
    resident = int(next(line for line in status if line.startswith("VmRSS")).split()[1])
    row = {"host_mib": resident / 1024, "threads": threading.active_count()}
    if cuda.device_count():
        free, total = cuda.free_memory(0)
        row["device_mib"] = (total - free) / (1 << 20)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["MLP", "MobileNetV2"])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 5, 16, 32])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each number of threads, in all")
    parser.add_argument("--calls", type=int, default=200_000)
    chosen = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras_trt

    table: list[dict[str, Any]] = []
    for name in chosen.models:
        model: Any = models.make(name)
        rows = models.rows_for(model, 8 * BATCH)
        wanted = np.asarray(model.predict(rows, batch_size=BATCH, verbose=0))
        options: dict[str, Any] = {"backend": chosen.backend, "precision": chosen.precision, "cache": None}
        with keras_trt.accelerate(model, verbose=0, **options) as fast:
            about = {"model": name, "engine": fast.report().title, "precision": fast.precision}
            with environment.alone():
                limit = 3 * largest_difference(fast, rows, wanted)
                for batch in (1, BATCH):
                    run = partial(run_threads, fast, rows, wanted, limit, batch=batch, seconds=chosen.seconds / ROUNDS)
                    rounds = [[run(count=count) for count in chosen.threads] for _ in range(ROUNDS)]
                    for found in zip(*rounds, strict=True):
                        table.append({**about, **summed(found)})
                        print(table[-1], flush=True)
            if chosen.calls:
                table.append({**about, "memory": run_calls(fast, rows, chosen.calls)})
    print("written:", environment.write("load", {**environment.describe("load.py"), "rows": table}))


if __name__ == "__main__":
    main()
