"""`predict` of a model side by side: Keras on each backend, ONNX Runtime, keras_trt, and its engine alone.

python benchmarks/predict.py ResNet50 [--precisions fp16 tf32] [--batches 1 8 32 128] [--rows 16384]
    [--engines keras-tensorflow keras-jax keras_trt …] [--python keras-jax=/usr/bin/python3]

Each engine runs in a process of its own, in the interpreter that has it, on the same arrays and weights; what runs
TensorRT may share one. Their answers are compared. What is done is kept in a folder, so that a run that was cut off
goes on where it was (`--folder`).

"Batch b" is an engine whose largest batch is b, and the user's batch_size b; at batch 1 the user gives one row a call.
An engine that would take long over all rows is given fewer.
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
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent))

import environment
import models

#: `-half` is the same model under the dtype policy mixed_float16. On TensorFlow Keras lets XLA compile a model, which
#: takes minutes for some: `-without-xla` is as `compile(jit_compile=False)` has it.
KERAS = (
    "keras-tensorflow", "keras-tensorflow-half", "keras-tensorflow-without-xla",
    "keras-jax", "keras-jax-half", "keras-torch",
)  # fmt: skip
OURS = ("keras_trt", "tensorrt-bare", "limit-pcie")
ENGINES = (*KERAS, "onnxruntime", *OURS)
#: Rows whose answers are kept and compared.
COMPARED = 128
#: Single calls whose times are measured.
CALLS = 300
#: How long one `predict` of many rows may take, in seconds.
SECONDS = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=models.MODELS)
    parser.add_argument("--precisions", nargs="+", default=["fp16"], help="of keras_trt's engines")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--python", nargs="+", default=[], metavar="ENGINE=INTERPRETER")
    parser.add_argument("--optimization-level", type=int, help="of keras_trt's engines; TensorRT's own if left out")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--child", nargs="+", choices=(*ENGINES, "make", "build"), help=argparse.SUPPRESS)
    parser.add_argument("--table", action="store_true", help="print what the folder holds, and measure nothing")
    asked = parser.parse_args()
    if asked.child:
        for engine in asked.child:
            child(asked, engine)
        return
    pythons = dict(one.split("=", 1) for one in asked.python)
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (asked.table or (folder / f"{asked.model}.keras").exists()):
            start(asked, folder, "make", sys.executable)
        for engine in asked.engines:
            if not asked.table and not all(path.exists() for path in results(asked, folder, engine)):
                start(asked, folder, engine, pythons.get(engine, sys.executable))
        found = [path for engine in asked.engines for path in results(asked, folder, engine) if path.exists()]
        rows = [json.loads(path.read_text()) for path in found]
        compare(rows, [path.with_suffix(".npy") for path in found])
    table(rows, asked.precisions)
    print("written:", environment.write(f"predict-{asked.model}", {**environment.describe("predict.py"), "rows": rows}))


def backend_of(engine: str) -> str:
    """Return the backend that Keras has beside an engine."""
    return engine.split("-")[1] if engine in KERAS else "tensorflow"


def precision_of(engine: str, asked: Any) -> list[str]:
    """Return the precisions that an engine runs in."""
    if engine in KERAS:
        return ["mixed_float16" if engine.endswith("-half") else "float32"]
    fixed = {"onnxruntime": ["fp32"], "limit-pcie": [""]}
    return fixed.get(engine, list(asked.precisions))


def results(asked: Any, folder: Path, engine: str) -> list[Path]:
    precisions = precision_of(engine, asked)
    return [result(folder, asked, engine, precision, batch) for precision in precisions for batch in asked.batches]


def result(folder: Path, asked: Any, engine: str, precision: str, batch: int) -> Path:
    level = asked.optimization_level if engine in OURS else None
    return folder / f"{asked.model}-{engine}-{precision}-{batch}{'' if level is None else f'-level-{level}'}.json"


def start(asked: Any, folder: Path, engine: str, python: str) -> None:
    """Run one engine in a process of its own; a batch size that cannot leaves no result."""
    command = [python, __file__, asked.model, "--rows", str(asked.rows), "--folder", str(folder), "--child", engine]
    command += ["--precisions", *asked.precisions, "--batches", *map(str, asked.batches)]
    if asked.optimization_level is not None:
        command += ["--optimization-level", str(asked.optimization_level)]
    done = subprocess.run(command, env={**os.environ, "KERAS_BACKEND": backend_of(engine)}, check=False)
    if done.returncode:
        print(f"{engine} cannot run here (exit status {done.returncode})")
        if engine in ("make", "keras_trt"):
            sys.exit(1)


def child(asked: Any, engine: str) -> None:
    """Measure one engine with each batch size that has no row yet, and write its rows."""
    path = asked.folder / f"{asked.model}.keras"
    if engine == "make":
        models.make(asked.model).save(path)
        return
    import keras

    model = keras.saving.load_model(path, compile=False)
    if engine.endswith("-half"):
        keras.config.set_dtype_policy("mixed_float16")
        half = models.MODELS[asked.model]()
        half.set_weights(model.get_weights())
        model = half
    if engine.endswith("-without-xla"):
        model.compile(jit_compile=False)
    if engine == "build":
        for precision, batch in product(asked.precisions, asked.batches):
            accelerate(model, asked.folder, engine, precision, batch, asked.optimization_level).close()
        return
    few = engine in ("tensorrt-bare", "limit-pcie")  # these read nothing but sizes of rows
    with environment.alone():  # which writes some gigabytes
        rows = models.rows_for(model, max(asked.batches) if few else asked.rows if max(asked.batches) > 1 else CALLS)
    for precision, batch in product(precision_of(engine, asked), asked.batches):
        path = result(asked.folder, asked, engine, precision, batch)
        if path.exists():
            continue
        row: dict[str, Any] = {"model": asked.model, "engine": engine, "precision": precision, "batch": batch}
        if engine in KERAS:
            row |= measured(model, rows, batch, path)
        elif engine == "limit-pcie":
            with environment.alone():
                row |= pcie(rows[:batch].nbytes, batch)
        else:
            level = asked.optimization_level
            with accelerate(model, asked.folder, engine, precision, batch, level) as fast:
                row |= {} if level is None else {"optimization_level": level}
                row |= accelerated(fast, rows, row, asked, path)
        path.write_text(json.dumps(row))


def accelerate(model: Any, folder: Path, engine: str, precision: Any, batch: int, level: int | None = None) -> Any:
    """Return the drop-in of a row, whose engine is in the folder from then on."""
    import keras_trt

    backend: Any = "onnxruntime" if engine == "onnxruntime" else "auto"
    return keras_trt.accelerate(
        model,
        backend=backend,
        precision=precision,
        batch_sizes=(1, batch, batch),
        optimization_level=level,
        cache=folder / "cache",
        verbose=0,
    )


def accelerated(fast: Any, rows: np.ndarray, row: dict[str, Any], asked: Any, path: Path) -> dict[str, Any]:
    batch = row["batch"]
    about = {"precision": fast.precision, "runs": f"{fast.report().title} on {fast.report().device_name}"}
    if row["engine"] == "onnxruntime":
        return about | measured(fast, rows, batch, path)
    if row["engine"] == "tensorrt-bare":
        ours = result(asked.folder, asked, "keras_trt", row["precision"], batch)
        known = json.loads(ours.read_text()) if ours.exists() else {}
        with environment.alone():
            return about | bare(fast, rows[:batch], known.get("slots") or depth(fast))
    with environment.alone():
        measured_again(fast)
    found = about | {"slots": depth(fast)} | measured(fast, rows, batch, path)
    with environment.alone():
        return found | beside_raw(fast, rows[:batch])


def measured(model: Any, rows: np.ndarray, batch: int, path: Path) -> dict[str, Any]:
    """Time single calls and, above batch 1, a `predict` of many rows."""

    def predict(count: int) -> float:
        (seconds,) = times(lambda: model.predict(rows[:count], batch_size=batch, verbose=0), 1, warm_up=0)
        return seconds

    # Full batches alone: each further size is compiled once more by XLA, which takes a minute for some models.
    few = max(COMPARED, batch)
    if batch > 1:
        answers = model.predict(rows[:COMPARED], batch_size=batch, verbose=0)
        if predict(few) < SECONDS / 10:
            few = min(len(rows), 16 * batch)
            predict(few)  # all slots are made
    else:
        answers = one_by_one(model, rows[:COMPARED])
    np.save(path.with_suffix(".npy"), np.asarray(answers, np.float32))
    given = rows[:batch]
    model.predict_on_batch(given)  # compiles, which others need not wait for
    with environment.alone():
        calls = times(lambda: model.predict_on_batch(given), CALLS if batch == 1 else 30)
        found = {"median_ms": statistics.median(calls) * 1e3, "p99_ms": float(np.quantile(calls, 0.99)) * 1e3}
        if batch == 1:
            return found | {"rows": 1, "rows_per_s": 1e3 / found["median_ms"]}
        count = min(len(rows), max(few, int(SECONDS * few / predict(few)) // batch * batch))
        return found | {"rows": count, "rows_per_s": count / statistics.median(predict(count) for _ in range(3))}


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


def prepared(fast: Any, rows: np.ndarray) -> Any:
    """Return a slot of an engine of one input that has run once, as a capture needs, with the rows on the GPU.

    They are real ones: a GPU takes less power, and so less time, for zeros.
    """
    from keras_trt.runtime.slots import Slot

    session = fast._session
    slot = Slot(session._runner._engine)
    (name,) = slot._engine.input_names
    slot.prepare(((name, (len(rows), *session.profile.shapes[name].max[1:])),))
    slot._buffers[name].array[...] = rows
    slot._enqueue()
    slot._stream.synchronize()
    return slot


def depth(fast: Any) -> int:
    """Return how many batches `predict` has under way at once."""
    from keras_trt.runtime import SLOTS

    found = fast._session.measured.pipelining
    return found.slots if found else SLOTS


def measured_again(fast: Any) -> Any:
    """Let an engine find out alone how its pipelines run best, as others may have been built beside it; return that."""
    fast._session.measure()
    return fast._session.measured.pipelining


def bare(fast: Any, rows: np.ndarray, count: int) -> dict[str, Any]:
    """Time the engine alone: graphs of an inference on data that lies on the GPU, on as many slots as `predict` has."""
    from keras_trt import cuda

    slots = [prepared(fast, rows) for _ in range(count)]
    graphs = [cuda.capture(slot._stream, partial(slot._context.enqueue, slot._stream.address)) for slot in slots]

    def launch(count: int) -> None:
        for i in range(count):
            graphs[i % len(slots)].launch(slots[i % len(slots)]._stream)
        for slot in slots[:count]:
            slot._stream.synchronize()

    many, calls = times(lambda: launch(200), 5), times(lambda: launch(1), CALLS)
    for one in (*graphs, *slots):
        one.close()
    return {
        "median_ms": statistics.median(calls) * 1e3,
        "p99_ms": float(np.quantile(calls, 0.99)) * 1e3,
        "rows_per_s": 200 * len(rows) / statistics.median(many),
        "slots": len(slots),
    }


def beside_raw(fast: Any, given: np.ndarray) -> dict[str, float]:
    """Time `predict_on_batch` by turns with what it is built on: a graph of the copies from and to page-locked memory
    and the inference, launched and waited for. Rows that the caller has in such memory need no copy on the host."""
    from keras_trt import cuda

    slot = prepared(fast, given)
    graph = cuda.capture(slot._stream, slot._enqueue)
    with cuda.current_device(0):
        locked = cuda.PinnedMemory(given.nbytes)
    there = locked.array[: given.nbytes].view(given.dtype).reshape(given.shape)
    there[...] = given

    def launch() -> None:
        graph.launch(slot._stream)
        slot._stream.synchronize()

    seconds: dict[str, list[float]] = {"raw": [], "usual": [], "page-locked": []}
    for rows, what in ((given, "usual"), (there, "page-locked")):
        for _ in range(CALLS):
            seconds["raw"] += times(launch, 1, warm_up=0)
            seconds[what] += times(partial(fast.predict_on_batch, rows), 1, warm_up=0)
    for one in (graph, slot, locked):
        one.close()
    medians = {what: statistics.median(found) for what, found in seconds.items()}
    return {
        "raw_median_ms": medians["raw"] * 1e3,
        "over_raw_us": (medians["usual"] - medians["raw"]) * 1e6,
        "page_locked_over_raw_us": (medians["page-locked"] - medians["raw"]) * 1e6,
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


def compare(rows: list[dict[str, Any]], answers: list[Path]) -> None:
    """Add to each row how far its answers are from Keras's in float32, and ratios to keras_trt."""
    found = {i: np.load(path) for i, path in enumerate(answers) if path.exists()}
    whole = [i for i in found if rows[i]["engine"] in KERAS and rows[i]["precision"] == "float32"]
    if whole:
        wanted = found[whole[0]]
        apart = np.linalg.norm(wanted[0] - wanted[1]) / np.linalg.norm(wanted[0])
        print(f"two rows of {rows[whole[0]]['engine']} differ by {apart:.1e}")
        for i, got in found.items():
            rows[i]["relative_l2"] = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
    ours = [row for row in rows if row["engine"] == "keras_trt"]
    for row in rows:
        row["keras_trt_ratios"] = {
            one["precision"]: one["rows_per_s"] / row["rows_per_s"] for one in ours if one["batch"] == row["batch"]
        }
        if "over_raw_us" in row:
            print(
                f"predict_on_batch of {row['batch']} in {row['precision']} takes {row['over_raw_us']:.0f} µs more than "
                f"copies and graph alone, {row['page_locked_over_raw_us']:.0f} of page-locked rows"
            )


def table(rows: list[dict[str, Any]], precisions: list[str]) -> None:
    """Print the rows; the columns named by a precision tell how many times as fast keras_trt is in it."""
    names = ["engine", "precision", "batch", "median ms", "p99 ms", "rows/s", *precisions, "difference"]
    widths = [28, 13, 5, 10, 9, 10, *[8] * len(precisions), 10]
    print(" ".join(name.rjust(width) for name, width in zip(names, widths, strict=True)))
    for row in rows:
        ratios = [f"{row['keras_trt_ratios'].get(precision, float('nan')):7.2f}x" for precision in precisions]
        cells = [f"{row['median_ms']:.3f}", f"{row['p99_ms']:.3f}", f"{row['rows_per_s']:.0f}", *ratios]
        cells = [row["engine"], row["precision"], str(row["batch"]), *cells]
        cells.append(f"{row['relative_l2']:.1e}" if "relative_l2" in row else "")
        print(" ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))


if __name__ == "__main__":
    main()
