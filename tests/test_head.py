"""Models that take strings or look values up: the CPU runs that part of them, in front of the engine."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt import fingerprint
from keras_trt.errors import ExportError, InputError
from keras_trt.head import split
from keras_trt.specs import OptimizationProfile, ShapeRange

from . import test_processes
from .models import (
    FORMS,
    Case,
    accelerate,
    floats,
    integers,
    kept,
    keras,
    kl,
    ops,
    recorded,
    rows_differ,
    same,
    tf,
    warns_once,
)

# Keras warns so at the end of each generator, even where nothing is missing.
pytestmark = pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")

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


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[Any, Any, Callable[[int], Any]]:
    keras.utils.set_random_seed(7)
    model = CASES[request.param].build()
    return model, accelerate(model, fallback="raise"), CASES[request.param].data


# 75 rows: two whole batches of the engine and a partial one.


def test_arrays(case: Any) -> None:
    model, fast, data = case
    x = data(75)
    wanted = expected(model, x)
    rows_differ(wanted["score"] if isinstance(wanted, dict) else wanted)
    assert fast.backend == "onnxruntime"
    for size in (None, 1, 7, 200):
        same(wanted, fast.predict(x, batch_size=size, verbose=0))


@pytest.mark.parametrize("form", FORMS)
def test_data_in_any_form(case: Any, form: str) -> None:
    model, fast, data = case
    x = data(40)  # 17, 17 and 6 rows
    same(expected(model, x), fast.predict(FORMS[form](x, 17), verbose=0))


def test_one_batch_and_calls(case: Any) -> None:
    model, fast, data = case
    x = data(9)
    tensors = keras.tree.map_structure(tf.constant, x)
    same(model.predict_on_batch(tensors), fast.predict_on_batch(x))
    same(model(tensors), fast(tensors))
    same(keras.tree.map_structure(np.asarray, model(tensors)), fast(x))


def test_with_a_sample_the_whole_model_is_compared(case: Any) -> None:
    model, _, data = case
    fast = accelerate(model, sample=data(6), fallback="raise")
    assert all(one.within for one in fast.report().differences)
    same(expected(model, data(9)), fast.predict(data(9), verbose=0))


def test_no_rows(case: Any) -> None:
    model, fast, data = case
    nothing = slice(0, 0)  # of three rows: some layers of Keras fail without any
    same(kept(expected(model, data(3)), nothing), fast.predict(kept(data(3), nothing), verbose=0))


def test_no_more_than_must_be_is_on_the_cpu() -> None:
    heads = {name: split(CASES[name].build()) for name in ("text", "nested", "columns")}
    assert len(heads["text"].layers) == len(heads["nested"].layers) == 1
    kinds = {layer.rstrip("_0123456789") for layer in heads["columns"].layers}
    assert kinds == {"hashed_crossing", "hashing", "integer_lookup", "string_lookup"}
    inside = {type(layer).__name__ for layer in heads["columns"].tail._flatten_layers()}
    assert {"Discretization", "CategoryEncoding", "Normalization", "Embedding", "Dense"} <= inside
    assert not inside & {"HashedCrossing", "Hashing", "IntegerLookup", "StringLookup"}


@pytest.mark.parametrize("name", ["sequential", "columns", "nested model", "int32", "subclassed", "uint8"])
def test_a_model_of_numbers_has_no_head(name: str) -> None:
    from .models import CASES as NUMERIC

    if name != "columns":
        assert split(NUMERIC[name].build()) is None
    inputs = keras.Input((8, 8, 3))
    preprocessed = kl.Rescaling(1 / 255)(kl.Resizing(4, 4)(inputs))
    assert split(keras.Model(inputs, kl.Dense(2)(kl.Flatten()(preprocessed)))) is None


def test_the_model_is_left_as_it_was() -> None:
    model = nested()
    before = fingerprint.structure_key(model), model.get_config(), [layer.name for layer in model.layers]
    accelerate(model, fallback="raise")
    assert before == (fingerprint.structure_key(model), model.get_config(), [layer.name for layer in model.layers])


# Strings of each kind.

KINDS: dict[str, Callable[[list[str]], Any]] = {
    "str": np.array,
    "bytes": lambda x: np.array([text.encode() for text in x]),
    "objects": lambda x: np.array(x, object),
    "objects of bytes": lambda x: np.array([text.encode() for text in x], object),
    "numpy's own strings": lambda x: np.array(x, np.dtypes.StringDType()),
    "list": lambda x: x,
    "tuple": tuple,
    "list of bytes": lambda x: [text.encode() for text in x],
    "array in a list": lambda x: [np.array(x)],
    "tensor": tf.constant,
    "column": lambda x: np.array(x)[:, np.newaxis],
    "by name": lambda x: {"text": np.array(x, object)},
    "list by name": lambda x: {"text": x},
    "tensor by name": lambda x: {"text": tf.constant(x)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_strings_of_each_kind(kind: str) -> None:
    model = text_model()
    fast = accelerate(model, fallback="raise")
    wanted = expected(model, np.array(TEXTS, object))
    x = KINDS[kind](TEXTS)
    same(wanted, fast.predict(x, verbose=0))
    same(wanted, fast.predict_on_batch(x))
    same(wanted, np.asarray(fast(x)))
    batches = [(x,), (x,)]
    if not isinstance(x, list | tuple) and kind != "list by name":  # Keras takes a list in a batch for several inputs
        same(np.concatenate([wanted, wanted]), fast.predict((batch for batch in batches), verbose=0))


@pytest.mark.parametrize(
    ("x", "words_of_error"),
    [
        ({"number": np.array([[1]]), "size": np.ones((1, 1)), "word": np.array([[1.5]])}, "'word' takes strings"),
        ({"number": np.array([["1"]]), "size": np.ones((1, 1)), "word": [["a"]]}, "'number' takes numbers"),
        ({"number": np.array([[1]]), "size": np.ones((1, 1)), "word": np.array([[None]])}, "'word' takes string"),
        ({"number": np.array([[1]] * 2), "size": np.ones((2, 1)), "word": np.array([["a"], [3]], object)}, "'word'"),
        ({"number": np.array([[1]]), "size": np.ones((1, 1)), "word": "alpha"}, "'word' takes an array"),
        ({"number": np.array([[1]]), "size": np.ones((1, 1)), "word": np.array([["a"], ["b"]])}, "number of rows"),
        ({"number": np.array([[1]]), "size": np.ones((1, 1)), "word": np.array([["a", "b"]])}, "(batch, 1)"),
    ],
)
def test_what_is_no_string(x: Any, words_of_error: str) -> None:
    fast = accelerate(columns(), fallback="raise")
    for run in (lambda: fast.predict(x, verbose=0), lambda: fast.predict_on_batch(x), lambda: fast(x)):
        with pytest.raises(InputError) as caught:
            run()
        assert words_of_error in str(caught.value)
        assert "eceived" in str(caught.value)


def test_a_word_that_a_table_has_no_place_for() -> None:
    inputs = keras.Input((1,), dtype="string")
    lookup = kl.StringLookup(vocabulary=WORDS, num_oov_indices=0)
    model = keras.Model(inputs, kl.Flatten()(embedding(8)(lookup(inputs))))
    fast = accelerate(model, fallback="raise")
    good = np.array([["alpha"], ["beta"]])
    same(expected(model, good.astype(object)), fast.predict(good, verbose=0))
    with pytest.raises(InputError, match="refuses the data"):
        fast.predict(np.array([["unknown"]]), verbose=0)


def test_a_sample_that_is_no_string() -> None:
    with pytest.raises(InputError, match="takes strings"):
        accelerate(text_model(), sample=np.ones(3))


# Lengths that depend on the batch.


def test_texts_as_long_as_the_longest_of_their_batch() -> None:
    keras.utils.set_random_seed(7)
    model = text_model(output_sequence_length=None)
    name = split(model).tail.inputs[0].name
    profile = OptimizationProfile({name: ShapeRange((1, 1), (4, 3), (8, 5))})
    fast = accelerate(model, profiles=profile, fallback="raise")
    x = texts(18)
    for size in (2, 3, 8):
        same(model.predict(tf.constant(x), batch_size=size, verbose=0), fast.predict(x, batch_size=size, verbose=0))
    by_twos, by_eights = (model.predict(tf.constant(x), batch_size=size, verbose=0) for size in (2, 8))
    assert np.abs(by_twos - by_eights).max() > 1e-3, "the padding acts on nothing"
    long = np.array(["alpha beta gamma delta alpha beta"])
    with recorded() as records:
        found = fast.predict(long, verbose=0)
    warns_once(records, "axis 1", "6", "1 to 5")
    same(expected(model, long.astype(object)), found)


def test_an_unknown_length_is_named() -> None:
    model = text_model(output_sequence_length=None)
    with pytest.raises(ValueError, match="Axis 1 of input 'text_vectorization"):
        accelerate(model)


# What cannot be cut.


class InAClass(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.lookup, self.table, self.out = kl.StringLookup(vocabulary=WORDS), embedding(8), kl.Dense(2)

    def call(self, x: Any) -> Any:
        return self.out(self.table(self.lookup(x)))


def in_a_class() -> Any:
    model = InAClass()
    model(tf.constant([["alpha"]]))
    return model


def with_weights() -> Any:
    inputs = keras.Input((1,), dtype="string")
    return keras.Model(inputs, kl.Dense(2)(InAClass()(inputs)))


def behind_a_network() -> Any:
    inputs = keras.Input((4,))
    labels = kl.StringLookup(vocabulary=WORDS, invert=True, name="labels")
    return keras.Model(inputs, labels(ops.argmax(kl.Dense(3, name="scores")(inputs), -1)))


def behind_a_network_and_inside() -> Any:
    number = keras.Input((1,), dtype="int64")
    lookup = kl.IntegerLookup(vocabulary=[1, 2], name="lookup")
    inner = keras.Model(number, kl.Flatten()(embedding(3)(lookup(number))), name="inner")
    inputs = keras.Input((4,))
    scores = kl.Dense(3, name="scores")(inputs)
    return keras.Model(inputs, inner(ops.cast(ops.argmax(scores, -1, keepdims=True), "int64")))


def of_strings() -> Any:
    inputs = keras.Input((1,), dtype="string", name="text")
    return keras.Model(inputs, [inputs, embedding(8)(kl.StringLookup(vocabulary=WORDS)(inputs))])


def nothing_else() -> Any:
    inputs = keras.Input((1,), dtype="string")
    return keras.Model(inputs, kl.StringLookup(vocabulary=WORDS, name="lookup")(inputs))


def ragged() -> Any:
    inputs = keras.Input((), dtype="string")
    tokens = kl.TextVectorization(vocabulary=WORDS, ragged=True, name="tokens")(inputs)
    return keras.Model(inputs, kl.Lambda(lambda x: x * 2, output_shape=(None,))(tokens))


def sparse() -> Any:
    inputs = keras.Input((1,), dtype="string")
    lookup = kl.StringLookup(vocabulary=WORDS, output_mode="multi_hot", sparse=True, name="lookup")
    return keras.Model(inputs, kl.Dense(2)(lookup(inputs)))


@pytest.mark.parametrize(
    ("build", "layer", "said"),
    [
        (in_a_class, "string_lookup", "Make a Functional model"),
        (with_weights, "in_a_class", "Make two layers of it"),
        (behind_a_network, "labels", "behind 'scores'"),
        (behind_a_network_and_inside, "inner/lookup", "behind 'scores'"),
        (of_strings, "text", "Make a model without this output"),
        (nothing_else, None, "left for an engine"),
        (ragged, "tokens", "ragged=False"),
        (sparse, "lookup", "sparse=False"),
    ],
)
def test_what_cannot_be_cut_names_the_layer(build: Any, layer: str | None, said: str) -> None:
    with pytest.raises(ExportError) as caught:
        accelerate(build(), fallback="raise")
    assert said in str(caught.value)
    if layer is not None:
        assert layer in str(caught.value.layer)
        assert layer in str(caught.value)


def test_what_cannot_be_cut_is_run_by_keras_with_one_warning() -> None:
    model = in_a_class()
    with recorded() as records:
        fast = accelerate(model)
    warns_once(records, "Keras runs", "string_lookup")
    x = tf.constant(words(5))
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))


# Snapshots, policies, threads.


def test_a_vocabulary_that_is_set_later_does_not_reach_it() -> None:
    model = sequential()
    fast = accelerate(model, fallback="raise")
    x = words(8)
    before = expected(model, x)
    model.layers[0].set_vocabulary(WORDS[::-1])
    after = model(tf.constant(x)).numpy()
    assert np.abs(before - after).max() > 1e-2
    same(before, fast.predict(x, verbose=0))


def test_under_a_mixed_policy_the_head_gives_float32() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = columns()
    finally:
        keras.config.set_dtype_policy("float32")
    fast = accelerate(model, sample=column_data(8), fallback="raise")
    assert fast.report().differences[0].relative_l2 < 1e-5  # of float32: the table's weights are no halves
    found = fast.predict(column_data(9), verbose=0)
    assert found.dtype == np.float16
    same(expected(model, column_data(9)), found, 2e-2)


def test_threads_share_a_head() -> None:
    model = text_model()
    fast = accelerate(model, fallback="raise")
    parts = [texts(20 + i)[i:] for i in range(8)]
    wanted, found = [expected(model, part) for part in parts], [None] * len(parts)

    def run(place: int) -> None:
        for _ in range(10):
            found[place] = fast.predict(parts[place], verbose=0)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(wanted, found, strict=True):
        same(one, other)


# The cache.


def test_another_vocabulary_of_the_same_size_has_the_same_engine(cache: keras_trt.EngineCache) -> None:
    def start(vocabulary: list[str]) -> str:
        keras.utils.set_random_seed(7)
        model = text_model(vocabulary)
        fast = accelerate(model, cache=cache, fallback="raise")
        found = fast.predict(texts(9), verbose=0)
        same(expected(model, texts(9)), found)
        answers.append(found)
        return str(fast.report().origin)

    answers: list[np.ndarray] = []
    assert start(WORDS) == "built"
    assert start(WORDS) == "cache"
    assert start(WORDS[::-1]) == "cache"
    assert np.abs(answers[0] - answers[2]).max() > 1e-2
    assert start([*WORDS, "unknown"]) == "built"


def say_start(cache: str, reverse: str) -> None:
    """What a process of its own does: start, and say how."""
    keras.utils.set_random_seed(7)
    model = text_model(WORDS[::-1] if reverse == "reverse" else WORDS)
    fast = accelerate(model, cache=cache, fallback="raise")
    same(expected(model, texts(9)), fast.predict(texts(9), verbose=0))
    report = fast.report()
    test_processes.say(origin=report.origin, steps=sorted(report.seconds), tf2onnx="tf2onnx" in sys.modules)


def test_a_second_process_finds_the_engine(tmp_path: Path) -> None:
    def start(vocabulary: str) -> Any:
        command = [sys.executable, "-m", "tests.test_head", str(tmp_path / "cache"), vocabulary]
        environment, folder = test_processes.environment(), test_processes.REPOSITORY
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    assert start("as it is")["origin"] == "built"
    for vocabulary in ("as it is", "reverse"):
        second = start(vocabulary)
        assert second["origin"] == "cache"
        assert not second["tf2onnx"]
        assert not {"export", "build"} & set(second["steps"])


if __name__ == "__main__":
    say_start(*sys.argv[1:])
