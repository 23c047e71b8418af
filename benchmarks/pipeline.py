"""Where the time of `predict` goes, and what more threads, more slots or other memory would give.

python benchmarks/pipeline.py [--models ResNet50 MobileNetV2] [--batch 32] [--precision fp16] [--rows 8192] [--folder F]

Each way runs `predict` of the same rows on the same engine, and is told as a share of the engine alone:

- `engine alone`: graphs of an inference on data that lies on the GPU, on as many slots as the pipeline has, or others;
- `with copies`: the same with copies from and to page-locked memory, which nobody writes to meanwhile, in each graph;
- `rows sent ahead`: each batch is launched when its rows are there, and meanwhile those of the next are on their way,
  as in `predict`, but for all that the processor does there. What this loses against the engine alone no pipeline can
  have: most likely new rows take room in the GPU's cache;
- `rows sent ahead, host busy`: the same while the host copies a batch of rows for each that is launched, as `predict`
  does, to memory that nobody waits for. What this loses against the one before is the price of the copies themselves;
- `as it is`; `copied in the graph`, where the GPU's own work waits for rows; `N slots, M threads`; page-locked memory
  that is `write-combined`;
- `nothing copied`: the pipeline without the copies of rows on the host, which leaves what the loop itself takes;
- `rows page-locked`: rows that the caller has put there, which are not copied either.

Beside it, the microseconds of a batch that the calling thread spends on each part.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent))

import environment
import models
from predict import depth, measured_again, prepared, times

from keras_trt import cuda
from keras_trt.cuda.runtime import bindings
from keras_trt.runtime import copying, results, slots
from keras_trt.runtime.gpu import GpuRunner
from keras_trt.specs import Pipelining

#: What the calling thread does for a batch: how it is told, and where it is.
PARTS = (
    ("begins the copy", slots._Buffer, "begin"),
    ("waits for the copy", slots._Buffer, "fill"),
    ("launches", cuda.Graph, "launch"),
    ("waits for the GPU", cuda.Stream, "synchronize"),
    ("sleeps", time, "sleep"),  # between two questions what is ready
    ("gives the results", results.Results, "put"),
)
#: How graphs are launched again and again.
REPLAYS = ("engine alone", "with copies", "rows sent ahead", "rows sent ahead, host busy")
#: How many threads copy, and how many batches are under way.
THREADS, DEPTHS = (4, 8), (4, 6, 8)


def ways(found: Pipelining | None) -> Iterator[tuple[str, list[Any]]]:
    """Yield what is tried: its name, and what is another way of doing things in it than what was `found` best."""
    usual = pipelined(found)
    yield "as it is", usual
    yield "copied in the graph", [*usual, mock.patch.object(slots, "AHEAD", sys.maxsize)]
    for count in DEPTHS:
        for threads in THREADS:
            if threads <= copying.cores():
                yield f"{count} slots, {threads} threads", pipelined(Pipelining(count, threads))
    yield "write-combined", [*usual, write_combined()]


def pipelined(how: Pipelining | None) -> list[Any]:
    """Return what lets an engine have so many batches under way, each copied by so many threads."""
    if how is None:
        return []
    use = GpuRunner.pipeline
    return [mock.patch.object(GpuRunner, "pipeline", lambda runner, _: use(runner, how))]


@contextmanager
def entered(patches: list[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def write_combined() -> Any:
    """Return what gives page-locked memory that the processor writes past its caches.

    It reads it so slowly that it is for rows alone, not for the few bytes of answers.
    """
    cudart = bindings()
    usual, combined = cudart.cudaHostAlloc, cudart.cudaHostAllocWriteCombined

    def allocate(size: int, flags: int) -> Any:
        return usual(size, flags if size < 1 << 20 else combined)

    return mock.patch.object(cudart, "cudaHostAlloc", allocate)


@contextmanager
def watched(seconds: dict[str, float]) -> Iterator[None]:
    """Add up what each of `PARTS` takes in this thread; parts within parts count for both."""

    def timed(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*arguments, **keywords)
            finally:
                seconds[part] += time.perf_counter() - began

        return call

    with ExitStack() as patches:
        for part, owner, name in PARTS:
            patches.enter_context(mock.patch.object(owner, name, timed(part, getattr(owner, name))))
        yield


def replayed(fast: Any, rows: np.ndarray, batch: int, count: int, way: str) -> float:
    """Return rows a second of graphs on so many slots, by one of `REPLAYS`."""
    made = [prepared(fast, rows[:batch]) for _ in range(count)]
    (name,) = made[0]._engine.input_names
    size, outputs = rows[:batch].nbytes, set(made[0]._engine.output_names)
    ahead, busy = way.startswith("rows sent ahead"), way.endswith("host busy")
    apart = {name} if ahead else {"engine alone": {name} | outputs, "with copies": set()}[way]
    graphs = [cuda.capture(one._stream, partial(one._enqueue, apart)) for one in made]
    parts = [rows[start : start + batch] for start in range(0, len(rows) - batch + 1, batch)]
    under_way: collections.deque[copying.Copy] = collections.deque()
    with cuda.current_device(0):
        locked = [cuda.PinnedMemory(size) for _ in made if busy]

    def send(i: int) -> None:
        slot = made[i % count]
        slot._stream.synchronize()
        cuda.copy_to_device(slot._buffers[name].device, slot._buffers[name].pinned, size, slot._stream)

    def copy(i: int) -> None:
        if len(under_way) == count:
            under_way.popleft().finish()
        target = locked[i % count].array[:size].view(rows.dtype).reshape(rows[:batch].shape)
        under_way.append(copying.Copy(target, parts[i % len(parts)]))
        under_way[-1].begin()

    def launch() -> None:
        for i in range(200):
            if busy:
                copy(i)
            if ahead:
                send(i + 1)
                made[i % count]._stream.synchronize()
            graphs[i % count].launch(made[i % count]._stream)
        for one in made:
            one._stream.synchronize()

    found = 200 * batch / statistics.median(times(launch, 5))
    for one in under_way:
        one.finish()
    for held in (*graphs, *made, *locked):
        held.close()
    return found


def piped(open_engine: Callable[[], Any], rows: np.ndarray, batch: int, *, copies: bool = True) -> dict[str, Any]:
    """Return rows a second of `predict`, the best of four as others may use the memory too, and where the time goes."""

    def nothing(buffer: slots._Buffer, source: np.ndarray, *how: int) -> None:  # noqa: ARG001
        buffer._rows = len(source)

    with open_engine() as fast, ExitStack() as patches:
        if not copies:
            patches.enter_context(mock.patch.object(slots._Buffer, "begin", nothing))

        def run() -> float:
            began = time.perf_counter()
            fast.predict(rows, batch_size=batch, verbose=0)
            return time.perf_counter() - began

        with environment.alone():
            run()
            best, parts = min(run() for _ in range(4)), collections.defaultdict[str, float](float)
            with watched(parts):
                run()
    each = {part: round(1e6 * total * batch / len(rows), 1) for part, total in parts.items()}
    return {"rows_per_s": len(rows) / best, "us_per_batch": each}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["ResNet50", "MobileNetV2"], choices=models.MODELS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--folder", type=Path, help="of `predict.py`, whose models and engines are used")
    chosen = parser.parse_args()
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # TensorFlow is beside TensorRT
    import keras

    import keras_trt

    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        for name in chosen.models:
            path = folder / f"{name}.keras"
            if not path.exists():  # the same weights in each run, which `predict.py` finds too
                path.parent.mkdir(parents=True, exist_ok=True)
                models.make(name).save(path)
            model: Any = keras.saving.load_model(path, compile=False)
            rows = models.rows_for(model, chosen.rows)
            sizes, cache = (1, chosen.batch, chosen.batch), folder / "cache"
            open_engine = partial(
                keras_trt.accelerate, model, precision=chosen.precision, batch_sizes=sizes, cache=cache, verbose=0
            )
            with open_engine() as fast, environment.alone():
                measured = measured_again(fast)
                print(f"{name}, {fast.precision}: {fast.report().title}, {measured}", flush=True)
                alone = replayed(fast, rows, chosen.batch, depth(fast), "engine alone")
                others = {
                    f"{way}, {count} slots": replayed(fast, rows, chosen.batch, count, way)
                    for way, count in product(REPLAYS, (1, 2, *DEPTHS))
                }

            def tell(way: str, figures: dict[str, Any], name: str = name, alone: float = alone) -> None:
                about = {"model": name, "precision": chosen.precision, "batch": chosen.batch, "way": way}
                table.append({**about, **figures, "ratio": figures["rows_per_s"] / alone})
                print(json.dumps(table[-1]), flush=True)

            tell("engine alone", {"rows_per_s": alone})
            for way, found in others.items():
                tell(way, {"rows_per_s": found})
            with entered(pipelined(measured)):
                tell("nothing copied", piped(open_engine, rows, chosen.batch, copies=False))
            with cuda.current_device(0):
                locked = cuda.PinnedMemory(rows.nbytes)
            there = locked.array.view(rows.dtype).reshape(rows.shape)
            there[...] = rows
            with entered(pipelined(measured)):
                tell("rows page-locked", piped(open_engine, there, chosen.batch))
            locked.close()
            for way, patches in ways(measured):
                with entered(patches):
                    tell(way, piped(open_engine, rows, chosen.batch))
    print("written:", environment.write("pipeline", {**environment.describe("pipeline.py"), "rows": table}))


if __name__ == "__main__":
    main()
