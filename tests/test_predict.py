"""`predict`, `predict_on_batch` and `__call__` of the drop-in against Keras's own."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_trt

from .forms import FORMS
from .models import (
    CASES,
    DEPENDENT,
    INDEPENDENT,
    accelerate,
    floats,
    kept,
    keras,
    kl,
    pair,
    recorded,
    rows_differ,
    rows_of,
    same,
    tf,
    warns_once,
)

# Keras warns so at the end of each generator, even where nothing is missing.
pytestmark = pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")

ROWS = 75  # two whole batches of the engine and a partial one


# Structures, ways to hand data over, batch sizes.


@pytest.mark.parametrize("name", INDEPENDENT)
def test_arrays_in_batches_of_any_size(name: str) -> None:
    model, fast = pair(name)
    x = CASES[name].data(ROWS)
    expected = model.predict(x, batch_size=25, verbose=0)
    rows_differ(expected)
    assert fast.backend == "onnxruntime"
    assert fast.report().rows_independent
    for size in (None, 1, 7, 32, 200):
        same(expected, fast.predict(x, batch_size=size, verbose=0))


EACH_FORM = ["sequential", "list inputs", "dict inputs", "nested inputs", "nested outputs", "bool"]


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, form) for name in INDEPENDENT for form in (FORMS if name in EACH_FORM else ["dataset of x"])],
)
def test_data_in_any_form(name: str, form: str) -> None:
    model, fast = pair(name)
    x = CASES[name].data(40)  # 17, 17 and 6 rows
    expected = model.predict(FORMS[form](x, 17), verbose=0)
    rows_differ(expected)
    assert rows_of(expected) == 40
    same(expected, fast.predict(FORMS[form](x, 17), verbose=0))


@pytest.mark.parametrize("name", ["list inputs", "tuple inputs", "dict inputs"])
def test_lists_tuples_and_dicts_stand_for_each_other(name: str) -> None:
    model, fast = pair(name)
    x = CASES[name].data(9)
    expected = model.predict(x, verbose=0)
    # Keras warns of a dict for a list in some versions; the numbers are what matters.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name != "dict inputs":
            by_name = dict(zip(("first", "second"), x, strict=True))
            for nesting in (list(x), tuple(x), by_name, dict(reversed(by_name.items()))):
                same(model.predict(nesting, verbose=0), expected)
                same(expected, fast.predict(nesting, verbose=0))
        else:
            same(expected, fast.predict(dict(sorted(x.items())), verbose=0))


@pytest.mark.parametrize("nesting", [lambda x: x, lambda x: [x], lambda x: (x,), lambda x: {"image": x}])
def test_one_input_bare_in_a_container_or_by_name(nesting: Callable[[Any], Any]) -> None:
    model, fast = pair("image")
    x = floats(8, 8, 3)(5)
    same(model.predict(x, verbose=0), fast.predict(nesting(x), verbose=0))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.integers(1, 100), size=st.integers(1, 120))
def test_any_number_of_rows_in_any_batches(rows: int, size: int) -> None:
    model, fast = pair("nested outputs")
    x = floats(4)(rows)
    found = fast.predict(x, batch_size=size, verbose=0)
    same(model.predict(x, batch_size=size, verbose=0), found)
    for row in {0, rows // 2, rows - 1}:
        same(fast.predict_on_batch(x[row : row + 1]), kept(found, slice(row, row + 1)))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(rows=st.integers(1, 60), size=st.integers(1, 32))
def test_any_number_of_rows_in_any_batches_of_rows_that_depend(rows: int, size: int) -> None:
    model, fast = pair("minus mean")
    x = floats(4)(rows)
    same(model.predict(x, batch_size=size, verbose=0), fast.predict(x, batch_size=size, verbose=0))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 70), min_size=1, max_size=5))
def test_batches_of_any_sizes(sizes: list[int]) -> None:
    _, fast = pair("sequential")
    x, ends = floats(4)(sum(sizes)), np.cumsum(sizes)
    batches = ((x[end - size : end],) for size, end in zip(sizes, ends, strict=True))
    same(fast.predict(x, verbose=0), fast.predict(batches, verbose=0))


def test_batches_of_different_lengths_give_ragged_outputs() -> None:
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, kl.Dense(2)(inputs))
    with recorded() as records:
        fast = accelerate(model, sample=floats(5, 3)(2))
        found = fast.predict((x for x in [(floats(5, 3)(4),), (floats(6, 3)(4),)]), verbose=0)
    warns_once(records, "axis 1", "6", "5")
    expected = model.predict((x for x in [(floats(5, 3)(4),), (floats(6, 3)(4),)]), verbose=0)
    assert type(found) is type(expected)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.to_tensor(), expected.to_tensor(), atol=1e-5)


def test_the_engine_runs_and_keras_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CASES["sequential"].build()
    fast = accelerate(model)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("Keras ran")

    for method in ("call", "predict", "predict_on_batch", "__call__"):
        monkeypatch.setattr(type(model), method, refuse)
    x = floats(4)(50)
    fast.predict(x, verbose=0)
    fast.predict((part for part in [(x,), (x,)]), verbose=0)
    fast.predict_on_batch(x)
    fast(x)


def test_it_is_a_snapshot_and_leaves_the_model_alone() -> None:
    model = CASES["sequential"].build()
    before = [array.copy() for array in model.get_weights()]
    fast = accelerate(model)
    x = floats(4)(5)
    expected = model.predict(x, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    model.set_weights([array + 1 for array in before])
    assert np.abs(model.predict(x, verbose=0) - expected).max() > 0.1
    same(expected, fast.predict(x, verbose=0))


# Steps.


@pytest.mark.parametrize(("size", "steps"), [(4, 2), (4, 1), (None, 3), (None, 10), (7, 2), (10, 1), (None, 1)])
@pytest.mark.parametrize("name", ["sequential", "minus mean"])
def test_steps_limit_arrays(name: str, size: int | None, steps: int) -> None:
    model, fast = pair(name)
    x = floats(4)(10)
    same(
        model.predict(x, batch_size=size, steps=steps, verbose=0),
        fast.predict(x, batch_size=size, steps=steps, verbose=0),
    )


@pytest.mark.parametrize("form", list(FORMS)[1:])
def test_steps_limit_batches(form: str) -> None:
    model, fast = pair("sequential")
    x = floats(4)(10)
    expected = model.predict(FORMS[form](x, 3), steps=2, verbose=0)
    assert len(expected) == 6
    same(expected, fast.predict(FORMS[form](x, 3), steps=2, verbose=0))


def test_steps_limit_endless_data() -> None:
    model, fast = pair("sequential")
    x = floats(4)(6)
    endless = tf.data.Dataset.from_tensor_slices(x).repeat().batch(4)
    same(model.predict(endless, steps=5, verbose=0), fast.predict(endless, steps=5, verbose=0))


@pytest.mark.parametrize("form", ["arrays", *list(FORMS)[1:]])
def test_too_many_steps_warn(form: str) -> None:
    model, fast = pair("sequential")
    x = floats(4)(10)

    def data() -> Any:
        return x if form == "arrays" else FORMS[form](x, 4)

    size = 4 if form == "arrays" else None
    with pytest.warns(UserWarning, match="ran out of data"):
        expected = model.predict(data(), batch_size=size, steps=7, verbose=0)
    with pytest.warns(UserWarning, match="data ended") as records:
        found = fast.predict(data(), batch_size=size, steps=7, verbose=0)
    assert len(records) == 1
    same(expected, found)


def test_the_limit_of_keras_config_counts() -> None:
    model, fast = pair("sequential")
    x = floats(4)(20)
    keras.config.set_max_steps_per_epoch(2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras says that it limits
            expected = model.predict(x, batch_size=4, verbose=0)
            found = fast.predict(x, batch_size=4, verbose=0)
    finally:
        keras.config.set_max_steps_per_epoch(None)
    assert len(expected) == 8
    same(expected, found)


# The progress bar and callbacks.


def _steps_shown(text: str) -> list[str]:
    """The steps in what a progress bar drew, without times and colours."""
    steps = re.findall(r"\d+/(?:\d+|Unknown)", re.sub(r"\x1b\[[0-9;]*m", "", text))
    return sorted(set(steps), key=lambda step: int(step.split("/")[0]))


@pytest.mark.parametrize("verbose", ["auto", 0, 1, 2])
@pytest.mark.parametrize("name", ["sequential", "minus mean"])
@pytest.mark.parametrize("rows", [75, 3])
def test_progress_bar(name: str, verbose: Any, rows: int, capfd: pytest.CaptureFixture[str]) -> None:
    model, fast = pair(name)
    x = floats(4)(rows)
    model.predict(x, batch_size=10, verbose=0)
    model.predict(x, batch_size=10, verbose=verbose)
    expected = capfd.readouterr().out
    fast.predict(x, batch_size=10, verbose=verbose)
    found = capfd.readouterr().out
    assert bool(found) == bool(expected) == (verbose != 0)
    if verbose:
        # Keras draws at most 20 times a second: only the last step is sure to be seen.
        assert _steps_shown(found)[-1:] == _steps_shown(expected)[-1:] == [f"{-(-rows // 10)}/{-(-rows // 10)}"]
        assert {step.split("/")[1] for step in _steps_shown(found)} == {str(-(-rows // 10))}
        assert found.count("\n") == expected.count("\n")


@pytest.mark.parametrize("form", ["arrays", *list(FORMS)[1:]])
@pytest.mark.parametrize("steps", [None, 2, 7])
def test_progress_bar_of_data_in_any_form(form: str, steps: int | None, capfd: pytest.CaptureFixture[str]) -> None:
    model, fast = pair("sequential")
    x = floats(4)(10)
    shown = []
    for one in (model, fast):
        data, size = (x, 3) if form == "arrays" else (FORMS[form](x, 3), None)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*(ran out of data|data ended)", UserWarning)
            one.predict(data, batch_size=size, steps=steps, verbose=1)
        out = capfd.readouterr().out
        assert out
        shown.append(_steps_shown(out)[-1:])
    assert shown[0] == shown[1]


class Recorder(keras.callbacks.Callback):
    """Writes down all that it is told."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.events: list[tuple[Any, ...]] = []
        self.outputs: list[Any] = []

    def on_predict_begin(self, logs: Any = None) -> None:
        self.events.append(("begin", logs, self.params["steps"], self.params["verbose"]))

    def on_predict_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.events.append(("batch begin", batch, logs))

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        self.events.append(("batch end", batch, sorted(logs)))
        self.outputs.append(keras.tree.map_structure(np.array, logs))
        if batch == self.stop_at:
            self.model.stop_predicting = True

    def on_predict_end(self, logs: Any = None) -> None:
        self.events.append(("end", logs))


@pytest.mark.parametrize("form", ["arrays", *FORMS])
@pytest.mark.parametrize("stop_at", [None, 0, 2])
@pytest.mark.parametrize("name", ["nested outputs", "minus mean"])
def test_callbacks(name: str, form: str, stop_at: int | None) -> None:
    model, fast = pair(name)
    x = floats(4)(11)
    expected, found = Recorder(stop_at), Recorder(stop_at)
    results = []
    for one, recorder in ((model, expected), (fast, found)):
        data = x if form == "arrays" else FORMS[form](x, 3)
        size = 3 if form in ("arrays", "tensors") else None
        results.append(one.predict(data, batch_size=size, verbose=0, callbacks=[recorder]))
        assert recorder.model is one
    same(*results)
    assert rows_of(results[1]) == (11 if stop_at is None else 3 * (stop_at + 1))
    if form == "generator" and stop_at is None:
        # Keras begins a batch before it asks a generator, which then has none: nothing to copy.
        assert expected.events.pop(-2)[:2] == ("batch begin", 4)
    assert found.events == expected.events
    same(expected.outputs, found.outputs)
    # The next call starts afresh.
    assert rows_of(fast.predict(x, batch_size=3, verbose=0, callbacks=[Recorder()])) == 11


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_callbacks_with_steps(steps: int) -> None:
    model, fast = pair("sequential")
    x = floats(4)(11)
    expected, found = Recorder(), Recorder()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(ran out of data|data ended)", UserWarning)
        same(
            model.predict(x, batch_size=4, steps=steps, verbose=0, callbacks=[expected]),
            fast.predict(x, batch_size=4, steps=steps, verbose=0, callbacks=[found]),
        )
    assert found.events == expected.events


def test_lambda_callbacks_and_callback_lists() -> None:
    model, fast = pair("sequential")
    x = floats(4)(11)
    seen: list[int] = []
    fast.predict(
        x, 4, 0, callbacks=keras.callbacks.LambdaCallback(on_predict_batch_end=lambda batch, **_: seen.append(batch))
    )
    assert seen == [0, 1, 2]
    recorder = Recorder()
    fast.predict(x, 4, 0, callbacks=keras.callbacks.CallbackList([recorder], model=fast, steps=3, verbose=0))
    assert [event[0] for event in recorder.events].count("batch end") == 3
    same(model.predict(x, 4, 0, 2), fast.predict(x, 4, 0, 2))  # Keras's order of arguments


# No rows.


@pytest.mark.parametrize("name", [*INDEPENDENT, "minus mean", "over max", "times size"])
def test_no_rows(name: str) -> None:
    model, fast = pair(name)
    x = CASES[name].data(0)
    expected = model.predict_on_batch(x)
    same(expected, fast.predict_on_batch(x))
    same(expected, fast.predict(x, verbose=0))  # where Keras itself stumbles
    same(expected, fast(x))


def test_no_rows_for_an_output_without_rows() -> None:
    model, fast = pair("reduced")
    x = floats(4)(0)
    expected = model.predict_on_batch(x)  # the mean of nothing
    assert expected.shape == (1, 3)
    same(expected, fast.predict_on_batch(x))


# One batch.


@pytest.mark.parametrize("name", INDEPENDENT)
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_predict_on_batch(name: str, rows: int) -> None:
    model, fast = pair(name)
    x = CASES[name].data(rows)
    same(model.predict_on_batch(x), fast.predict_on_batch(x))


@pytest.mark.parametrize("name", INDEPENDENT)
def test_call_gives_the_kind_that_it_is_given(name: str) -> None:
    model, fast = pair(name)
    x = CASES[name].data(5)
    tensors = keras.tree.map_structure(tf.constant, x)
    expected = keras.tree.map_structure(np.asarray, model(tensors))
    same(expected, fast(x))
    found = fast(tensors)
    keras.tree.map_structure(lambda one: pytest.fail(f"{type(one)}") if not tf.is_tensor(one) else None, found)
    same(expected, keras.tree.map_structure(np.asarray, found))
    for training in (False, None):
        same(expected, fast(x, training=training))


def test_call_with_both_kinds_gives_tensors() -> None:
    model, fast = pair("list inputs")
    first, second = CASES["list inputs"].data(5)
    found = fast([first, tf.constant(second)])
    assert tf.is_tensor(found)
    same(np.asarray(model([first, second])), np.asarray(found))


def test_training_is_run_by_keras_with_one_warning() -> None:
    model = keras.Sequential([keras.Input((50,)), kl.Dropout(0.5)])
    fast = accelerate(model)
    x = floats(50)(4)
    same(x, fast(x))
    with recorded() as records:
        found = fast(x, training=True)
        tensor = fast(tf.constant(x), training=True)
    warns_once(records, "training=True", "Keras")
    assert isinstance(found, np.ndarray)
    assert tf.is_tensor(tensor)
    for one in (found, np.asarray(tensor)):
        dropped = one == 0
        assert 0.3 < dropped.mean() < 0.7
        np.testing.assert_allclose(one[~dropped], 2 * x[~dropped], rtol=1e-5)
    same(x, fast(x))


def test_training_updates_what_it_updates_in_keras() -> None:
    model = keras.Sequential([keras.Input((4,)), kl.BatchNormalization()])
    fast = accelerate(model)
    x = floats(4)(32) + 5
    with recorded():
        fast(x, training=True)
    assert np.abs(model.layers[0].moving_mean.numpy()).max() > 0.01
    same(fast.predict(x, verbose=0), fast(x))  # the snapshot stays


def test_inside_a_tf_function_keras_runs_with_one_warning() -> None:
    model = CASES["dict outputs"].build()
    fast = accelerate(model)
    function = tf.function(lambda x: fast(x))
    x = tf.constant(floats(4)(5))
    with recorded() as records:
        found = function(x)
        function(tf.constant(floats(4)(6)))
    warns_once(records, "symbolic")
    same(keras.tree.map_structure(np.asarray, model(x)), keras.tree.map_structure(np.asarray, found))


def test_on_a_keras_tensor_it_makes_a_model() -> None:
    model = CASES["sequential"].build()
    fast = accelerate(model)
    with recorded() as records:
        inputs = keras.Input((4,))
        outer = keras.Model(inputs, fast(inputs) * 2)
    warns_once(records, "symbolic")
    x = floats(4)(5)
    same(2 * model.predict(x, verbose=0), outer.predict(x, verbose=0))


class WithArguments(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = kl.Dense(3)

    def call(self, x: Any, scale: float = 1.0) -> Any:
        return self.dense(x) * scale


def test_further_arguments_of_call_are_run_by_keras() -> None:
    model = WithArguments()
    x = floats(4)(5)
    expected = model(x).numpy()
    fast = accelerate(model)
    same(expected, fast(x))
    with recorded() as records:
        same(3 * expected, fast(x, scale=3.0))
    warns_once(records, "`scale`")


# Rows that depend on each other.


@pytest.mark.parametrize("name", DEPENDENT)
def test_dependent_rows_run_in_exactly_the_users_batches(name: str) -> None:
    model, fast = pair(name)
    x = floats(4)(61)
    assert fast.backend == "onnxruntime"
    assert not fast.report().rows_independent
    results = []
    for size in (1, 7, 32, 31, None):
        expected = model.predict(x, batch_size=size, verbose=0)
        results.append(expected)
        same(expected, fast.predict(x, batch_size=size, verbose=0))
    rows_differ(results[1])
    # The batches do matter, so that this can fail.
    assert results[0].shape != results[1].shape or np.abs(results[0] - results[1]).max() > 1e-3
    for form in ("dataset of x, y", "generator"):
        same(model.predict(FORMS[form](x, 9), verbose=0), fast.predict(FORMS[form](x, 9), verbose=0))
    for rows in (1, 2, 32):
        same(model.predict_on_batch(x[:rows]), fast.predict_on_batch(x[:rows]))
        same(np.asarray(model(x[:rows])), fast(x[:rows]))


@pytest.mark.parametrize("name", DEPENDENT)
def test_dependent_rows_over_the_largest_batch_are_run_by_keras(name: str) -> None:
    model = CASES[name].build()
    fast = accelerate(model, batch_sizes=(2, 4, 8))
    x = floats(4)(20)
    with recorded() as records:
        same(model.predict(x, batch_size=20, verbose=0), fast.predict(x, batch_size=20, verbose=0))
        same(model.predict_on_batch(x), fast.predict_on_batch(x))
        same(model.predict(x, batch_size=16, verbose=0), fast.predict(x, batch_size=16, verbose=0))
    found = [str(record.message) for record in records]
    assert "batch_sizes" in found[0]
    assert "20" in found[0]
    same(model.predict_on_batch(x[:8]), fast.predict_on_batch(x[:8]))


def test_batches_of_many_sizes_over_the_largest_warn_once() -> None:
    model = CASES["minus mean"].build()
    fast = accelerate(model, batch_sizes=(1, 4, 8))
    x = floats(4)(20)
    with recorded() as records:
        for rows in (9, 10, 11, 12):
            same(model.predict_on_batch(x[:rows]), fast.predict_on_batch(x[:rows]))
    warns_once(records, "batch_sizes")


def test_dependence_is_seen_in_one_of_many_outputs() -> None:
    inputs = keras.Input((4,))
    plain = kl.Dense(3)(inputs)
    model = keras.Model(inputs, [plain, plain - keras.ops.mean(plain, axis=0)])
    fast = accelerate(model)
    assert not fast.report().rows_independent
    x = floats(4)(20)
    same(model.predict(x, batch_size=7, verbose=0), fast.predict(x, batch_size=7, verbose=0))


def test_dependence_through_the_second_input() -> None:
    first, second = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([first, second], kl.Dense(4)(first) + keras.ops.max(second, axis=0))
    fast = accelerate(model)
    assert not fast.report().rows_independent
    x = [floats(4)(20), -floats(4)(20)[::-1]]
    same(model.predict(x, batch_size=7, verbose=0), fast.predict(x, batch_size=7, verbose=0))


def test_a_weak_dependence_is_seen() -> None:
    inputs = keras.Input((4,))
    plain = kl.Dense(3)(inputs)
    model = keras.Model(inputs, plain + 0.02 * keras.ops.mean(plain, axis=0))
    assert not accelerate(model).report().rows_independent


def test_the_record_in_the_cache_keeps_the_dependence(cache: Any) -> None:
    model = CASES["minus mean"].build()
    x = floats(4)(20)
    for origin in ("built", "cache"):
        fast = accelerate(model, cache=cache)
        assert fast.report().origin == origin
        assert not fast.report().rows_independent
        same(model.predict(x, batch_size=7, verbose=0), fast.predict(x, batch_size=7, verbose=0))


class RandomAtInference(keras.Model):
    """Dropout that stays on, as for a Monte-Carlo estimate."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.dropout = kl.Dense(50), kl.Dropout(0.5, seed=3)

    def call(self, x: Any) -> Any:
        return self.dropout(self.dense(x), training=True)


def test_randomness_stays() -> None:
    model = RandomAtInference()
    x = floats(4)(20)
    model(x)
    with recorded() as records:
        fast = accelerate(model)
    warns_once(records, "Keras runs")
    assert np.abs(fast.predict(x, verbose=0) - fast.predict(x, verbose=0)).max() > 0.1


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64", "float16"])
def test_other_dtype_policies_give_their_own_types(policy: str) -> None:
    inputs = keras.Input((4,), dtype="float32")
    model = keras.Model(inputs, kl.Dense(3, dtype=policy)(kl.Dense(5, dtype=policy)(inputs)))
    x = floats(4)(20)
    expected = model.predict(x, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", keras_trt.FallbackWarning)
        fast = accelerate(model)
    found = fast.predict(x, verbose=0)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found.astype("float64"), expected.astype("float64"), rtol=2e-2, atol=2e-2)


def test_threads_share_a_drop_in() -> None:
    model, fast = pair("dict outputs")
    parts = [floats(4)(rows) * (rows % 7 + 1) for rows in range(1, 41)]
    expected = [model.predict_on_batch(x) for x in parts]
    with ThreadPoolExecutor(8) as pool:
        for one, found in zip(expected, pool.map(lambda x: fast.predict(x, verbose=0), parts), strict=True):
            same(one, found)
