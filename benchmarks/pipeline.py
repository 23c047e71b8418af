"""Where the time of `predict` goes, and what more threads, more slots or other memory would give.

python benchmarks/pipeline.py [--models ResNet50 MobileNetV2] [--batch 32] [--precision fp16] [--rows 8192] [--folder F]

Each way runs `predict` of the same rows on the same engine, and is told as a share of the engine alone:

- `engine alone`: graphs of an inference on data that lies on the GPU, on as many slots as the pipeline has, or others;
- `with copies`: the same with copies from and to page-locked memory, which nobody writes to meanwhile, in each graph;
- `rows sent ahead`: each batch is launched when its rows are there, and meanwhile those of the next are on their way,
  as in `predict`, but for all that the processor does there. What this loses against the engine alone no pipeline can
  have: most likely new rows take room in the GPU's cache;
- `rows sent ahead, host busy`: the same while the host copies a batch of rows for each that is launched, as `predict`
  does, to memory that the GPU does not read. What this loses against the one before is what copies cost by themselves;
- `as it is`; `copied in the graph`, where the GPU's own work waits for rows; `N slots, M threads`; page-locked memory
  that is `write-combined`;
- `nothing copied`: the pipeline without the copies of rows on the host, which leaves what the loop itself takes;
- `rows page-locked`: rows that the caller has put there, which are not copied either.

Beside it, the microseconds of a batch that the calling thread spends on each part.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
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
from predict import accelerate, measured_again, prepared, times

from keras_trt import cuda
from keras_trt.cuda.runtime import bindings
from keras_trt.runtime import copying, results, slots
from keras_trt.runtime.measuring import USUAL
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


def ways(found: Pipelining) -> Iterator[tuple[str, Pipelining, list[Any]]]:
    """Yield what is tried: its name, how many slots and threads it has, and what else differs from what is usual."""
    yield "as it is", found, []
    yield "copied in the graph", found, [mock.patch.object(slots, "AHEAD", sys.maxsize)]
    for count in DEPTHS:
        for threads in THREADS:
            if threads <= copying.cores():
                yield f"{count} slots, {threads} threads", Pipelining(count, threads), []
    yield "write-combined", found, [write_combined()]


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


def replayed(fast: Any, rows: np.ndarray, batch: int, how: Pipelining, way: str) -> float:
    """Return rows a second of graphs on so many slots, by one of `REPLAYS`."""
    with ExitStack() as held:
        made = [held.enter_context(closing(prepared(fast, rows[:batch]))) for _ in range(how.slots)]
        (name,) = made[0]._engine.input_names
        size, outputs = rows[:batch].nbytes, set(made[0]._engine.output_names)
        ahead, busy = way.startswith("rows sent ahead"), way.endswith("host busy")
        apart = {name} if ahead else {"engine alone": {name} | outputs, "with copies": set()}[way]
        graphs = [cuda.capture(one._stream, partial(one._enqueue, apart)) for one in made]
        for graph in graphs:
            held.callback(graph.close)
        parts = itertools.cycle([rows[start : start + batch] for start in range(0, len(rows) - batch + 1, batch)])
        with cuda.current_device(0):
            locked = [held.enter_context(closing(cuda.PinnedMemory(size))) for _ in made if busy]
        targets = itertools.cycle([one.array[:size].view(rows.dtype).reshape(rows[:batch].shape) for one in locked])
        under_way: collections.deque[copying.Copy] = collections.deque()
        held.callback(lambda: collections.deque(map(copying.Copy.finish, under_way), 0))

        def send(slot: slots.Slot) -> None:
            slot._stream.synchronize()
            cuda.copy_to_device(slot._buffers[name].device, slot._buffers[name].pinned, size, slot._stream)

        def copy() -> None:
            if len(under_way) == how.slots:
                under_way.popleft().finish()
            under_way.append(copying.Copy(next(targets), next(parts), how.threads))
            under_way[-1].begin()

        def launch() -> None:
            for i in range(200):
                if busy:
                    copy()
                if ahead:
                    send(made[(i + 1) % how.slots])
                    made[i % how.slots]._stream.synchronize()
                graphs[i % how.slots].launch(made[i % how.slots]._stream)
            for one in made:
                one._stream.synchronize()

        return 200 * batch / statistics.median(times(launch, 5))


def piped(fast: Any, rows: np.ndarray, batch: int, how: Pipelining, *, copies: bool = True) -> dict[str, Any]:
    """Return rows a second of `predict`, the best of four as others may use the memory too, and where the time goes."""

    def nothing(buffer: slots._Buffer, source: np.ndarray, *how: int) -> None:  # noqa: ARG001
        buffer._rows = len(source)

    def run() -> float:
        began = time.perf_counter()
        fast.predict(rows, batch_size=batch, verbose=0)
        return time.perf_counter() - began

    runner = fast._session._runner
    runner.pipeline(Pipelining(0, 1))  # so that all slots are new
    runner.pipeline(how)
    with ExitStack() as patches, environment.alone():
        if not copies:
            patches.enter_context(mock.patch.object(slots._Buffer, "begin", nothing))
        run()
        best, parts = min(run() for _ in range(4)), collections.defaultdict[str, float](float)
        with watched(parts):
            run()
    each = {part: round(1e6 * total * batch / len(rows), 1) for part, total in parts.items()}
    return {"rows_per_s": len(rows) / best, "us_per_batch": each}


def ways_of(fast: Any, rows: np.ndarray, batch: int) -> Iterator[dict[str, Any]]:
    """Yield what each way gives, and its share of the engine alone."""
    with environment.alone():
        found = measured_again(fast) or USUAL
        print(f"{fast.report().title}, {found}", flush=True)
        rates = {"engine alone": (alone := replayed(fast, rows, batch, found, "engine alone"))}
        for way, count in product(REPLAYS, (1, 2, *DEPTHS)):
            rates[f"{way}, {count} slots"] = replayed(fast, rows, batch, Pipelining(count, found.threads), way)
    for way, rate in rates.items():
        yield {"way": way, "rows_per_s": rate, "ratio": rate / alone}

    def tell(way: str, figures: dict[str, Any]) -> dict[str, Any]:
        return {"way": way, **figures, "ratio": figures["rows_per_s"] / alone}

    yield tell("nothing copied", piped(fast, rows, batch, found, copies=False))
    with cuda.current_device(0), closing(cuda.PinnedMemory(rows.nbytes)) as locked:
        there = locked.array.view(rows.dtype).reshape(rows.shape)
        there[...] = rows
        yield tell("rows page-locked", piped(fast, there, batch, found))
    for way, how, patches in ways(found):
        with ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            yield tell(way, piped(fast, rows, batch, how))


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
            with accelerate(model, folder, "keras_trt", chosen.precision, chosen.batch) as fast:
                for row in ways_of(fast, rows, chosen.batch):
                    about = {"model": name, "precision": chosen.precision, "batch": chosen.batch}
                    table.append({**about, **row})
                    print(json.dumps(table[-1]), flush=True)
    print("written:", environment.write("pipeline", {**environment.describe("pipeline.py"), "rows": table}))


if __name__ == "__main__":
    main()
