"""A model with three named inputs and two outputs: data in dicts, and a `tf.data.Dataset`.

python examples/multiple_inputs.py
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import scale

import keras_trt


def main(**options: Any) -> dict[str, float]:
    cancer = load_breast_cancer()
    features = scale(cancer.data).astype("float32")
    x = {"mean": features[:, :10], "error": features[:, 10:20], "worst": features[:, 20:]}
    y = {"benign": cancer.target[:, np.newaxis].astype("float32"), "radius": features[:, :1]}
    keras.utils.set_random_seed(0)
    inputs = {name: keras.Input((10,), name=name) for name in x}
    parts = [keras.layers.Dense(16, activation="relu")(part) for part in inputs.values()]
    joined = keras.layers.Dense(16, activation="relu")(keras.layers.Concatenate()(parts))
    outputs = {
        "benign": keras.layers.Dense(1, activation="sigmoid", name="benign")(joined),
        "radius": keras.layers.Dense(1, name="radius")(joined),
    }
    model = keras.Model(inputs, outputs)
    model.compile("adam", {"benign": "binary_crossentropy", "radius": "mse"}, metrics={"benign": ["accuracy"]})
    model.fit(x, y, epochs=15, verbose=0)

    fast = keras_trt.accelerate(model, **options)
    found = fast.predict(tf.data.Dataset.from_tensor_slices(x).batch(100), verbose=0)
    expected = model.predict(x, verbose=0)
    result = {
        "largest difference": max(float(np.abs(found[name] - expected[name]).max()) for name in expected),
        "accuracy": fast.evaluate(x, y, verbose=0, return_dict=True)["benign_accuracy"],
    }
    print("\n".join(f"{name:<20}{value:.2g}" for name, value in result.items()))
    return result


if __name__ == "__main__":
    main()
