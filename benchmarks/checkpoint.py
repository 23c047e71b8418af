"""What `EngineCheckpoint` adds to the time of a training, side by side with `ModelCheckpoint` alone.

python benchmarks/checkpoint.py [--backend auto] [--model MobileNetV2] [--epochs 5] [--rows 2048]

Each training starts in a process of its own, on the same seeded images and labels, with a checkpoint at each epoch. Of
`fit` two times are told: until its last epoch ends, and until it returns, when the last engine is saved too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent))

import environment


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
    images = generator.random((chosen.rows, chosen.size, chosen.size, 3), np.float32)
    labels = generator.integers(0, 1000, chosen.rows)
    shape = (chosen.size, chosen.size, 3)
    model = getattr(keras.applications, chosen.model)(weights=None, input_shape=shape, classifier_activation=None)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images[:32], labels[:32], verbose=0)  # traces, outside of what is timed

    ends: list[float] = []
    written: list[int] = []

    class Ends(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            ends.append(time.perf_counter())
            written.append(sum(path.suffix == ".ktrt" for path in folder.iterdir()))

    callbacks = [keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras"), Ends()]
    if chosen.engines:
        sizes, cache = (1, 32, 128), folder / "cache"
        callbacks.insert(
            1,
            keras_trt.EngineCheckpoint(
                folder / "{epoch}.ktrt", backend=chosen.backend, batch_sizes=sizes, cache=cache, sample=images[:32]
            ),
        )
    start = time.perf_counter()
    history = model.fit(images, labels, epochs=chosen.epochs, callbacks=callbacks, verbose=0).history
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
        "engines": files, **figures,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--model", default="MobileNetV2")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--size", type=int, default=224, help="pixels of a side")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--engines", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.run:
        print(json.dumps(train(chosen, chosen.run)))
        return
    rows: list[dict[str, Any]] = []
    for engines in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, *sys.argv[1:], "--run", folder, *(["--engines"] if engines else [])]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append({"callback": "EngineCheckpoint too" if engines else "ModelCheckpoint"})
        rows[-1] |= json.loads(done.stdout.splitlines()[-1])
    shares = {name: rows[1][name] / rows[0][name] - 1 for name in ("until_last_epoch_s", "fit_s")}
    results = {**environment.describe("checkpoint.py"), "model": chosen.model, "rows": rows, "added": shares}
    print(json.dumps(results, indent=1))
    print(environment.write("checkpoint", results))


if __name__ == "__main__":
    main()
