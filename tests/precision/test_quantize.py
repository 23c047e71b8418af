"""int8 and fp8: what is quantized, with which ranges, and what it does to a trained model."""

from __future__ import annotations

import functools
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from keras_trt.backends import BuildSpec
from keras_trt.backends.tensorrt.builder import PlanBuilder
from keras_trt.backends.tensorrt.flavor import flavor
from keras_trt.cache import EngineCache
from keras_trt.errors import InputError, PrecisionError
from keras_trt.export import export
from keras_trt.precision import Quantization, calibrate, tensor_types, typed

from .. import zoo
from ..models import accelerate, floats, keras, kl, recorded, tf, warns_once
from . import awkward
from .trained import accuracy, digits, digits_model

METHODS = ("percentile", "entropy", "minmax")


def thresholds(exported: Any, rows: int = 8, method: Any = "minmax") -> dict[str, dict[int, float]]:
    specs = exported.signature.inputs
    inputs = zoo.random_inputs(specs, rows, seed=5)
    return calibrate(exported.onnx, dict(zip((spec.name for spec in specs), inputs, strict=True)), method)


@pytest.mark.parametrize("name", ["cnn", "attention", "preactivated", "lstm"])
@pytest.mark.parametrize(("kind", "stored"), [("int8", "int8"), ("fp8", "float8_e4m3fn")])
def test_tensorrt_builds_quantized_graphs(name: str, kind: Any, stored: str) -> None:
    exported = export(awkward.MODELS[name]() if name in awkward.MODELS else zoo.make(name))
    found = thresholds(exported)
    assert found
    for beside in ("fp16", "fp32"):
        graph = typed(exported.onnx, kind, (), Quantization(beside, found))  # type: ignore[arg-type]
        kinds = set(tensor_types(graph).values())
        assert {stored, "float16" if beside == "fp16" else "float32"} <= kinds
        assert ("float16" in kinds) == (beside == "fp16")
        opset = onnx.load_from_string(graph).opset_import[0].version
        assert opset == (17 if (kind, beside) == ("int8", "fp32") else 19)
    builder = PlanBuilder(flavor("tensorrt_rtx"))
    spec = BuildSpec(kind, zoo.profile(exported.signature.inputs), optimization_level=0)
    assert builder.build(typed(exported.onnx, kind, (), Quantization("fp16", found)), spec, for_this_gpu=False)


def test_weights_are_quantized_per_channel_and_what_is_kept_is_not() -> None:
    exported = export(zoo.make("cnn"))
    found = thresholds(exported)
    kept = next(name for name in found if name.endswith("/MatMul"))
    proto = onnx.load_from_string(typed(exported.onnx, "int8", [kept], Quantization("fp32", found)))
    constants = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    makers = {node.output[0]: node for node in proto.graph.node}
    for node in proto.graph.node:
        if node.op_type == "Conv":
            for place in (0, 1):
                up = makers[node.input[place]]
                down = makers[up.input[0]]
                assert (up.op_type, down.op_type) == ("DequantizeLinear", "QuantizeLinear")
                assert not constants[down.input[2]].any(), "TensorRT takes symmetric scales alone"
            weights, scale = constants[down.input[0]], constants[down.input[1]]
            np.testing.assert_allclose(scale, np.abs(weights).max(axis=(1, 2, 3)) / 127, rtol=1e-5)
        if node.op_type == "MatMul":
            assert node.name == kept
            assert node.input[1] in constants


def test_the_shortcut_of_a_residual_block_is_quantized() -> None:
    exported = export(digits_model())
    graph, found = onnx.load_from_string(exported.onnx).graph, thresholds(exported)
    makers = {node.output[0]: node.op_type for node in graph.node}
    (addition,) = (node for node in graph.node if node.op_type == "Add" and node.name in found)
    (place,) = found[addition.name]
    assert [makers[addition.input[i]] for i in (place, 1 - place)] == ["Relu", "Conv"]


@pytest.mark.parametrize("method", METHODS)
def test_thresholds_of_numbers_that_are_known(method: str) -> None:
    exported = export(keras.Sequential([keras.Input((4,)), kl.Dense(2)]))
    rows = np.random.default_rng(0).uniform(-1, 1, (400, 4)).astype("float32")
    rows[7, 2] = -3.0
    ((threshold,),) = (
        places.values()
        for places in calibrate(exported.onnx, {exported.signature.inputs[0].name: rows}, method).values()  # type: ignore[arg-type]
    )
    assert threshold == pytest.approx(3.0, rel=1e-2) if method != "entropy" else 0.9 < threshold <= 3.0


@pytest.mark.parametrize("method", METHODS)
def test_int8_keeps_the_accuracy_of_a_trained_model(method: str) -> None:
    model, (x_train, _, x, labels) = digits_model(), digits()
    wanted = model.predict(x, verbose=0)
    fast = accelerate(model, precision="int8", calibration_data=x_train[:200], calibration_method=method)
    assert (fast.precision, fast.report().fell_back) == ("int8", ())
    got = fast.predict(x, verbose=0)
    assert accuracy(wanted, labels) > 0.95
    assert abs(accuracy(got, labels) - accuracy(wanted, labels)) <= 0.01
    # What training leads to, and so what a threshold cuts off, differs a little between processors.
    assert 1e-3 < zoo.relative_l2(wanted, got) < 8e-2, "it was not in 8 bits, or is not right"


def test_fp8_keeps_the_accuracy_of_a_trained_model() -> None:
    """By ONNX's reference: ONNX Runtime takes a ReLU away in front of 8-bit floats, as if they had no sign."""
    model, (x_train, _, x, labels) = digits_model(), digits()
    exported = export(model)
    name = exported.signature.inputs[0].name
    found = calibrate(exported.onnx, {name: x_train[:200]}, "minmax")
    graph = onnx.load_from_string(typed(exported.onnx, "fp8", (), Quantization("fp16", found)))
    (got,) = ReferenceEvaluator(graph).run(None, {name: x[:200]})
    wanted = model.predict(x[:200], verbose=0)
    assert abs(accuracy(got, labels[:200]) - accuracy(wanted, labels[:200])) <= 0.01
    assert 1e-2 < zoo.relative_l2(wanted, got) < 1e-1


def test_datasets_calibrate_as_their_arrays_do(cache: EngineCache) -> None:
    model, (x_train, y_train, *_) = digits_model(), digits()
    options: Any = {"precision": "int8", "cache": cache}
    first = accelerate(model, calibration_data=x_train[:64], **options)
    data = tf.data.Dataset.from_tensor_slices((x_train[:64], y_train[:64])).batch(10)
    assert first.report().origin == "built"
    assert "calibrate" in first.report().seconds
    warm = accelerate(model, calibration_data=data, **options)
    assert warm.report().origin == "cache"
    assert "calibrate" not in warm.report().seconds
    assert accelerate(model, calibration_data=x_train[64:128], **options).report().origin == "built"


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_calibration_data_are_required(precision: str) -> None:
    with pytest.raises(ValueError, match="needs `calibration_data`"):
        accelerate(zoo.make("mlp"), precision=precision)


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_grow_by_a_hundred_thousand(method: str) -> None:
    """Bins of the first rows' width would be millions for the last."""
    exported = export(keras.Sequential([keras.Input((4,)), kl.Dense(2)]))
    name = exported.signature.inputs[0].name
    rows = np.random.default_rng(0).uniform(-1, 1, (64, 4)).astype("float32")
    rows[:16] *= 1e-5
    one, other = (calibrate(exported.onnx, {name: given}, method) for given in (rows, rows[::-1]))  # type: ignore[arg-type]
    assert one == other, "thresholds do not depend on the order of rows"
    ((threshold,),) = (places.values() for places in one.values())
    assert threshold <= np.abs(rows).max()
    assert threshold > 0.5 or method == "entropy"


@given(st.permutations(range(40)), st.sampled_from(("percentile", "minmax")))
@settings(max_examples=20, deadline=None)
def test_the_order_of_rows_says_nothing(order: list[int], method: Any) -> None:
    graph, name = dense()
    rows = np.random.default_rng(0).standard_normal((40, 4)).astype("float32")
    assert calibrate(graph, {name: rows[order]}, method) == calibrate(graph, {name: rows}, method)


@functools.cache
def dense() -> tuple[bytes, str]:
    exported = export(keras.Sequential([keras.Input((4,)), kl.Dense(2)]))
    return exported.onnx, exported.signature.inputs[0].name


def fixed() -> Any:
    inputs = keras.Input(batch_shape=(8, 6))
    return keras.Model(inputs, kl.Dense(3)(kl.Dense(16, "relu")(inputs)))


@pytest.mark.parametrize("rows", [8, 20, 32])
def test_a_fixed_batch_is_calibrated_in_batches_of_its_size(rows: int) -> None:
    fast = accelerate(fixed(), precision="int8", calibration_data=floats(6)(rows))
    assert (fast.precision, fast.report().fell_back) == ("int8", ())


def batches_of_other_lengths() -> Any:
    for length in (5, 7):
        yield (np.ones((4, length, 3), "float32"),)


@pytest.mark.parametrize(
    ("model", "rows", "says"),
    [
        (fixed, lambda: floats(6)(7), "`calibration_data` needs at least 8 rows. Received: 7"),
        (lambda: zoo.make("mlp"), lambda: floats(6)(0), "`calibration_data` needs at least 1 row. Received: 0"),
        (
            lambda: keras.Sequential([keras.Input((None, 3)), kl.Dense(2)]),
            batches_of_other_lengths,
            r"rows of one shape. Received: \[\(5, 3\), \(7, 3\)\]",
        ),
        (lambda: zoo.make("mlp"), lambda: iter([floats(6)(8)]), "`calibration_data` takes arrays"),
    ],
    ids=["fixed", "none", "lengths", "kind"],
)
def test_calibration_data_that_are_none(model: Any, rows: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        accelerate(model(), precision="int8", calibration_data=rows(), sample=np.ones((8, 6), "float32"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("given", [True, False])
def test_nan_in_calibration_data_is_named(method: str, value: float, given: bool) -> None:
    """Such a row is no reason to refuse other precisions too, where there is no other `sample`."""
    rows = floats(6)(32)
    rows[3, 2] = value
    options = {"calibration_data": rows, "calibration_method": method, "sample": floats(6)(16) if given else None}
    with recorded() as records:
        fast = accelerate(zoo.make("mlp"), precision="int8", **options)
    warns_once(records, "with the calibration data, '", "reads NaN or infinity")
    assert fast.precision == "fp16"


@pytest.mark.parametrize("name", ["recurrent", "planned", "zeros"])
def test_int8_that_did_not_happen_is_noticed(name: str) -> None:
    model = keras.Sequential([keras.Input((5, 6)), kl.LSTM(4)]) if name == "recurrent" else zoo.make("mlp")
    rows = floats(*model.input_shape[1:])(32)
    options = {"precision": "int8", "calibration_data": rows * (name != "zeros"), "sample": rows}
    plan = {"*": "float32"} if name == "planned" else None
    with recorded() as records:
        fast = accelerate(model, precision_plan=plan, **options)
    warns_once(records, "nothing of the graph can be in int8")
    assert fast.precision == "fp16"
    with pytest.raises(PrecisionError, match="nothing of the graph can be in int8"):
        accelerate(model, precision_plan=plan, **options, fallback="raise")


def test_a_backend_without_fp8_says_so() -> None:
    with recorded() as records:
        fast = accelerate(zoo.make("mlp"), precision="fp8", calibration_data=floats(6)(32))
    warns_once(records, "has no fp8")
    assert fast.precision == "fp16"


@pytest.mark.parametrize(("weights", "rows"), [(1e-6, 1e6), (1e6, 1e-6)])
def test_small_numbers_are_quantized_as_large_ones_are(weights: float, rows: float) -> None:
    inputs, first = keras.Input((6,)), kl.Dense(8, "relu")
    model = keras.Model(inputs, kl.Dense(3)(first(inputs)))
    first.kernel.assign(first.kernel * weights)
    fast = accelerate(model, precision="int8", calibration_data=floats(6)(64) * np.float32(rows))
    assert (fast.precision, fast.report().fell_back) == ("int8", ())


def test_a_model_that_8_bits_break_runs_in_more() -> None:
    """Rows of one in a thousand, calibrated with rows of one."""
    model = zoo.make("mlp")
    model.layers[-1].bias.assign(np.zeros(3))
    with recorded() as records:
        fast = accelerate(model, precision="int8", calibration_data=floats(6)(64), sample=floats(6)(16) * 1e-3)
    warns_once(records, "int8: the engine differs from Keras")
    assert fast.precision == "fp16"


def test_calibrations_at_once_leave_standard_output_alone(capsys: pytest.CaptureFixture[str]) -> None:
    exported = export(keras.Sequential([keras.Input((4,)), kl.Dense(2)]))
    out, seen = sys.stdout, []

    class Rows(dict[str, Any]):
        """Looks at standard output while a calibration runs."""

        def items(self) -> Any:
            seen.append(sys.stdout)
            return super().items()

    feeds = Rows({exported.signature.inputs[0].name: floats(4)(64)})
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda _: calibrate(exported.onnx, feeds, "entropy"), range(4)))
    assert seen
    assert all(one is out for one in [*seen, sys.stdout])
    assert capsys.readouterr().out == ""
