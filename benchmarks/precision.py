"""What each precision does to trained models on real data: accuracy, difference to Keras, time.

    python benchmarks/precision.py            # measures here, and writes benchmarks/results/precision-DATE.json
    python benchmarks/precision.py --table    # writes docs/precision.md from all results

On a GPU TensorRT runs what it has; what it has not is emulated: ONNX's reference evaluator rounds each result as the
typed graph says. Without a GPU the engine is ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import environment
import numpy as np

import keras_trt
from keras_trt import backends
from keras_trt.export import export
from keras_trt.options import Precision
from keras_trt.precision import Quantization, calibrate, typed

Array = np.ndarray[Any, Any]
#: Rows that the reference evaluator, which is slow, is given.
EMULATED_ROWS = 200
BATCH = 64


@dataclass(frozen=True)
class Trained:
    """A trained model and rows that it has not seen."""

    name: str
    model: Any
    calibration: Array
    x: Array
    y: Array

    def accuracy(self, answers: Array) -> float:
        return float(np.mean(answers.argmax(axis=-1) == self.y[: len(answers)]))


def digits() -> Trained:
    """A residual convolution network on the 8 by 8 digits of scikit-learn."""
    import keras
    from keras import layers
    from sklearn.datasets import load_digits

    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = shuffled((images / 16).astype("float32").reshape(-1, 8, 8, 1), labels)
    z = image = keras.Input((8, 8, 1))
    z = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(layers.Conv2D(32, 3, padding="same")(z)))
    for _ in range(2):
        inner = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(layers.Conv2D(32, 3, padding="same")(z)))
        inner = layers.BatchNormalization(momentum=0.9)(layers.Conv2D(32, 3, padding="same")(inner))
        z = layers.ReLU()(layers.Add()([z, inner]))
    z = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Conv2D(64, 3, padding="same")(z)))
    return trained("digits, convolutions", keras.Model(image, layers.Dense(10)(z)), x, y, 1200, epochs=20)


def cancer() -> Trained:
    """A network on the measurements of the breast cancer data of scikit-learn, which reach 4,000, normalized in it."""
    import keras
    from keras import layers
    from sklearn.datasets import load_breast_cancer

    keras.utils.set_random_seed(0)
    features, labels = load_breast_cancer(return_X_y=True)
    x, y = shuffled(features.astype("float32"), labels)
    normal = layers.Normalization()
    normal.adapt(x[:400])
    model = keras.Sequential(
        [keras.Input((30,)), normal, layers.Dense(64, "gelu"), layers.Dense(64, "gelu"), layers.Dense(2)]
    )
    return trained("breast cancer, dense", model, x, y, 400, epochs=30)


def text() -> Trained:
    """A Transformer that predicts the next character of Python's own documentation, which comes with Python."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    topics = pydoc_data.topics.topics
    known = sorted({letter for topic in topics.values() for letter in topic})[:127]
    place = {letter: i + 1 for i, letter in enumerate(known)}
    length = 64

    def windows(names: list[str]) -> tuple[Array, Array]:
        ids = np.array([place.get(letter, 0) for name in names for letter in topics[name]], "int32")
        ids = ids[: len(ids) // (length + 1) * (length + 1)].reshape(-1, length + 1)
        ids = ids[np.random.default_rng(1).permutation(len(ids))]
        return ids[:, :-1], ids[:, 1:]

    names = sorted(topics)
    x, y = windows([name for i, name in enumerate(names) if i % 10])
    x_test, y_test = windows(names[::10])
    tokens = keras.Input((length,), dtype="int32")
    z = layers.Embedding(len(known) + 1, 96)(tokens) + layers.Embedding(length, 96)(keras.ops.arange(length))
    for _ in range(2):
        normal = layers.LayerNormalization()(z)
        z = z + layers.MultiHeadAttention(4, 24)(normal, normal, use_causal_mask=True)
        z = z + layers.Dense(96)(layers.Dense(192, "gelu")(layers.LayerNormalization()(z)))
    model = keras.Model(tokens, layers.Dense(len(known) + 1)(layers.LayerNormalization()(z)))
    x, y = np.concatenate([x, x_test[:1000]]), np.concatenate([y, y_test[:1000]])
    return trained("Python's documentation, Transformer", model, x, y, len(x) - 1000, epochs=4)


def shuffled(x: Array, y: Array) -> tuple[Array, Array]:
    order = np.random.default_rng(0).permutation(len(x))
    return x[order], y[order]


def trained(name: str, model: Any, x: Array, y: Array, count: int, epochs: int) -> Trained:
    """Train on the first `count` rows."""
    import keras

    model.compile(keras.optimizers.Adam(2e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x[:count], y[:count], batch_size=64, epochs=epochs, verbose=0)
    return Trained(name, model, x[: min(count, 300)], x[count:], y[count:])


MODELS: tuple[Callable[[], Trained], ...] = (digits, cancer, text)


def rows_of(trained: Trained) -> Iterator[dict[str, Any]]:
    model, x = trained.model, trained.x
    wanted = model.predict(x, verbose=0)
    yield {"engine": "keras-tensorflow", "precision": "fp32", "accuracy": trained.accuracy(wanted), "rows": len(x)}
    backend, _ = backends.choose("auto", [0])
    for precision in get_args(Precision):
        if precision in backend.precisions:
            yield {"precision": precision, "rows": len(x), **executed(trained, precision, wanted)}
        if precision not in ("tf32", "fp32") and (precision not in backend.precisions or backend.device == "cpu"):
            yield {"precision": precision, **emulated(trained, precision, wanted)}


def executed(trained: Trained, precision: Precision, wanted: Array) -> dict[str, Any]:
    """Measure an engine. It is not verified: what a precision does is what is looked for, and the table shows it."""
    eight_bits: dict[str, Any] = {"calibration_data": trained.calibration} if precision in ("int8", "fp8") else {}
    with keras_trt.accelerate(
        trained.model,
        precision=precision,
        verify=False,
        cache=None,
        batch_sizes=(1, BATCH, 128),
        verbose=0,
        **eight_bits,
    ) as fast:
        got = fast.predict(trained.x, verbose=0)
        batch, seconds = trained.x[np.arange(BATCH) % len(trained.x)], []
        for _ in range(60):
            start = time.perf_counter()
            fast.predict_on_batch(batch)
            seconds.append(time.perf_counter() - start)
        taken = float(np.median(seconds[10:])) * 1e3
        return {"engine": fast.report().title, **judged(trained, wanted, got), "batch": BATCH, "median_ms": taken}


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


def measure() -> Path:
    results = environment.describe("precision.py")
    results["rows"] = []
    for make in MODELS:
        one = make()
        for row in rows_of(one):
            results["rows"].append({"model": one.name, **row})
            print(json.dumps(results["rows"][-1]), flush=True)
    return environment.write("precision", results)


HEAD = """# What each precision does to trained models

Written by `python benchmarks/precision.py --table` from the results in `benchmarks/results/`; do not edit.

Accuracy is on rows that were not trained on, beside Keras's on the same rows; the difference is the relative L2
difference of the logits to Keras; *same answer* is how often the largest logit is the same. Time is the median of
`predict_on_batch` of 64 rows, numpy in and out. *Emulated*: ONNX's reference evaluator rounds each result as the typed
graph says (int8 and fp8 beside fp16), on the first 200 rows; it says nothing of time. int8 is calibrated with 300 rows
of the training data by percentile, fp8 by the largest number. Engines are not verified here, so that what fails would
show.

ONNX Runtime on x86 runs fp16 graphs in float32 on weights rounded to float16, and int8 graphs mostly as float
operations between roundings: its times say nothing of a GPU.
"""


def table() -> None:
    parts = [HEAD]
    for path in sorted((environment.ROOT / "benchmarks" / "results").glob("precision-*.json")):
        found = json.loads(path.read_text())
        device = found["device"]["name"] if found["device"] else found["host"]["cpu"]
        parts.append(f"\n## {device}, {found['date']}\n\n`benchmarks/results/{path.name}`\n")
        parts.append("\n| model | precision | engine | accuracy (Keras) | difference | same answer | ms |\n")
        parts.append("|---|---|---|---|---|---|---|\n")
        for row in found["rows"]:
            if row["engine"] == "keras-tensorflow":
                continue
            taken = f"{row['median_ms']:.2f}" if "median_ms" in row else ""
            engine = "*emulated*" if row["engine"] == "emulated" else row["engine"]
            accuracy = f"{row['accuracy']:.4f} ({row['accuracy_of_keras']:.4f})"
            parts.append(
                f"| {row['model']} | {row['precision']} | {engine} | {accuracy} | {row['relative_l2']:.1e} | "
                f"{row['same_answer']:.4f} | {taken} |\n"
            )
    (environment.ROOT / "docs" / "precision.md").write_text("".join(parts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="write docs/precision.md from all results")
    if parser.parse_args().table:
        table()
    else:
        print(measure())
