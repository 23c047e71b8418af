"""Train on handwritten digits, and keep the best engine of the training in a file.

python examples/image_classification.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_trt


def main(**options: Any) -> dict[str, float]:
    digits = load_digits()
    images, labels = digits.images[..., np.newaxis].astype("float32") / 16, digits.target
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    with tempfile.TemporaryDirectory() as folder:
        best = Path(folder) / "best.ktrt"
        history = model.fit(
            images[:1297],
            labels[:1297],
            validation_data=(images[1297:], labels[1297:]),
            epochs=6,
            verbose=0,
            callbacks=[
                keras_trt.EngineCheckpoint(best, monitor="val_accuracy", save_best_only=True, **options),
                keras.callbacks.CSVLogger(Path(folder) / "log.csv"),  # has engine_latency_ms, …
            ],
        ).history
        with keras_trt.load(best, verbose=0, backend=options.get("backend", "auto")) as fast:  # needs no Keras
            right = fast.predict(images[1297:], verbose=0).argmax(-1) == labels[1297:]
    result = {"best accuracy in training": max(history["val_accuracy"]), "accuracy of the file": float(right.mean())}
    print("\n".join(f"{name:<28}{value:.4f}" for name, value in result.items()))
    return result


if __name__ == "__main__":
    main()
