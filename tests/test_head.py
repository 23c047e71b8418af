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
from keras_trt.errors import InputError, VerificationError
from keras_trt.head import Head, split
from keras_trt.specs import OptimizationProfile, ShapeRange

from .forms import FORMS
from .head_models import (
    CASES,
    TEXTS,
    WORDS,
    column_data,
    columns,
    embedding,
    expected,
    nested,
    sequential,
    text_model,
    texts,
    words,
)
from .models import CASES as NUMERIC
from .models import (
    accelerate,
    kept,
    keras,
    kl,
    recorded,
    rows_differ,
    same,
    tf,
    warns_once,
)
from .processes import children, test_processes

# Keras warns so at the end of each generator, even where nothing is missing.
pytestmark = pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")


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


def test_a_head_that_is_wrong_is_seen_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sequential()
    right = Head.__call__

    def wrong(head: Head, inputs: Any) -> Any:
        return [(tokens + 1) % 8 for tokens in right(head, inputs)]

    monkeypatch.setattr(Head, "__call__", wrong)
    with pytest.raises(VerificationError, match="differs from Keras"):
        accelerate(model, sample=words(8), fallback="raise")


def test_the_progress_bar_counts_the_users_batches(capfd: pytest.CaptureFixture[str]) -> None:
    fast = accelerate(text_model(), fallback="raise")
    fast.predict(texts(75), batch_size=20, verbose=1)
    assert "4/4" in capfd.readouterr().out


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


@pytest.mark.parametrize("name", NUMERIC)
def test_a_model_of_numbers_has_no_head(name: str) -> None:
    assert split(NUMERIC[name].build()) is None


def test_preprocessing_that_an_engine_can_do_is_no_head() -> None:
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
    children.say(origin=report.origin, steps=sorted(report.seconds), tf2onnx="tf2onnx" in sys.modules)


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
