"""An LSTM that forecasts a signal: the brightness along the lines of a photograph.

python examples/time_series.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import sklearn.datasets
import tensorflow as tf

import keras_trt

STEPS = 24


def windows(lines: Any) -> tuple[Any, Any]:
    """Return all stretches of `STEPS` values of each line, and the value that follows each."""
    cut = np.lib.stride_tricks.sliding_window_view(lines, STEPS + 1, axis=1)[:, ::5].reshape(-1, STEPS + 1)
    return cut[:, :-1, np.newaxis], cut[:, -1:]


def main(**options: Any) -> dict[str, float]:
    file = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
    photograph = tf.io.decode_jpeg(file.read_bytes()).numpy().mean(axis=-1).astype("float32") / 255
    x, y = windows(photograph[:200:4, ::2])
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((STEPS, 1)), keras.layers.LSTM(24), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(1e-2), "mae")
    model.fit(x, y, epochs=4, batch_size=64, verbose=0)

    x, y = windows(photograph[200::4, ::2])
    fast = keras_trt.accelerate(model, **options)
    forecast = fast.predict(x, verbose=0)
    result = {
        "error of the engine's forecast": float(np.abs(forecast - y).mean()),
        "error of the line's mean": float(np.abs(x.mean(axis=1) - y).mean()),
        "largest difference to Keras": float(np.abs(forecast - model.predict(x, verbose=0)).max()),
    }
    print("\n".join(f"{name:<34}{value:.3g}" for name, value in result.items()))
    return result


if __name__ == "__main__":
    main()
