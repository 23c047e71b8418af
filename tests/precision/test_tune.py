"""`precision="auto"`: what is measured decides, within the budget."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt import backends
from keras_trt.building.provision import provision
from keras_trt.building.tune import _mode, _Tuning, tune
from keras_trt.cache import EngineCache
from keras_trt.errors import InputError, VerificationError
from keras_trt.head import split
from keras_trt.options import BuildOptions

from ..models import accelerate, floats, keras, kl, recorded, tf, warns_once
from .reference import ReferenceBackend
from .test_ladder import overflowing
from .trained import accuracy, digits, digits_model


def tuned(**options: Any) -> Any:
    x_train, _, x, y = digits()
    return accelerate(
        digits_model(),
        **{
            "precision": "auto",
            "validation_data": (x, y),
            "accuracy_budget": 0.01,
            "calibration_data": x_train[:64],
            **options,
        },
    )


def test_the_fastest_within_the_budget_runs_and_the_table_tells_all() -> None:
    _, _, x, y = digits()
    fast = tuned()
    table = {one.precision: one for one in fast.report().candidates}
    assert list(table) == ["keras", "fp8", "int8", "fp16", "bf16", "tf32", "fp32"]
    assert table["keras"].metric == pytest.approx(accuracy(digits_model().predict(x, verbose=0), y))
    assert "has no fp8" in table["fp8"].outcome
    measured = {one.precision: one for one in table.values() if one.milliseconds is not None}
    assert list(measured) == ["int8", "fp16", "fp32"]
    assert table[fast.precision].outcome == "chosen"
    assert table[fast.precision].milliseconds == min(one.milliseconds or np.inf for one in measured.values())
    assert table[fast.precision].metric == pytest.approx(accuracy(fast.predict(x, verbose=0), y))
    assert "chosen" in str(fast.report())


def test_a_second_start_measures_nothing(cache: EngineCache) -> None:
    first = tuned(cache=cache)
    again = tuned(cache=cache)
    assert again.report().candidates == first.report().candidates, "times would differ if they were measured again"
    assert again.report().origin == "cache"
    other = tuned(cache=cache, accuracy_budget=0.02)
    assert other.report().candidates != first.report().candidates


def test_a_budget_that_rounding_breaks() -> None:
    """A metric of the numbers themselves, that 8 and 16 bits change and float32 hardly."""
    _, _, x, _ = digits()
    wanted = digits_model().predict(x, verbose=0)

    def distance(_: Any, found: Any) -> float:
        return float(np.abs(found - wanted).max())

    fast = tuned(monitor=distance, mode="min", accuracy_budget=1e-4)
    table = {one.precision: one for one in fast.report().candidates}
    assert fast.precision == "fp32"
    assert table["int8"].outcome.startswith("loses")
    assert table["fp16"].outcome.startswith("loses")


def test_where_nothing_is_within_the_budget_keras_runs() -> None:
    with recorded() as records:
        fast = tuned(monitor=lambda *_: float("nan"), mode="max")
    warns_once(records, "No precision keeps 'digits' within accuracy_budget=0.01")
    assert fast.backend == "keras"


def test_losses_are_better_as_they_are_smaller() -> None:
    fast = tuned(monitor="loss", accuracy_budget=0.5)
    (keras_itself, *_) = fast.report().candidates
    assert 0 < keras_itself.metric < 1
    assert fast.backend == "onnxruntime"


def test_layers_that_overflow_are_no_reason_against_fp16(monkeypatch: pytest.MonkeyPatch, cache: EngineCache) -> None:
    """They are in float32, as where fp16 is asked for."""
    model, x = overflowing(), floats(6)(40)
    y = np.asarray(model.predict(x, verbose=0))
    model.compile(loss="mse")
    monkeypatch.setattr(_Tuning, "_milliseconds", lambda *_: 1.0)
    options = BuildOptions(precision="auto", validation_data=(x, y), accuracy_budget=1.0, batch_sizes=(1, 4, 6))
    for _ in range(2):
        ready = tune(model, ReferenceBackend(), options, cache)
        table = {one.precision: one for one in ready.report.candidates}
        assert table["fp16"].metric == pytest.approx(0, abs=1e-4)
        assert table["fp16"].outcome in ("chosen", "slower")
        ready.session.close()
    asked = replace(options, precision="fp16", validation_data=None, accuracy_budget=0.0, fallback="raise")
    with pytest.raises(VerificationError, match="leave the range"):
        provision(model, ReferenceBackend(), asked, cache)


def test_a_dataset_judges_as_its_arrays_do() -> None:
    _, _, x, y = digits()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(100)
    one, other = (tuned(validation_data=given, calibration_data=None) for given in (data, (x, y)))
    metrics = [[row.metric for row in each.report().candidates] for each in (one, other)]
    assert metrics[0] == pytest.approx(metrics[1])
    assert {row.precision: row.outcome for row in one.report().candidates}["int8"] == "no calibration_data"


def test_a_models_metrics_are_left_empty() -> None:
    tuned()
    assert digits_model().get_metrics_result()["loss"] == 0


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"validation_data": None}, ValueError, "go together"),
        ({"accuracy_budget": -1}, ValueError, "0 or more"),
        ({"monitor": "nothing"}, ValueError, "`monitor` is one of loss, accuracy"),
        ({"precision": "fp16", "validation_data": None}, ValueError, "`accuracy_budget` is for precision='auto' alone"),
        ({"validation_data": (floats(8, 8, 1)(0), np.zeros(0))}, InputError, r"\[0\] rows of x"),
        ({"validation_data": (floats(8, 8, 1)(4), np.zeros(3))}, InputError, r"\[4\] rows of x and \[3\] rows of y"),
        ({"validation_data": 3}, InputError, "`validation_data` takes arrays"),
        ({"mode": "up"}, ValueError, "`mode` is one of"),
        ({"monitor": lambda *_: 1.0}, ValueError, "callable needs `mode`"),
        ({"validation_data": tf.data.Dataset.from_tensor_slices(floats(8, 8, 1)(4)).batch(2)}, InputError, "answers"),
    ],
    ids=[
        "no-data",
        "budget",
        "metric",
        "no-auto",
        "no-rows",
        "rows",
        "kind",
        "mode",
        "callable-without-mode",
        "no-answers",
    ],
)
def test_what_is_refused(options: dict[str, Any], error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        tuned(**options)


def test_a_model_that_is_not_compiled_needs_a_metric() -> None:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(2)])
    x, y = floats(4)(8), np.zeros((8, 2), "float32")
    with pytest.raises(ValueError, match="not compiled"):
        keras_trt.accelerate(model, precision="auto", validation_data=(x, y), backend="onnxruntime", cache=None)


def classifier(*outputs: str, metrics: Any = ("accuracy",), loss: Any = "sparse_categorical_crossentropy") -> Any:
    """Return a small network with one output, or with several named ones."""
    given = keras.Input((4,))
    heads = [kl.Dense(2, activation="softmax", name=name)(given) for name in outputs]
    model = keras.Model(given, heads if len(outputs) > 1 else heads[0])
    model.compile("sgd", loss, metrics=list(metrics) if isinstance(metrics, tuple) else metrics)
    return model


QUIET: dict[str, Any] = {"backend": "onnxruntime", "cache": None, "batch_sizes": (1, 8, 32), "verbose": 0}
X = floats(4)(64)


def test_the_reference_is_keras_though_an_engine_of_earlier_weights_has_its_place() -> None:
    model = classifier("one")
    y = model.predict(X, verbose=0).argmax(axis=-1)
    last = model.get_layer("one")
    kernel = np.asarray(last.kernel)
    last.kernel.assign(-kernel)
    fast = model.compile_trt(precision="auto", validation_data=(X, y), accuracy_budget=1, **QUIET)
    assert fast.report().candidates[0].metric < 0.5
    last.kernel.assign(kernel)
    model.predict(X, verbose=0)
    assert [fast.report().candidates[i].metric for i in (0, -1)] == [1, 1]
    model.uncompile_trt()


def test_a_sample_that_does_not_fit_is_an_error_and_no_outcome() -> None:
    with pytest.raises(InputError, match="takes the shape"):
        tuned(sample=floats(9, 8, 1)(4))


def test_a_choice_that_can_be_had_no_more_is_made_anew(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, put = [], EngineCache.put_record

    def noted(self: EngineCache, key: str, record: Any) -> None:
        keys.extend([key] if "table" in record else [])
        put(self, key, record)

    monkeypatch.setattr(EngineCache, "put_record", noted)
    y = np.zeros(len(X))
    options = {**QUIET, "cache": cache, "precision": "auto", "validation_data": (X, y), "accuracy_budget": 1}
    model = classifier("one")
    keras_trt.accelerate(model, **options)
    (key,) = keys
    cache.put_record(key, {**(cache.get_record(key) or {}), "precision": "tf32"})  # which ONNX Runtime has not
    fast = keras_trt.accelerate(model, fallback="raise", **options)
    assert fast.precision in ("fp16", "fp32")
    assert (cache.get_record(key) or {})["precision"] == fast.precision


@pytest.mark.parametrize(("budget", "within"), [(0.002, True), (0.00199, False)])
def test_a_loss_of_just_the_budget_is_within_it(budget: float, within: bool) -> None:
    """In floats 0.95 - 0.948 is more than 0.002."""
    answers = iter([0.95, 0.948, 0.948])
    options = {"monitor": lambda *_: next(answers), "mode": "max", "accuracy_budget": budget, "calibration_data": None}
    if not within:
        with pytest.raises(VerificationError, match="No precision keeps"):
            tuned(**options, fallback="raise")
    else:
        assert {one.outcome for one in tuned(**options).report().candidates if one.milliseconds} == {"chosen", "slower"}


@pytest.mark.parametrize("seed", range(6))
def test_the_rounding_of_float32_is_no_loss(seed: int) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), kl.Dense(32, "tanh"), kl.Dense(1)])
    model.compile("sgd", "mse")
    y = np.random.default_rng(seed).standard_normal((64, 1))
    fast = keras_trt.accelerate(model, precision="auto", validation_data=(X, y), **QUIET)
    assert {one.precision: one for one in fast.report().candidates}["fp32"].outcome in ("chosen", "slower")


def test_a_metric_of_many_numbers_is_none_to_choose_by_and_no_hindrance() -> None:
    model = classifier("one", metrics=(keras.metrics.F1Score(), "accuracy"), loss="categorical_crossentropy")
    y = np.eye(2, dtype="float32")[model.predict(X, verbose=0).argmax(axis=-1)]
    options = {**QUIET, "precision": "auto", "validation_data": (X, y), "accuracy_budget": np.float32(0.1)}
    assert keras_trt.accelerate(model, monitor="accuracy", **options).backend == "onnxruntime"
    with pytest.raises(ValueError, match=r"'f1_score' is not one number but has the shape \(2,\)"):
        keras_trt.accelerate(model, **options)


def test_a_metric_that_is_nan_for_one_precision_is_kept_with_the_choice(cache: EngineCache) -> None:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(8)])
    y = model.predict(X, verbose=0)

    def exact(wanted: Any, found: Any) -> Any:
        return keras.ops.where(keras.ops.all(keras.ops.abs(wanted - found) < 1e-5), 1.0, float("nan"))

    model.compile("sgd", "mse", metrics=[exact])
    options = {**QUIET, "cache": cache, "precision": "auto", "validation_data": (X, y), "mode": "max"}
    first, again = (keras_trt.accelerate(model, **options).report().candidates for _ in range(2))
    assert list(map(str, first)) == list(map(str, again))
    assert {one.precision: one.outcome for one in again}["fp16"] == "loses nan"


def own_metric(y: Any, found: Any) -> Any:
    return keras.ops.mean(keras.ops.abs(y - found))


MODES = {
    "loss": "min",
    "a_loss": "min",
    "a_logcosh": "min",
    "a_rmse": "min",
    "a_mean_absolute_error": "min",
    "a_false_negatives": "min",
    "a_true_positives": "max",
    "a_score": "max",
    "a_own_metric": None,
    "b_mae": "min",
    "b_score": "max",
    "b_hinge_of_r2": "max",
    "b_weighted_mae": "min",
}


def several() -> Any:
    model = classifier("a", "b", metrics=None, loss="mse")
    metrics = keras.metrics
    a = [
        metrics.LogCoshError(name="logcosh"),
        metrics.RootMeanSquaredError(name="rmse"),
        metrics.MeanAbsoluteError(),
        metrics.FalseNegatives(),
        metrics.TruePositives(),
        metrics.CosineSimilarity(name="score"),
        own_metric,
    ]
    b = [metrics.MeanAbsoluteError(name="mae"), metrics.Accuracy(name="score"), metrics.R2Score(name="hinge_of_r2")]
    model.compile(
        "sgd", "mse", metrics={"a": a, "b": b}, weighted_metrics={"b": [metrics.MeanSquaredError(name="mae")]}
    )
    return model


def test_keras_says_which_way_its_metrics_are_better() -> None:
    model, y = several(), [np.eye(2, dtype="float32")[np.arange(64) % 2]] * 2
    found = model.evaluate(X, y, sample_weight=[np.ones(64), np.ones(64)], verbose=0, return_dict=True)
    assert set(MODES) <= set(found)
    for name, mode in MODES.items():
        if mode is not None:
            assert _mode(model, name) == mode, name
        else:
            with pytest.raises(ValueError, match='give mode="min" or mode="max"'):
                _mode(model, name)


def test_a_metric_that_falls_is_no_loss_where_less_is_better() -> None:
    """Precisions with a smaller error than Keras's are within any budget, and such with a larger one are not."""
    _, _, x, _ = digits()
    model = digits_model()
    exact = model.predict(x, verbose=0)
    regression = keras.Model(model.input, model.output)
    regression.compile("sgd", "mse", metrics=["mae"])
    options = {"precision": "auto", "validation_data": (x, exact), "accuracy_budget": 1e-4}
    table = {one.precision: one for one in accelerate(regression, **options).report().candidates}
    assert table["fp16"].outcome.startswith("loses")
    assert table["fp32"].outcome == "chosen"
    table = {one.precision: one for one in accelerate(regression, mode="max", **options).report().candidates}
    assert table["fp16"].outcome in ("chosen", "slower")


def _error(power: int) -> Any:
    def error(y: Any, found: Any) -> Any:
        return keras.ops.mean(keras.ops.abs(y - found) ** power)

    return error


@pytest.mark.parametrize("wrapped", [False, True], ids=["function", "object"])
def test_a_choice_is_of_the_code_of_a_metric_and_not_of_its_name(wrapped: bool, cache: EngineCache) -> None:
    model, y = keras.Sequential([keras.Input((4,)), kl.Dense(2)]), np.ones((64, 2), "float32")
    options = {**QUIET, "cache": cache, "precision": "auto", "validation_data": (X, y), "mode": "min"}
    found = []
    for power in (1, 1, 2):
        metric = keras.metrics.MeanMetricWrapper(_error(power), name="error") if wrapped else _error(power)
        model.compile("sgd", "mse", metrics=[metric])
        report = keras_trt.accelerate(model, **options).report()
        assert report.candidates[0].metric == pytest.approx(model.evaluate(X, y, verbose=0)[1])
        found.append(report.candidates)
    assert found[0] == found[1], "times would differ if they were measured again"


@pytest.mark.parametrize("form", ["objects", "texts", "tensors", "dataset"])
def test_a_model_that_takes_strings_is_measured_too(form: str, cache: EngineCache) -> None:
    word, size = keras.Input((1,), dtype="string", name="word"), keras.Input((4,), name="size")
    number = kl.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(word)
    model = keras.Model([word, size], kl.Dense(2)(kl.Concatenate()([kl.Flatten()(number), size])))
    model.compile("sgd", "mse", metrics=["mae"])
    texts = np.array(["a", "b", "c", "b"] * 16)[:, None]
    x, y = [tf.constant(texts), X], np.zeros((64, 2), "float32")
    expected = model.evaluate(x, y, verbose=0, return_dict=True)["mae"]
    data: Any = {
        "objects": ([texts.astype(object), X], y),
        "texts": ([texts, X], y),
        "tensors": (x, y),
        "dataset": tf.data.Dataset.from_tensor_slices(((texts, X), y)).batch(24),
    }[form]
    options = {**QUIET, "cache": cache, "precision": "auto", "validation_data": data, "accuracy_budget": 0.1}
    first, again = (keras_trt.accelerate(model, **options).report() for _ in range(2))
    assert first.candidates[0].metric == pytest.approx(expected)
    assert first.precision in ("fp16", "fp32")
    assert first.candidates == again.candidates


def choice_key(folder: str) -> str | None:
    """Return what the choice for a model that takes strings is found by."""
    given = keras.Input((), dtype="string")
    words = kl.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(given)
    model = keras.Model(given, kl.Dense(2, kernel_initializer="ones")(words))
    model.compile(keras.optimizers.Adam(), "mse", metrics=["mae"])
    data = np.array(["a", "b", "b"], object), np.ones((3, 2))
    options = keras_trt.BuildOptions(precision="auto", validation_data=data)
    return _Tuning(model, backends.choose("onnxruntime", [0])[0], options, EngineCache(folder), split(model))._key()


def test_a_choice_is_found_from_any_process_and_any_model_that_is_equal(tmp_path: Path) -> None:
    code = f"from tests.precision.test_tune import choice_key; print(choice_key({str(tmp_path)!r}))"
    run = [sys.executable, "-W", "ignore", "-c", code]
    root = Path(__file__).parents[2]
    there = subprocess.run(run, capture_output=True, text=True, cwd=root, timeout=300, check=True).stdout.strip()
    assert len(there) == 64
    assert {choice_key(str(tmp_path)), choice_key(str(tmp_path))} == {there}
