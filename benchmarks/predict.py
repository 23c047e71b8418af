"""`predict` of a model side by side: Keras on each backend, ONNX Runtime, keras_trt, and its engine alone.

python benchmarks/predict.py ResNet50 [--precision fp16] [--batches 1 8 32 128] [--rows 16384]
    [--engines keras-tensorflow keras-jax keras_trt …] [--python keras-jax=/usr/bin/python3]

Each engine runs in a process of its own, in the interpreter that has it, on the same arrays and weights; their answers
are compared. What is done is kept in a folder, so that a run that was cut off goes on where it was (`--folder`).

"Batch b" is an engine whose largest batch is b, and the user's batch_size b; at batch 1 the user gives one row a call.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent))

import environment
import models

#: `-half` is the same model under the dtype policy mixed_float16.
KERAS = ("keras-tensorflow", "keras-tensorflow-half", "keras-jax", "keras-jax-half", "keras-torch")
ENGINES = (*KERAS, "onnxruntime", "keras_trt", "tensorrt-bare", "limit-pcie")
#: Rows whose answers are kept and compared.
COMPARED = 64
#: Single calls whose times are measured.
CALLS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=models.MODELS)
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--python", nargs="+", default=[], metavar="ENGINE=INTERPRETER")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--child", choices=(*ENGINES, "make"), help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked)
        return
    pythons = dict(one.split("=", 1) for one in asked.python)
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / f"{asked.model}.keras").exists():
            start(asked, folder, "make", 0, sys.executable)
        for engine in asked.engines:
            for batch in asked.batches:
                if not result(folder, asked, engine, batch).exists():
                    start(asked, folder, engine, batch, pythons.get(engine, sys.executable))
        rows = [
            json.loads(path.read_text())
            for engine in asked.engines
            for batch in asked.batches
            if (path := result(folder, asked, engine, batch)).exists()
        ]
        compare(rows, folder, asked)
    table(rows)
    print("written:", environment.write(f"predict-{asked.model}", {**environment.describe("predict.py"), "rows": rows}))


def result(folder: Path, asked: Any, engine: str, batch: int) -> Path:
    return folder / f"{asked.model}-{asked.precision}-{engine}-{batch}.json"


def start(asked: Any, folder: Path, engine: str, batch: int, python: str) -> None:
    """Run one engine with one batch size in a process of its own; one that cannot run leaves no result."""
    command = [python, __file__, asked.model, "--precision", asked.precision, "--rows", str(asked.rows)]
    command += ["--folder", str(folder), "--child", engine, "--batch", str(batch)]
    backend = engine.split("-")[1] if engine in KERAS else "tensorflow"
    done = subprocess.run(command, env={**os.environ, "KERAS_BACKEND": backend}, check=False)
    if done.returncode:
        print(f"{engine} with batch {batch} cannot run here (exit status {done.returncode})")
        if engine == "make":
            sys.exit(1)


def child(asked: Any) -> None:
    """Measure one engine with one batch size and write its row."""
    path = asked.folder / f"{asked.model}.keras"
    if asked.child == "make":
        models.make(asked.model).save(path)
        return
    import keras

    model = keras.saving.load_model(path, compile=False)
    alone = asked.child in ("tensorrt-bare", "limit-pcie")  # these read nothing of the rows but their size
    count = asked.batch if alone else CALLS if asked.batch == 1 else asked.rows
    rows = models.rows_for(model, count)
    row: dict[str, Any] = {"model": asked.model, "precision": asked.precision, "engine": asked.child}
    row |= {"batch": asked.batch, "rows": len(rows)}
    if asked.child in KERAS:
        row["precision"] = "float32"
        if asked.child.endswith("-half"):
            row["precision"] = "mixed_float16"
            keras.config.set_dtype_policy("mixed_float16")
            half = models.MODELS[asked.model]()
            half.set_weights(model.get_weights())
            model = half
        row |= measured(model, rows, asked)
    elif asked.child == "limit-pcie":
        row |= pcie(rows[: asked.batch].nbytes, asked.batch)
    else:
        row |= accelerated(model, rows, asked)
    result(asked.folder, asked, asked.child, asked.batch).write_text(json.dumps(row))


def accelerated(model: Any, rows: np.ndarray, asked: Any) -> dict[str, Any]:
    import keras_trt

    options: dict[str, Any] = {"cache": asked.folder / "cache", "batch_sizes": (1, asked.batch, asked.batch)}
    if asked.child == "onnxruntime":
        fast = keras_trt.accelerate(model, backend="onnxruntime", precision="fp32", verbose=0, **options)
    else:
        fast = keras_trt.accelerate(model, precision=asked.precision, verbose=0, **options)
    with fast:
        about = {"precision": fast.precision, "runs": f"{fast.report().title} on {fast.report().device_name}"}
        if asked.child == "tensorrt-bare":
            return about | bare(fast, asked.batch)
        return about | measured(fast, rows, asked)


def measured(model: Any, rows: np.ndarray, asked: Any) -> dict[str, Any]:
    """Time single calls and, above batch 1, a `predict` of all rows."""
    batch = rows[: asked.batch]
    answers = model.predict_on_batch(rows[:COMPARED]) if asked.batch > 1 else one_by_one(model, rows[:COMPARED])
    np.save(result(asked.folder, asked, asked.child, asked.batch).with_suffix(".npy"), np.asarray(answers, np.float32))
    calls = times(lambda: model.predict_on_batch(batch), CALLS if asked.batch == 1 else 30)
    found = {"median_ms": statistics.median(calls) * 1e3, "p99_ms": float(np.quantile(calls, 0.99)) * 1e3}
    if asked.batch == 1:
        return found | {"rows_per_s": 1e3 / found["median_ms"]}
    model.predict(rows[: 3 * asked.batch + 1], batch_size=asked.batch, verbose=0)  # traces, and all slots are made
    whole = times(lambda: model.predict(rows, batch_size=asked.batch, verbose=0), 3, warm_up=0)
    return found | {"rows_per_s": len(rows) / statistics.median(whole)}


def one_by_one(model: Any, rows: np.ndarray) -> np.ndarray:
    return np.concatenate([np.asarray(model.predict_on_batch(rows[i : i + 1])) for i in range(len(rows))])


def times(call: Callable[[], Any], count: int, seconds: float = 20.0, warm_up: int = 2) -> list[float]:
    """Return the wall times of calls after a warm-up: as many as asked for, or as fit into the seconds."""
    for _ in range(warm_up):
        call()
    found: list[float] = []
    while len(found) < count and (sum(found) < seconds or len(found) < 1):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def bare(fast: Any, batch: int) -> dict[str, Any]:
    """Time the engine alone: graphs of an inference on data that lies on the GPU, on as many slots as `predict` has.

    Beside it a single call with the copies from and to page-locked memory, which `predict_on_batch` is built on.
    """
    from keras_trt import cuda
    from keras_trt.runtime import MAX_SLOTS
    from keras_trt.runtime.slots import Slot

    session = fast._session
    engine = session._runner._engine
    shapes = tuple((name, (batch, *session.profile.shapes[name].max[1:])) for name in engine.input_names)
    slots = [Slot(engine) for _ in range(MAX_SLOTS)]
    graphs = []
    for slot in slots:
        slot.prepare(shapes)
        infer = partial(slot._context.enqueue, slot._stream.address)
        infer()  # the warm-up that a capture needs
        slot._stream.synchronize()
        graphs.append(cuda.capture(slot._stream, infer))
    graphs.append(cuda.capture(slots[0]._stream, slots[0]._enqueue))

    def launch(count: int) -> None:
        for i in range(count):
            graphs[i % MAX_SLOTS].launch(slots[i % MAX_SLOTS]._stream)
        for slot in slots:
            slot._stream.synchronize()

    def single(graph: Any) -> None:
        graph.launch(slots[0]._stream)
        slots[0]._stream.synchronize()

    many = times(lambda: launch(200), 5)
    calls, with_copies = times(lambda: single(graphs[0]), CALLS), times(lambda: single(graphs[-1]), CALLS)
    for graph in graphs:
        graph.close()
    for slot in slots:
        slot.close()
    return {
        "median_ms": statistics.median(calls) * 1e3,
        "p99_ms": float(np.quantile(calls, 0.99)) * 1e3,
        "rows_per_s": 200 * batch / statistics.median(many),
        "with_copies_median_ms": statistics.median(with_copies) * 1e3,
    }


def pcie(size: int, batch: int) -> dict[str, Any]:
    """Time the copy of a batch from page-locked memory to the GPU, which no way through the host can beat."""
    from keras_trt import cuda

    with cuda.current_device(0):
        stream, pinned, device = cuda.Stream(), cuda.PinnedMemory(size), cuda.DeviceMemory(size)

        def copy(count: int) -> None:
            for _ in range(count):
                cuda.copy_to_device(device, pinned, size, stream)
            stream.synchronize()

        single, many = times(lambda: copy(1), CALLS), times(lambda: copy(100), 5)
        for one in (stream, pinned, device):
            one.close()
    return {
        "median_ms": statistics.median(single) * 1e3,
        "p99_ms": float(np.quantile(single, 0.99)) * 1e3,
        "rows_per_s": 100 * batch / statistics.median(many),
    }


def compare(rows: list[dict[str, Any]], folder: Path, asked: Any) -> None:
    """Add to each row how far its answers are from those of the first engine that answers, and ratios to all others."""
    first: np.ndarray | None = None
    for row in rows:
        path = result(folder, asked, row["engine"], row["batch"]).with_suffix(".npy")
        if not path.exists():
            continue
        answers = np.load(path)
        if first is None:
            first = answers
            apart = np.linalg.norm(first[0] - first[1]) / np.linalg.norm(first[0])
            print(f"two rows of {row['engine']} differ by {apart:.1e}")
        row["relative_l2"] = float(np.linalg.norm(answers - first) / np.linalg.norm(first))
    raw = {row["batch"]: row["with_copies_median_ms"] for row in rows if "with_copies_median_ms" in row}
    for row in rows:
        if row["engine"] == "keras_trt" and row["batch"] in raw:
            row["over_raw_us"] = (row["median_ms"] - raw[row["batch"]]) * 1e3
            print(
                f"predict_on_batch of {row['batch']} takes {row['over_raw_us']:.0f} µs more than copies and graph alone"
            )
    ours = {row["batch"]: row["rows_per_s"] for row in rows if row["engine"] == "keras_trt"}
    for row in rows:
        if row["batch"] in ours:
            row["keras_trt_ratio"] = ours[row["batch"]] / row["rows_per_s"]


def table(rows: list[dict[str, Any]]) -> None:
    names = ("engine", "precision", "batch", "median ms", "p99 ms", "rows/s", "keras_trt", "difference")
    widths = (21, 13, 5, 10, 9, 10, 9, 10)
    print(" ".join(name.rjust(width) for name, width in zip(names, widths, strict=True)))
    for row in rows:
        print(
            f"{row['engine']:>21} {row['precision']:>13} {row['batch']:5} {row['median_ms']:10.3f} "
            f"{row['p99_ms']:9.3f} "
            f"{row['rows_per_s']:10.0f} {row.get('keras_trt_ratio', float('nan')):8.2f}x "
            f"{row.get('relative_l2', float('nan')):10.1e}"
        )


if __name__ == "__main__":
    main()
