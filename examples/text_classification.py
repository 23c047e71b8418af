"""Tell whose documentation a sentence is from. `TextVectorization` runs on the CPU in front of the engine.

python examples/text_classification.py
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import keras
import numpy as np
import sklearn.linear_model

import keras_trt  # noqa: F401 (gives models `compile_trt`)

LIBRARIES = [keras.layers, np, sklearn.linear_model]


def sentences() -> tuple[list[str], Any]:
    """Return the sentences of these libraries' own documentation, and the number of the library of each."""
    found: dict[str, int] = {}
    for label, library in enumerate(LIBRARIES):
        for name in sorted(vars(library)):
            text = inspect.getdoc(getattr(library, name)) or "" if not name.startswith("_") else ""
            for sentence in re.split(r"(?<=[.:])\s|\n\n", text)[:20]:
                if len(sentence.split()) >= 6:
                    found.setdefault(" ".join(sentence.split()), label)
    order = np.random.default_rng(0).permutation(len(found))
    return [list(found)[i] for i in order], np.array(list(found.values()))[order]


def main(**options: Any) -> dict[str, Any]:
    texts, labels = sentences()
    split = len(texts) * 4 // 5
    keras.utils.set_random_seed(0)
    words = keras.layers.TextVectorization(4000, output_sequence_length=24)
    words.adapt(texts[:split])
    model = keras.Sequential(
        [
            keras.Input((), dtype="string"),
            words,
            keras.layers.Embedding(4000, 32),
            keras.layers.Conv1D(32, 3, activation="relu"),
            keras.layers.GlobalMaxPooling1D(),
            keras.layers.Dense(len(LIBRARIES)),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(np.array(texts[:split], object), labels[:split], epochs=4, verbose=0)

    test, answers = np.array(texts[split:], object), labels[split:]
    by_keras = model.evaluate(test, answers, verbose=0, return_dict=True)["accuracy"]
    with model.compile_trt(**options) as fast:
        by_engine = model.evaluate(test, answers, verbose=0, return_dict=True)["accuracy"]
        guess = LIBRARIES[model.predict(["Fits a linear model with coefficients."], verbose=0)[0].argmax()].__name__
    print(f"accuracy on {len(test)} sentences: Keras {by_keras:.4f}, engine {by_engine:.4f}")
    print(f"on the CPU: {', '.join(fast.report().on_cpu)}; a new sentence is of {guess}")
    return {"Keras": by_keras, "engine": by_engine, "guess": guess, "on the CPU": fast.report().on_cpu}


if __name__ == "__main__":
    main()
