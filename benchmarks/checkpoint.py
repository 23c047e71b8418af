"""What `EngineCheckpoint` adds to the time of a training, side by side with `ModelCheckpoint` alone.

python benchmarks/checkpoint.py [--backend auto] [--model MobileNetV2] [--epochs 5] [--steps 64] [--build thread]
    [--gpus 0 1]

Each training starts in a process of its own, on the same seeded images and labels, with a checkpoint at each epoch: one
after the other, or all at once on a GPU each, so that what else the host does hits all of them. Of `fit` two times are
told: until its last epoch ends, and until it returns, when the last engine is saved too. `beside` tells what the making
of engines did meanwhile: for how long, and by how much the training's steps took longer then. What lies between two
epochs, the checkpoints themselves among it, is in neither.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent))

import environment


class Watch:
    """Looks, 50 times a second, at what the thread that makes engines does."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, str]] = []
        self._steps: list[tuple[float, float]] = []
        self._began = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def begin(self) -> None:
        """Take the begin of an epoch, and so of its first step."""
        self._began = time.perf_counter()

    def end(self) -> None:
        """Take the end of a step, which is where the next begins."""
        before, self._began = self._began, time.perf_counter()
        self._steps.append((before, self._began))

    def _look(self) -> None:
        while not self._done.wait(0.02):
            for thread in threading.enumerate():
                if thread.name == "keras_trt engine checkpoints" and thread.ident:
                    self._seen.append((time.perf_counter(), where(sys._current_frames().get(thread.ident))))

    def beside(self) -> list[dict[str, Any]]:
        """Return, by what was done, how long it took and what that cost the training, in seconds.

        The longest step is told of those in which it was seen once and nothing else: it held the interpreter lock.
        """
        lasted: dict[str, float] = collections.defaultdict(float)
        cost: dict[str, float] = collections.defaultdict(float)
        longest: dict[str, float] = collections.defaultdict(float)
        usual = statistics.median(after - before for before, after in self._steps)
        seen = collections.deque(self._seen)
        for before, after in self._steps:
            while seen and seen[0][0] < before:
                seen.popleft()
            during = []
            while seen and seen[0][0] < after:
                during.append(seen.popleft()[1])
            during = during or ["nothing seen"]
            for what in during:
                lasted[what] += (after - before) / len(during)
                cost[what] += (after - before - usual) / len(during)
                longest[what] = max(longest[what], after - before if len(during) == 1 else 0.0)
        dearest = sorted(cost, key=cost.__getitem__, reverse=True)[:20]
        figures = {"s": lasted, "added_s": cost, "longest_step_s": longest}
        return [{"in": what, **{name: round(by[what], 3) for name, by in figures.items()}} for what in dearest]


def where(frame: FrameType | None) -> str:
    """Return the innermost function of keras_trt that a thread is in."""
    while frame is not None:
        name: str = frame.f_globals.get("__name__", "")
        if name.startswith("keras_trt."):
            return f"{name}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


def train(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train once, in this process."""
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_trt

    for device in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(device, enable=True)
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    shape = (chosen.size, chosen.size, 3)
    images = generator.integers(0, 256, (1024, *shape), np.uint8)
    labels = generator.integers(0, 1000, len(images))
    with tf.device("CPU"):
        data = tf.data.Dataset.from_tensor_slices((images, labels)).repeat().batch(32, drop_remainder=True)
        data = data.map(lambda x, y: (tf.cast(x, "float32") / 255, y), tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    model = getattr(keras.applications, chosen.model)(weights=None, input_shape=shape, classifier_activation=None)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(data, steps_per_epoch=2, verbose=0)  # traces, outside of what is timed

    ends: list[float] = []
    written: list[int] = []

    watch = Watch()

    class Ends(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            watch.begin()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            watch.end()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            ends.append(time.perf_counter())
            written.append(sum(path.suffix == ".ktrt" for path in folder.iterdir()))

    callbacks = [keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras"), Ends()]
    if chosen.engines:
        sizes, cache = (1, 32, 128), folder / "cache"
        callbacks.insert(
            1,
            keras_trt.EngineCheckpoint(
                folder / "{epoch}.ktrt", backend=chosen.backend, batch_sizes=sizes, cache=cache, build=chosen.engines,
                sample=images[:32].astype("float32") / 255,
            ),
        )  # fmt: skip
    start = time.perf_counter()
    with watch:
        history = model.fit(
            data, steps_per_epoch=chosen.steps, epochs=chosen.epochs, callbacks=callbacks, verbose=0
        ).history
    end = time.perf_counter()
    files = sorted(path.name for path in folder.glob("*.ktrt"))
    figures = {
        name: [None if np.isnan(value) else value for value in values]
        for name, values in history.items()
        if name.startswith("engine_")
    }
    epochs = [after - before for before, after in itertools.pairwise([start, *ends])]
    return {
        "until_last_epoch_s": ends[-1] - start, "fit_s": end - start,
        "epochs_s": epochs, "engines_after_epoch": written,
        "engines": files, **figures, "beside": watch.beside(),
    }  # fmt: skip


def run(build: str, gpu: str | None) -> dict[str, Any]:
    """Train in a process of its own, which sees one GPU, or all of them."""
    seen = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *sys.argv[1:], "--run", folder, *(["--engines", build] if build else [])]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **seen})
    name = f"EngineCheckpoint too, built in a {build}" if build else "ModelCheckpoint"
    return {"callback": name, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--model", default="MobileNetV2")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=64, help="batches of 32 in an epoch")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side")
    parser.add_argument("--build", nargs="+", choices=("thread", "process"), default=["thread"])
    parser.add_argument("--gpus", nargs="+", help="run all at once, on these; the first trains without engines")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--engines", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.run:
        print(json.dumps(train(chosen, chosen.run)))
        return
    builds = ("", *chosen.build)
    if chosen.gpus and len(chosen.gpus) != len(builds):
        parser.error(f"`--gpus` names one GPU for each of {len(builds)} trainings.")
    with ThreadPoolExecutor(len(builds) if chosen.gpus else 1) as pool:
        rows = list(pool.map(run, builds, chosen.gpus or [None] * len(builds)))
    for row in rows:
        for name in ("until_last_epoch_s", "fit_s"):
            row[f"added_{name}"] = row[name] / rows[0][name] - 1
    results = {**environment.describe("checkpoint.py"), "model": chosen.model, "rows": rows}
    print(json.dumps(results, indent=1))
    print(environment.write("checkpoint", results))


if __name__ == "__main__":
    main()
