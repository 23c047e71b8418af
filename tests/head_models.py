"""Models that take strings or look values up, and data for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .models import Case, floats, integers, keras, kl, tf

WORDS = ["alpha", "beta", "gamma", "delta", "über", "日本語"]
#: Also what no vocabulary has: an unknown word, nothing at all, blanks, a letter outside the first plane.
TEXTS = ["alpha beta", "", "über 日本語", "unknown", "gamma gamma alpha delta beta", " ", "𝄞 alpha", "Beta!", "delta"]


def texts(rows: int, *shape: int) -> np.ndarray:
    """Rows of strings, in an order in which neighbours differ."""
    count = rows * int(np.prod(shape, dtype=int))
    return np.array([TEXTS[i % len(TEXTS)] for i in range(count)], object).reshape(rows, *shape)


def words(rows: int) -> np.ndarray:
    pool = [*WORDS, "", "unknown"]
    return np.array([[pool[i * 3 % len(pool)]] for i in range(rows)], object)


def embedding(size: int) -> Any:
    return kl.Embedding(size, 4, embeddings_initializer="normal")


def expected(model: Any, x: Any) -> Any:
    """Keras's answers; its own `predict` takes strings in tensors and refuses most arrays of them."""
    return model.predict(keras.tree.map_structure(tf.constant, x), verbose=0)


def text_model(vocabulary: list[str] = WORDS, **options: Any) -> Any:
    text = keras.Input((), dtype="string", name="text")
    layer = kl.TextVectorization(vocabulary=vocabulary, **{"output_sequence_length": 4, **options})
    tokens = embedding(layer.vocabulary_size())(layer(text))
    return keras.Model(text, kl.Dense(3)(kl.GlobalAveragePooling1D()(tokens)))


def sequential() -> Any:
    lookup = kl.StringLookup(vocabulary=WORDS, mask_token="")
    return keras.Sequential([keras.Input((1,), dtype="string"), lookup, embedding(8), kl.Flatten(), kl.Dense(3)])


def nested() -> Any:
    """An inner model that is cut, called twice; its layer bears the name of an outer one."""
    inner_text, inner_number = keras.Input((1,), dtype="string", name="text"), keras.Input((4,), name="number")
    inner_tokens = kl.Flatten()(embedding(8)(kl.StringLookup(vocabulary=WORDS, name="same")(inner_text)))
    inner = keras.Model([inner_number, inner_text], kl.Dense(4, activation="tanh")(inner_tokens + inner_number))
    first, second = (keras.Input((1,), dtype="string", name=name) for name in ("first", "second"))
    number = keras.Input((4,), name="number")
    both = kl.Concatenate(name="same")([inner([number, first]), inner({"text": second, "number": number * 2})])
    return keras.Model([first, second, number], kl.Dense(3)(both))


def columns() -> Any:
    """Each kind of lookup, on strings and integers, beside what an engine can do by itself."""
    word, number = keras.Input((1,), dtype="string", name="word"), keras.Input((1,), dtype="int64", name="number")
    size = keras.Input((1,), name="size")
    bins = kl.Discretization([-1.0, 0.0, 1.0])(size)
    crossed = kl.Flatten()(embedding(13)(kl.HashedCrossing(13)([word, number])))
    parts = [
        crossed,
        kl.HashedCrossing(7, output_mode="one_hot")([number, bins]),  # the bins are needed on both sides
        kl.CategoryEncoding(4, "one_hot")(bins),
        kl.CategoryEncoding(5, "one_hot")(kl.Hashing(5)(number)),
        kl.IntegerLookup(vocabulary=[1, 5, 9], output_mode="one_hot")(number),
        kl.Normalization(mean=0.5, variance=2.0)(size),
        kl.StringLookup(vocabulary=WORDS, output_mode="tf_idf", idf_weights=[0.3, 0.5, 0.7, 0.9, 1.1, 1.3])(word),
    ]
    return keras.Model({"word": word, "number": number, "size": size}, kl.Dense(3)(kl.Concatenate()(parts)))


def column_data(rows: int) -> dict[str, Any]:
    return {"number": integers(12, 1, dtype="int64")(rows), "size": floats(1)(rows), "word": words(rows)}


def feature_space() -> Any:
    kinds = {"s": "string_categorical", "h": "string_hashed", "i": "integer_categorical", "f": "float_normalized"}
    space = keras.utils.FeatureSpace({**kinds, "d": "float_discretized"}, crosses=[("s", "i")], crossing_dim=8)
    space.adapt(tf.data.Dataset.from_tensor_slices(space_data(40)))
    inputs = space.get_inputs()
    return keras.Model({name: inputs[name] for name in sorted(inputs)}, kl.Dense(3)(space.get_encoded_features()))


def space_data(rows: int) -> dict[str, Any]:
    data = {"d": floats(1)(rows), "f": 3 * floats(1)(rows), "h": words(rows)[::-1]}
    return {**data, "i": integers(9, 1)(rows), "s": words(rows)}


def lowered() -> Any:
    """Code of a user's own in the head, and the tokens themselves as an output."""
    text = keras.Input((1,), dtype="string", name="text")
    lower = kl.Lambda(tf.strings.lower, output_shape=(1,), dtype="string", name="lower")(text)
    tokens = kl.StringLookup(vocabulary=WORDS)(lower)
    return keras.Model(text, {"score": kl.Dense(3)(kl.Flatten()(embedding(7)(tokens))), "tokens": tokens})


CASES: dict[str, Case] = {
    "text": Case(text_model, texts),
    "sequential": Case(sequential, words),
    "nested": Case(nested, lambda rows: [words(rows), words(rows + 1)[1:], floats(4)(rows)]),
    "columns": Case(columns, column_data),
    "feature space": Case(feature_space, space_data),
    "lowered": Case(lowered, lambda rows: np.array([[word.title()] for (word,) in words(rows)], object)),
}
