"""Train a small network on handwritten digits, run it on TensorRT, and compare.

Runs on ONNX Runtime without a GPU and on TensorRT with one:

    python examples/quickstart.py [--precision fp16|tf32|fp32] [--backend auto|tensorrt|tensorrt_rtx|onnxruntime]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # else TensorFlow leaves no GPU memory for an engine

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_trt

TRAINED_ON, REPEATS = 1297, 40  # of the 1,797 digits the last 500 are the test; repeated to time `predict`


def digits() -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    data = load_digits()
    images, labels = data.images[..., np.newaxis].astype("float32") / 16, data.target
    return (images[:TRAINED_ON], labels[:TRAINED_ON]), (images[TRAINED_ON:], labels[TRAINED_ON:])


def trained_model() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="digit"),
            keras.layers.Conv2D(32, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Conv2D(64, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(10, name="logits"),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    (images, labels), _ = digits()
    model.fit(images, labels, epochs=12, batch_size=64, verbose=0)
    return model


def rows_per_second(predict: Any, images: Any) -> float:
    predict(images, verbose=0)  # traces, captures, warms up
    start = time.perf_counter()
    predict(images, verbose=0)
    return len(images) / (time.perf_counter() - start)


def second_start(model_path: Path, cache: Path, arguments: list[str]) -> dict[str, Any]:
    """Start a new process that loads the trained model and accelerates it again."""
    command = [sys.executable, __file__, *arguments, "--second-start", str(model_path), "--cache", str(cache)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 (this very file)
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--precision", choices=["fp16", "tf32", "fp32"])
    parser.add_argument("--backend", default="auto", choices=["auto", "tensorrt", "tensorrt_rtx", "onnxruntime"])
    parser.add_argument("--second-start", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    options: dict[str, Any] = {"precision": chosen.precision, "backend": chosen.backend, "verbose": 0}

    if chosen.second_start:
        again = keras_trt.accelerate(keras.models.load_model(chosen.second_start), cache=chosen.cache, **options)
        print(json.dumps({"origin": again.report().origin, "seconds": again.report().seconds["total"]}))
        return

    _, (images, labels) = digits()
    model = trained_model()
    with tempfile.TemporaryDirectory() as folder:
        cache, model_path = Path(folder) / "cache", Path(folder) / "digits.keras"
        fast = keras_trt.accelerate(model, cache=cache, **options)  # the one line
        model.save(model_path)
        later = second_start(model_path, cache, sys.argv[1:])

    slow_answers, fast_answers = model.predict(images, verbose=0), fast.predict(images, verbose=0)
    slow_right, fast_right = ((answers.argmax(-1) == labels) for answers in (slow_answers, fast_answers))
    disagree = int((slow_answers.argmax(-1) != fast_answers.argmax(-1)).sum())
    many = np.repeat(images, REPEATS, axis=0)
    slow_rate, fast_rate = rows_per_second(model.predict, many), rows_per_second(fast.predict, many)
    report = fast.report()
    table = {
        "backend": report.title,
        "device": report.device_name,
        "precision": report.precision,
        "accuracy, Keras": f"{slow_right.mean():.4f}  ({slow_right.sum()} of {len(labels)} test digits)",
        "accuracy, engine": f"{fast_right.mean():.4f}  ({fast_right.sum()} of {len(labels)}; {disagree} digits differ)",
        "largest difference": f"{np.abs(slow_answers - fast_answers).max():.2g}  "
        f"(logits up to {np.abs(slow_answers).max():.3g})",
        "rows/s, Keras predict": f"{slow_rate:,.0f}",
        "rows/s, engine predict": f"{fast_rate:,.0f}  ({fast_rate / slow_rate:.1f} x)",
        "first start": f"{report.seconds['total']:.2f} s  (export {report.seconds['export']:.2f}, "
        f"build {report.seconds['build']:.2f}, verify {report.seconds['verify']:.2f})",
        "second start": f"{later['seconds']:.2f} s  (new process, engine from the {later['origin']})",
    }
    width = max(map(len, table))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in table.items()))


if __name__ == "__main__":
    main()
