"""Find handwritten digits in a picture: the network runs on the engine, and what follows it in numpy.

python examples/object_detection.py
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_trt

SIZE, STRIDE = 32, 4  # a picture of 32 x 32; a cell of the outputs sees whether a digit's centre is in its 4 x 4 pixels


def pictures(count: int, seed: int) -> tuple[Any, Any, Any]:
    """Return pictures with up to three digits each, and for each cell whether a digit is there, and which."""
    digits, generator = load_digits(), np.random.default_rng(seed)
    images = np.zeros((count, SIZE, SIZE, 1), np.float32)
    there = np.zeros((count, SIZE // STRIDE, SIZE // STRIDE, 1), np.float32)
    which = np.zeros(there.shape[:3], np.int64)
    for i in range(count):
        for quarter in generator.permutation(4)[:3]:
            number = generator.integers(len(digits.images))
            top, left = 16 * np.array(divmod(quarter, 2)) + generator.integers(0, 9, 2)
            images[i, top : top + 8, left : left + 8, 0] = digits.images[number] / 16
            cell = (top + 4) // STRIDE, (left + 4) // STRIDE
            there[i][cell], which[i][cell] = 1, digits.target[number]
    return images, there, which


def network() -> keras.Model:
    image = keras.Input((SIZE, SIZE, 1))
    x = keras.layers.Conv2D(24, 3, padding="same", activation="relu")(image)
    for filters in (32, 48):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    x = keras.layers.Conv2D(64, 3, padding="same", activation="relu")(x)
    there = keras.layers.Conv2D(1, 1, activation="sigmoid", name="there")(x)
    return keras.Model(image, {"there": there, "which": keras.layers.Conv2D(10, 1, name="which")(x)})


def detections(outputs: dict[str, Any], threshold: float = 0.3) -> list[set[tuple[int, int, int]]]:
    """Return (row, column, digit) of each detection: cells above the threshold that no neighbour exceeds."""
    there = outputs["there"][..., 0]
    padded = np.pad(there, ((0, 0), (1, 1), (1, 1)))
    neighbours = np.stack(
        [padded[:, i : i + there.shape[1], j : j + there.shape[2]] for i in range(3) for j in range(3)]
    )
    peaks = (there >= neighbours.max(axis=0)) & (there > threshold)
    digits = outputs["which"].argmax(-1)
    return [{(int(r), int(c), int(digits[i, r, c])) for r, c in np.argwhere(peaks[i])} for i in range(len(there))]


def main(**options: Any) -> dict[str, float]:
    keras.utils.set_random_seed(0)
    model = network()
    images, there, which = pictures(1500, seed=1)
    weights = {"there": 1 + 9 * there[..., 0], "which": there[..., 0]}  # what a cell without a digit shows counts not
    losses = {"there": "binary_crossentropy", "which": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    model.compile(keras.optimizers.Adam(3e-3), losses)
    model.fit(images, {"there": there, "which": which}, sample_weight=weights, epochs=6, batch_size=32, verbose=0)

    images, there, which = pictures(100, seed=2)
    truth = detections({"there": there, "which": np.eye(10)[which]})
    by_keras = detections(model.predict(images, verbose=0))
    by_engine = detections(keras_trt.accelerate(model, **options).predict(images, verbose=0))
    hits = sum(len(found & true) for found, true in zip(by_engine, truth, strict=True))
    result = {
        "digits found": hits / sum(map(len, truth)),
        "pictures that differ from Keras": sum(a != b for a, b in zip(by_keras, by_engine, strict=True)),
    }
    print("\n".join(f"{name:<34}{value:.3g}" for name, value in result.items()))
    return result


if __name__ == "__main__":
    main()
