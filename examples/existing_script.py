"""A script as it was before: nothing in it knows of TensorRT. `existing_script.diff` is what to change.

python examples/existing_script.py
"""

from __future__ import annotations

from typing import Any

import keras
from sklearn.datasets import load_wine
from sklearn.preprocessing import scale


def main() -> dict[str, Any]:
    wine = load_wine()
    x, y = scale(wine.data), wine.target
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((13,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(3)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])

    model.fit(x, y, epochs=10, verbose=0)
    before = model.predict(x, verbose=0)
    model.fit(x, y, epochs=10, verbose=0)
    after = model.predict(x, verbose=0)
    loss, accuracy = model.evaluate(x, y, verbose=0)
    print(f"accuracy {accuracy:.3f}, loss {loss:.4f}, logits moved by up to {abs(after - before).max():.2f}")
    return {"before": before, "after": after, "loss": loss, "accuracy": accuracy}


if __name__ == "__main__":
    main()
