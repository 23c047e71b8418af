"""What each precision does to trained models on real data: accuracy, difference to Keras, time.

    python benchmarks/precision.py [--folder F]    # measures here, and writes benchmarks/results/precision-DATE.json
    python benchmarks/precision.py --table         # writes docs/precision.md from all results

Trained models and engines are kept in the folder, so that a run that was cut off goes on where it was.

On a GPU TensorRT runs what it has; what it has not is emulated: ONNX's reference evaluator rounds each result as the
typed graph says. Without a GPU the engine is ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent))

import environment
import numpy as np
from predict import bare, times
from trained import MODELS, Array, Trained, kept

import keras_trt
from keras_trt import backends
from keras_trt.export import export
from keras_trt.options import Precision
from keras_trt.precision import Quantization, calibrate, typed

#: Rows that the reference evaluator, which is slow, is given.
EMULATED_ROWS = 200
#: Numbers in a row of a model that is small enough for it.
EMULATED_NUMBERS = 100
BATCH = 64


def rows_of(trained: Trained, folder: Path) -> Iterator[dict[str, Any]]:
    model, x = trained.model, trained.x
    wanted = model.predict(x, verbose=0)
    yield {"engine": "keras-tensorflow", "precision": "fp32", "accuracy": trained.accuracy(wanted), "rows": len(x)}
    backend, _ = backends.choose("auto", [0])
    for precision in get_args(Precision):
        if precision in backend.precisions:
            yield {"precision": precision, "rows": len(x), **executed(trained, precision, wanted, folder)}
        missing = precision not in backend.precisions or backend.device == "cpu"
        if precision not in ("tf32", "fp32") and missing and x[0].size <= EMULATED_NUMBERS:
            yield {"precision": precision, **emulated(trained, precision, wanted)}


def executed(trained: Trained, precision: Precision, wanted: Array, folder: Path) -> dict[str, Any]:
    """Measure an engine. It is not verified: what a precision does is what is looked for, and the table shows it."""
    eight_bits: dict[str, Any] = {"calibration_data": trained.calibration} if precision in ("int8", "fp8") else {}
    with keras_trt.accelerate(
        trained.model,
        precision=precision,
        verify=False,
        cache=folder / "cache",
        batch_sizes=(1, BATCH, 128),
        verbose=0,
        **eight_bits,
    ) as fast:
        got = fast.predict(trained.x, verbose=0)
        batch = trained.x[np.arange(BATCH) % len(trained.x)]
        taken = np.median(times(lambda: fast.predict_on_batch(batch), 100, warm_up=10)) * 1e3
        row = {"engine": fast.report().title, "ran": fast.precision, **judged(trained, wanted, got), "batch": BATCH}
        alone = {"engine_ms": bare(fast, batch, 1)["median_ms"]} if fast.device != "cpu" else {}
        return {**row, "median_ms": float(taken), **alone}


def emulated(trained: Trained, precision: Precision, wanted: Array) -> dict[str, Any]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    exported = export(trained.model)
    (spec,) = exported.signature.inputs
    how = None
    if precision in ("int8", "fp8"):
        method: Any = "minmax" if precision == "fp8" else "percentile"
        how = Quantization("fp16", calibrate(exported.onnx, {spec.name: trained.calibration}, method))
    graph = onnx.load_from_string(typed(exported.onnx, precision, (), how))
    with np.errstate(all="ignore"):
        answers: Any = ReferenceEvaluator(graph).run(None, {spec.name: trained.x[:EMULATED_ROWS]})
    got = np.asarray(answers[0])
    return {"engine": "emulated", "rows": len(got), **judged(trained, wanted[: len(got)], got)}


def judged(trained: Trained, wanted: Array, got: Array) -> dict[str, float]:
    difference = float(np.linalg.norm(got.astype("float64") - wanted) / np.linalg.norm(wanted))
    return {
        "accuracy": trained.accuracy(got),
        "accuracy_of_keras": trained.accuracy(wanted),
        "relative_l2": difference,
        "same_answer": float(np.mean(got.argmax(axis=-1) == wanted.argmax(axis=-1))),
    }


def measure(folder: Path, names: Sequence[str]) -> Path:
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)  # which it takes on a GPU if it may
    results = environment.describe("precision.py")
    results["rows"] = []
    for make in (make for make in MODELS if make.__name__ in names):
        one = kept(make, folder)
        for row in rows_of(one, folder):
            results["rows"].append({"model": one.name, **row})
            print(json.dumps(results["rows"][-1]), flush=True)
    return environment.write("precision", results)


HEAD = """# What each precision does to trained models

Written by `python benchmarks/precision.py --table` from the results in `benchmarks/results/`; do not edit.

Accuracy is on rows that were not trained on, beside Keras's on the same rows; the difference is the relative L2
difference of the logits to Keras; *same answer* is how often the largest logit is the same. Times are medians for 64
rows: of `predict_on_batch`, numpy in and out, and on a GPU of the engine alone. *Emulated*: ONNX's reference evaluator
rounds each result as the typed graph says (int8 and fp8 beside fp16), on the first 200 rows of models with small rows;
it says nothing of time. int8 is calibrated with 300 rows of the training data by percentile, fp8 by the largest number.
Engines are not verified here, so that what fails would show.

Keras computes in float32, but for precision-2026-11-28.json: there it was on the GPU, where TensorFlow takes TF32.
A dense network of a few rows, and what TensorRT 8.6 compiles as a whole (Transformers), has no int8 there: fp16 runs.

ONNX Runtime on x86 runs fp16 graphs in float32 on weights rounded to float16, and int8 graphs mostly as float
operations between roundings: its times say nothing of a GPU.
"""


def table() -> None:
    parts = [HEAD]
    for path in sorted((environment.ROOT / "benchmarks" / "results").glob("precision-*.json")):
        found = json.loads(path.read_text())
        device = found["device"]["name"] if found["device"] else found["host"]["cpu"]
        parts.append(f"\n## {device}, {found['date']}\n\n`benchmarks/results/{path.name}`\n")
        parts.append(
            "\n| model | precision | engine | accuracy (Keras) | difference | same answer | ms | engine ms |\n"
        )
        parts.append("|---|---|---|---|---|---|---|---|\n")
        for row in found["rows"]:
            if row["engine"] == "keras-tensorflow":
                continue
            taken, alone = (f"{row[name]:.3f}" if name in row else "" for name in ("median_ms", "engine_ms"))
            engine = "*emulated*" if row["engine"] == "emulated" else row["engine"]
            asked = row["precision"]
            ran = asked if row.get("ran", asked) == asked else f"{asked}, {row['ran']} ran"
            accuracy = f"{row['accuracy']:.4f} ({row['accuracy_of_keras']:.4f})"
            parts.append(
                f"| {row['model']} | {ran} | {engine} | {accuracy} | {row['relative_l2']:.1e} | "
                f"{row['same_answer']:.4f} | {taken} | {alone} |\n"
            )
    (environment.ROOT / "docs" / "precision.md").write_text("".join(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="write docs/precision.md from all results")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--models", nargs="+", default=[make.__name__ for make in MODELS])
    asked = parser.parse_args()
    if asked.table:
        table()
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(measure(folder, asked.models))


if __name__ == "__main__":
    main()
