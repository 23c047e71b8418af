"""The plan of keras_trt's graph beside that of Keras's own export: same weights, TensorRT and options, timed in turn.

python benchmarks/plans.py [--models ResNet50 NASNetMobile] [--precision tf32] [--optimization-level 3] [--folder F]

All plans are built first, each in a process of its own, and kept in the folder, so that a run that was cut off goes on
where it was. Then they are timed in one process, in turn: replays of a CUDA graph on data that lies on the GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent))

import environment
import models
from predict import times

MODELS = ("ResNet50", "NASNetMobile", "ConvNeXtTiny")
ENGINES = ("keras", "keras_trt")
BATCHES = (1, 32)
REPLAYS = 100
ROUNDS = 5


def build(chosen: argparse.Namespace, name: str, engine: str) -> None:
    """Export and build once, in this process."""
    import numpy as np
    import onnx

    import keras_trt
    from keras_trt.backends import BuildSpec
    from keras_trt.backends.tensorrt import TensorRTBackend
    from keras_trt.specs import OptimizationProfile, ShapeRange

    model = models.make(name)  # of zeros, as untrained models have, Keras's export makes nothing
    model(np.zeros((1, *model.input_shape[1:]), "float32"))  # Keras exports only what has been called
    path = chosen.folder / f"{name}-{engine}.onnx"
    if engine == "keras":
        model.export(path, format="onnx", verbose=False)
    else:
        keras_trt.export_onnx(model, path)
    given, *leaked = onnx.load(path).graph.input
    if leaked:
        raise SystemExit(f"its graph has inputs that the model has not: {', '.join(one.name for one in leaked)}")
    shapes = ShapeRange(*((rows, *model.input_shape[1:]) for rows in (1, max(BATCHES), max(BATCHES))))
    spec = BuildSpec(chosen.precision, OptimizationProfile({given.name: shapes}), chosen.optimization_level)
    plan_of(chosen, name, engine).write_bytes(TensorRTBackend("tensorrt", (0,)).build(path.read_bytes(), spec))


def plan_of(chosen: argparse.Namespace, name: str, engine: str) -> Path:
    return Path(chosen.folder / f"{name}-{engine}-{chosen.precision}-{chosen.optimization_level}.plan")


def timed(plans: dict[str, Path], shape: tuple[int, ...]) -> dict[str, list[float]]:
    """Return the seconds that a replay takes of each plan, of several rounds."""
    from keras_trt import cuda
    from keras_trt.backends.tensorrt import TensorRTBackend
    from keras_trt.runtime.slots import Slot

    backend = TensorRTBackend("tensorrt", (0,))
    found: dict[str, list[float]] = {engine: [] for engine in plans}
    with cuda.current_device(0), ExitStack() as closing:
        replays: dict[str, Callable[[], None]] = {}
        for name, path in plans.items():
            (engine,) = backend.load(path.read_bytes())
            closing.callback(engine.close)
            slot = Slot(engine)
            closing.callback(slot.close)
            slot.prepare(((engine.input_names[0], shape),))
            infer = partial(slot._context.enqueue, slot._stream.address)
            infer()  # the warm-up that a capture needs
            slot._stream.synchronize()
            graph = cuda.capture(slot._stream, infer)
            closing.callback(graph.close)
            replays[name] = partial(replay, graph, slot._stream)
        for _ in range(ROUNDS):
            for name, replayed in replays.items():
                found[name] += [seconds / REPLAYS for seconds in times(replayed, 1, warm_up=1)]
    return found


def replay(graph: Any, stream: Any) -> None:
    for _ in range(REPLAYS):
        graph.launch(stream)
    stream.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--precision", default="tf32")
    parser.add_argument("--optimization-level", type=int)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--build", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.build:
        build(chosen, *chosen.build)
        return
    environ, rows = environment.of_children(), []
    with tempfile.TemporaryDirectory() as temporary:
        chosen.folder = chosen.folder or Path(temporary)
        chosen.folder.mkdir(parents=True, exist_ok=True)
        refused = {}
        for name in chosen.models:
            for engine in ENGINES:
                if plan_of(chosen, name, engine).exists():
                    continue
                command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(chosen.folder), "--build"]
                done = subprocess.run(
                    [*command, name, engine], env=environ, stderr=subprocess.PIPE, text=True, check=False
                )
                if done.returncode:
                    refused[name, engine] = done.stderr.strip().splitlines()[-1][:300]
                    print(f"{name} of {engine} cannot be built: {refused[name, engine]}")
        for name in chosen.models:
            plans = {engine: plan_of(chosen, name, engine) for engine in ENGINES if (name, engine) not in refused}
            for batch in BATCHES:
                found = timed(plans, (batch, *models.IMAGE))
                for engine in ENGINES:
                    row: dict[str, Any] = {"model": name, "engine": engine, "batch": batch}
                    if engine in found:
                        row |= {"median_ms": statistics.median(found[engine]) * 1e3, "all_s": found[engine]}
                        row["plan_bytes"] = plans[engine].stat().st_size
                    else:
                        row["refused"] = refused[name, engine]
                    rows.append(row)
                    print(json.dumps({key: value for key, value in row.items() if key != "all_s"}))
    results = {**environment.describe("plans.py"), "precision": chosen.precision, "rows": rows}
    print("written:", environment.write("plans", results))


if __name__ == "__main__":
    main()
