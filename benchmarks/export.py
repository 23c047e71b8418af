"""How long an export to ONNX takes: keras_trt beside Keras's own, on the same models in one run.

python benchmarks/export.py [--models ResNet50 NASNetMobile ConvNeXtTiny] [--repeats 3]

Each export runs in a process of its own, after all packages are imported and the model is made.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent))

import environment

MODELS = ("ResNet50", "NASNetMobile", "ConvNeXtTiny")
ENGINES = ("keras", "keras_trt")


def export(model_name: str, engine: str) -> dict[str, Any]:
    """Export once, in this process, and look at what came out."""
    import keras
    import numpy as np
    import onnx
    import onnxruntime
    import tf2onnx  # noqa: F401 (imported here so that its time is not counted)

    import keras_trt
    import keras_trt.export.graph  # likewise, with onnx-ir

    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, model_name)(weights=None, classifier_activation=None)
    x = np.random.default_rng(0).standard_normal((2, *model.input_shape[1:])).astype("float32")
    wanted = np.asarray(model(x, training=False))  # Keras exports only what has been called
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        start = time.perf_counter()
        if engine == "keras":
            model.export(path, format="onnx", verbose=False)
        else:
            keras_trt.export_onnx(model, path)
        seconds = time.perf_counter() - start
        nodes = onnx.load(path).graph.node
        row: dict[str, Any] = {"seconds": seconds, "nodes": len(nodes)}
        row["transposes"] = sum(node.op_type == "Transpose" for node in nodes)
        try:
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            (got,) = session.run(None, {session.get_inputs()[0].name: x})
            row["relative_l2"] = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
        except Exception as error:  # ONNX Runtime's exceptions share no base class; that it refuses is the result
            row["refused"] = str(error).splitlines()[0][:200]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(export(*chosen.one)))
        return
    environ = environment.of_children()
    rows = []
    for name in chosen.models:
        # In turn, so that a machine that is busy for a while is busy for both.
        runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in ENGINES}
        for _ in range(chosen.repeats):
            for engine in ENGINES:
                command = [sys.executable, __file__, "--one", name, engine]
                done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
                runs[engine].append(json.loads(done.stdout.splitlines()[-1]))
        medians = {engine: statistics.median(run["seconds"] for run in runs[engine]) for engine in ENGINES}
        for engine in ENGINES:
            row = {"model": name, "engine": engine, "median_s": medians[engine], **runs[engine][-1]}
            row |= {"all_s": [run["seconds"] for run in runs[engine]], "ratio_to": "keras"}
            row["ratio"] = medians["keras"] / medians[engine]
            del row["seconds"]
            rows.append(row)
            outcome = row.get("refused") or f"difference {row['relative_l2']:.1e}"
            print(
                f"{name:14} {engine:10} {row['median_s']:6.1f} s  {row['ratio']:4.1f} x  {row['nodes']:5} nodes, "
                f"{row['transposes']:3} transposes  {outcome}"
            )
    print("written:", environment.write("export", {**environment.describe("export.py"), "rows": rows}))


if __name__ == "__main__":
    main()
