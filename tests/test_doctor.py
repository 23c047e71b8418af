"""`doctor` says what `accelerate` does, in the same words, all at once, by a real parser."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt import FallbackWarning, OptimizationProfile, ShapeRange, cuda

from .models import dependent, floats, keras, kl, ops, tf

without_gpu = pytest.mark.skipif(cuda.device_count() > 0, reason="says what happens without a GPU")

QUIET = {"cache": None, "batch_sizes": (1, 2, 4)}


class Counter(kl.Layer):
    """Writes to a variable at each call."""

    def build(self, _shape: Any) -> None:
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x: Any) -> Any:
        self.calls.assign_add(1.0)
        return x + self.calls


class OwnPredict(keras.Model):
    def predict_step(self, data: Any) -> Any:
        return super().predict_step(data)


class Generates(keras.Model):
    def generate(self, prompt: Any) -> Any:
        return prompt


def erfinv(name: str) -> Any:
    return kl.Lambda(lambda x: ops.erfinv(x), name=name)


def unique(name: str) -> Any:
    """ONNX has it and ONNX Runtime runs it; no TensorRT takes it."""
    return kl.Lambda(lambda x: x + tf.unique(tf.reshape(x, [-1]))[0][:1], name=name)


def sequential(*given: Any, shape: Any = (8,)) -> Any:
    return keras.Sequential([keras.Input(shape, name="given"), *given])


def functional(kind: type) -> Any:
    x = keras.Input((8,))
    return kind(x, kl.Dense(3)(x))


BAD = {
    "no form in ONNX": (lambda: sequential(erfinv("guilty")), "guilty"),
    "writes": (lambda: sequential(Counter(name="guilty")), "guilty"),
    "float64": (lambda: sequential(kl.Dense(3, dtype="float64", name="guilty")), "guilty"),
    "stateful": (
        lambda: keras.Sequential([keras.Input(batch_shape=(2, 4, 3)), kl.LSTM(3, stateful=True, name="guilty")]),
        "guilty",
    ),
    "predict_step": (lambda: functional(OwnPredict), None),
    "sparse": (lambda: keras.Sequential([keras.Input((8,), sparse=True, name="guilty"), kl.Dense(2)]), "guilty"),
}


@pytest.mark.parametrize("name", BAD)
def test_says_the_sentence_that_accelerate_says(name: str) -> None:
    make, layer = BAD[name]
    model = make()
    diagnosis = keras_trt.doctor(model, **QUIET)
    assert not diagnosis.ok
    finding = next(one for one in diagnosis if not one.on_engine)
    assert finding.action == "falls back"
    assert (finding.layer or "").split("/")[-1] == (layer or "")
    with pytest.warns(FallbackWarning) as warned:
        fast = keras_trt.accelerate(model, verbose=0, **QUIET)
    assert fast.backend == "keras"
    assert any(finding.problem in str(one.message) for one in warned)
    refused = keras_trt.doctor(model, fallback="raise", **QUIET)
    with pytest.raises(keras_trt.KerasTRTError) as caught:
        keras_trt.accelerate(model, fallback="raise", **QUIET)
    assert any(one.problem in str(caught.value) for one in refused if one.action == "refused")
    assert all(one.action != "falls back" for one in refused)


def test_finds_everything_at_once() -> None:
    inputs = keras.Input((8,), name="a"), keras.Input((None, 8), name="open")
    x = erfinv("first")(inputs[0]), kl.GlobalAveragePooling1D()(erfinv("second")(inputs[1]))
    model = keras.Model(inputs, kl.Dense(3, dtype="float16", name="half")(kl.concatenate(x)))
    layers = [one.layer for one in keras_trt.doctor(model, **QUIET)]
    assert {"first", "second", "open"} <= set(layers)
    assert any((layer or "").endswith("half") for layer in layers)


def test_the_error_holds_all_findings_and_its_message_counts_them(tmp_path: Any) -> None:
    model = sequential(kl.Dense(8), erfinv("first"), erfinv("second"))
    with pytest.raises(keras_trt.ExportError, match=r"'first'.* 1 more: keras_trt\.doctor") as caught:
        keras_trt.export_onnx(model, tmp_path / "never.onnx")
    assert [one.layer for one in caught.value.findings] == ["first", "second"]
    found = [one for one in keras_trt.doctor(model, **QUIET) if one.action == "falls back"]
    assert tuple(found) == caught.value.findings


def test_two_bad_inputs_are_two_findings() -> None:
    one, two = keras.Input((4,), name="one", sparse=True), keras.Input((3,), name="two", optional=True)
    model = keras.Model([one, two], [kl.Dense(2)(one), kl.Dense(2)(two)])
    assert [finding.layer for finding in keras_trt.doctor(model, cache=None)] == ["one", "two"]


def words() -> Any:
    return kl.StringLookup(vocabulary=["a", "b"], output_mode="one_hot", name="words")


def test_what_takes_strings_is_split_off_and_the_rest_judged() -> None:
    model = keras.Sequential([keras.Input((), dtype="string"), words(), kl.Dense(4), kl.Dense(2)])
    diagnosis = keras_trt.doctor(model, **QUIET)
    assert [(one.layer, one.action) for one in diagnosis] == [("words", "split")]
    assert diagnosis.ok
    fast = keras_trt.accelerate(model, backend="onnxruntime", verbose=0, **QUIET)
    assert fast.report().on_cpu == ("words",)
    guilty = keras.Sequential([keras.Input((), dtype="string"), words(), kl.Dense(4), erfinv("guilty")])
    assert [one.layer for one in keras_trt.doctor(guilty, **QUIET)] == ["words", "guilty"]


def test_a_split_that_leaves_nothing_says_the_sentence_of_the_error() -> None:
    model = keras.Sequential([keras.Input((), dtype="string"), words()])
    (finding,) = keras_trt.doctor(model, **QUIET)
    with pytest.raises(keras_trt.ExportError) as caught:
        keras_trt.accelerate(model, backend="onnxruntime", fallback="raise", **QUIET)
    assert (finding.problem, finding.action) == (str(caught.value), "falls back")


@without_gpu
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="judged by TensorRT-RTX")
class TestJudgedByTensorRT:
    def test_names_the_layers_of_the_nodes_that_a_real_parser_refuses(self) -> None:
        diagnosis = keras_trt.doctor(sequential(kl.Dense(4), unique("guilty"), kl.Dense(2)), **QUIET)
        assert diagnosis.judge.startswith("TensorRT-RTX")
        assert diagnosis.engine is not None
        assert diagnosis.engine.startswith("ONNX Runtime")
        assert [one.layer for one in diagnosis if "Unique" in one.problem] == ["guilty"]
        assert not diagnosis.ok

    def test_what_onnxruntime_takes_is_fine_where_it_is_asked_for(self) -> None:
        model = sequential(kl.Dense(4), unique("guilty"), kl.Dense(2))
        diagnosis = keras_trt.doctor(model, backend="onnxruntime", **QUIET)
        assert diagnosis.judge.startswith("ONNX Runtime")
        assert diagnosis.ok

    def test_a_named_backend_without_a_gpu_is_refused_as_accelerate_refuses_it(self) -> None:
        model = sequential(kl.Dense(2))
        diagnosis = keras_trt.doctor(model, backend="tensorrt_rtx", **QUIET)
        assert diagnosis.engine is None
        (finding,) = diagnosis
        assert finding.action == "refused"
        with pytest.raises(keras_trt.EngineLoadError) as caught:
            keras_trt.accelerate(model, backend="tensorrt_rtx", **QUIET)
        assert finding.problem == str(caught.value)

    def test_a_gpu_that_is_missing_is_no_matter_of_the_model_but_under_raise(self) -> None:
        model = sequential(kl.Dense(2))
        assert keras_trt.doctor(model, **QUIET).findings == ()
        (finding,) = keras_trt.doctor(model, fallback="raise", **QUIET)
        with pytest.raises(keras_trt.EngineLoadError) as caught:
            keras_trt.accelerate(model, fallback="raise", **QUIET)
        assert finding.problem == str(caught.value)


def test_an_ordinary_model_has_no_findings() -> None:
    diagnosis = keras_trt.doctor(sequential(kl.Dense(4, activation="relu"), kl.Dense(2)), **QUIET)
    assert diagnosis.ok
    assert list(diagnosis) == []
    assert "runs on an engine" in str(diagnosis)


def test_rows_that_depend_on_each_other_are_kept() -> None:
    diagnosis = keras_trt.doctor(dependent("minus mean"), cache=None)
    assert [one.action for one in diagnosis if "other rows" in one.problem] == ["kept"]
    assert diagnosis.ok


def test_mixed_policies_are_repaired() -> None:
    diagnosis = keras_trt.doctor(sequential(kl.Dense(4, dtype="mixed_float16"), kl.Dense(2)), **QUIET)
    (finding,) = diagnosis
    assert (finding.action, finding.layer) == ("repaired", None)
    assert "mixed_float16" in finding.problem
    assert diagnosis.ok


def test_counts_transposes_by_layer() -> None:
    model = sequential(kl.Conv2D(4, 3, name="first"), kl.Conv2D(4, 3, name="second"), shape=(8, 8, 3))
    found = [one for one in keras_trt.doctor(model, **QUIET) if "NHWC" in one.problem]
    assert found[0].layer == "first"
    assert "1 transpose " in found[0].problem
    assert all(one.action == "kept" for one in found)
    assert keras_trt.doctor(sequential(kl.Permute((2, 1)), shape=(4, 5)), **QUIET).findings == ()


def test_sizes_that_nobody_says_are_refused_with_the_sentence_of_the_error() -> None:
    model = sequential(kl.LSTM(3), shape=(None, 4))
    (finding,) = keras_trt.doctor(model, **QUIET)
    assert (finding.layer, finding.action) == ("given", "refused")
    with pytest.raises(ValueError, match="has no fixed size") as caught:
        keras_trt.accelerate(model, **QUIET)
    assert finding.problem == str(caught.value)
    assert keras_trt.doctor(model, sample=floats(5, 4)(4), **QUIET).ok
    shapes = ShapeRange((1, 2, 4), (2, 5, 4), (4, 9, 4))
    assert keras_trt.doctor(model, cache=None, profiles=OptimizationProfile({"given": shapes})).ok


def test_a_precision_that_a_backend_lacks() -> None:
    model = sequential(kl.Dense(2))
    diagnosis = keras_trt.doctor(model, backend="onnxruntime", precision="tf32", **QUIET)
    (finding,) = diagnosis
    assert (finding.action, finding.cost) == ("falls back", "runs in fp32")
    with pytest.warns(FallbackWarning, match=finding.problem):
        keras_trt.accelerate(model, backend="onnxruntime", precision="tf32", verbose=0, **QUIET)


@pytest.mark.parametrize("precision", ["int8", "fp8", "bf16"])
def test_low_precisions_are_judged(precision: str) -> None:
    model = keras.Sequential([keras.Input((8, 8, 3)), kl.Conv2D(4, 3), kl.Flatten(), kl.Dense(3)])
    diagnosis = keras_trt.doctor(model, precision=precision, calibration_data=floats(8, 8, 3)(4))
    assert [one.problem for one in diagnosis if "has no" not in one.problem and one.action != "kept"] == []


@pytest.mark.parametrize(
    "options", [{"precision": "int8"}, {"precision_plan": {"dens": "float32"}}], ids=["calibration data", "plan"]
)
def test_options_that_are_refused_are_so_with_the_sentence_of_the_error(options: Any) -> None:
    model = sequential(kl.Dense(2, name="dense"))
    (finding,) = keras_trt.doctor(model, backend="onnxruntime", **options, **QUIET)
    assert finding.action == "refused"
    with pytest.raises(ValueError, match=r"calibration_data|precision_plan") as caught:
        keras_trt.accelerate(model, backend="onnxruntime", verbose=0, **options, **QUIET)
    assert finding.problem == str(caught.value)


def test_8_bits_that_nothing_takes_are_found() -> None:
    model = sequential(kl.Dense(2, name="dense"), kl.Dense(2, name="other"))
    options = {"backend": "onnxruntime", "precision": "int8", "calibration_data": floats(8)(4), **QUIET}
    assert keras_trt.doctor(model, precision_plan={"dense": "float32"}, **options).ok
    finding, *_ = keras_trt.doctor(model, precision_plan={"dense": "float32", "other": "float32"}, **options)
    assert "nothing of the graph can be in int8" in finding.problem
    assert (finding.action, finding.cost) == ("falls back", "runs in fp16")


def test_an_unbuilt_model() -> None:
    model = keras.Sequential([kl.Dense(2)])
    (finding,) = keras_trt.doctor(model)
    assert finding.action == "refused"
    with pytest.raises(keras_trt.ExportError) as caught:
        keras_trt.accelerate(model)
    assert finding.problem == str(caught.value)
    assert keras_trt.doctor(model, sample=floats(3)(4), **QUIET).ok


def test_a_model_that_is_exported_at_each_start() -> None:
    numbers = iter(range(3))
    model = sequential(kl.Lambda(lambda x: x + (0 if numbers is None else 1)))
    (finding,) = keras_trt.doctor(model)
    assert finding.action == "kept"
    assert "exported at each start" in finding.problem


def test_a_model_that_generates_runs_its_forward_pass_alone() -> None:
    model = functional(Generates)
    (finding,) = keras_trt.doctor(model, **QUIET)
    assert finding.action == "kept"
    with pytest.warns(FallbackWarning) as warned:
        fast = keras_trt.accelerate(model, backend="onnxruntime", verbose=0, **QUIET)
    assert [str(one.message) for one in warned] == [finding.problem]
    assert fast.backend == "onnxruntime"


def test_what_to_do_about_a_task_that_overrides_predict() -> None:
    model = functional(OwnPredict)
    (finding,) = keras_trt.doctor(model, **QUIET)
    assert "keras.Model(model.input, model.output)" in finding.problem
    assert keras_trt.doctor(keras.Model(model.input, model.output), **QUIET).ok


def test_builds_nothing_and_changes_nothing(tmp_path: Any) -> None:
    model = sequential(kl.Dense(4), kl.Dense(2))
    before = [weight.copy() for weight in model.get_weights()]
    keras_trt.doctor(model, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert all(np.array_equal(one, two) for one, two in zip(before, model.get_weights(), strict=True))


def test_wrong_arguments_are_errors() -> None:
    model = sequential(kl.Dense(2))
    with pytest.raises(TypeError, match="Unknown option precison"):
        keras_trt.doctor(model, precison="fp16")
    with pytest.raises(ValueError, match="`precision` is one of"):
        keras_trt.doctor(model, precision="fp12")
    with pytest.raises(keras_trt.InputError):
        keras_trt.doctor(model, sample=np.ones((3, 7)))


def test_the_table_holds_every_word() -> None:
    diagnosis = keras_trt.doctor(sequential(erfinv("guilty")), **QUIET)
    text = " ".join(str(diagnosis).split())
    assert diagnosis.judge in text
    for word in ("guilty", "falls back", "Erfinv", "Keras runs the whole model"):
        assert word in text
    assert repr(diagnosis) == str(diagnosis)
    assert max(map(len, str(diagnosis).splitlines())) <= 160
