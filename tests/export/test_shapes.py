"""Types and shapes of inputs: bytes, booleans and integers up to the engine's input, open axes through `profiles`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import keras_trt
from keras_trt.backends import BuildSpec
from keras_trt.backends.tensorrt.builder import PlanBuilder
from keras_trt.backends.tensorrt.flavor import flavor
from keras_trt.export import export
from keras_trt.precision import typed
from keras_trt.specs import OptimizationProfile, ShapeRange

from ..models import accelerate, floats, integers, keras, kl, ops, recorded, rows_differ, same, warns_once


def image(dtype: str = "uint8") -> Any:
    return keras.Input((4, 4, 3), dtype=dtype, name="image")


def joined(x: Any) -> Any:
    return ops.concatenate([x[:, 1:], ops.flip(ops.transpose(x, (0, 2, 1, 3)), axis=1)], axis=1)


#: Pads of images, in front of and behind rows and columns.
AROUND = ((0, 0), (1, 2), (2, 1), (0, 0))
#: What is done with bytes before they become floats.
MOVES: dict[str, Callable[[Any], Any]] = {
    "rescaled": lambda x: kl.Flatten()(kl.Rescaling(1 / 128, -1)(x)),
    "resized": lambda x: kl.Flatten()(kl.Resizing(2, 2)(x)) / 64,
    "flattened": lambda x: ops.cast(kl.Flatten()(x), "float32") / 64,
    "sliced": lambda x: ops.cast(kl.Flatten()(x[:, 1:, ::2]), "float32") / 64,
    "joined": lambda x: ops.cast(kl.Flatten()(joined(x)), "float32") / 64,
    "padded": lambda x: kl.Flatten()(kl.Rescaling(1 / 64)(kl.ZeroPadding2D(1)(x))),
    "padded with 7": lambda x: ops.cast(kl.Flatten()(ops.pad(x, AROUND, constant_values=7)), "float32") / 64,
    "mirrored": lambda x: ops.cast(kl.Flatten()(ops.pad(x, AROUND, mode="reflect")), "float32") / 64,
}


@pytest.mark.parametrize("name", MOVES)
def test_bytes_are_bytes_up_to_the_engine_and_then_floats(name: str) -> None:
    inputs = image()
    model = keras.Model(inputs, kl.Dense(3)(MOVES[name](inputs)))
    exported = export(model)
    proto = onnx.load_from_string(exported.onnx)
    onnx.checker.check_model(proto, full_check=True)
    assert [one.type.tensor_type.elem_type for one in proto.graph.input] == [TensorProto.UINT8]
    behind = [node for node in proto.graph.node if "image" in node.input]
    assert behind
    assert {node.op_type for node in behind} == {"Cast"}
    builder = PlanBuilder(flavor("tensorrt_rtx"))
    profile = OptimizationProfile({"image": ShapeRange((1, 4, 4, 3), (2, 4, 4, 3), (4, 4, 4, 3))})
    for precision in ("fp32", "fp16"):
        graph = typed(exported.onnx, precision)
        assert builder.supports(graph) == []
        assert builder.build(graph, BuildSpec(precision, profile, 0), for_this_gpu=False)
    fast = accelerate(model, fallback="raise")
    x = integers(256, 4, 4, 3, dtype="uint8")(7)
    expected = model.predict(x, verbose=0)
    rows_differ(expected)
    same(expected, fast.predict(x, verbose=0), 1e-4)


@pytest.mark.parametrize("name", ["calculated with", "given back"])
def test_a_graph_that_does_more_with_bytes_is_left_as_it_is(name: str) -> None:
    inputs = image()
    moved = kl.Flatten()(inputs)
    output = ops.cast(moved + moved, "float32") if name == "calculated with" else moved
    model = keras.Model(inputs, output)
    proto = onnx.load_from_string(export(model).onnx)
    assert all(node.op_type != "Cast" for node in proto.graph.node if "image" in node.input)
    x = np.full((2, 4, 4, 3), 200, "uint8")  # 400 is 144 in bytes
    same(model.predict(x, verbose=0), accelerate(model, fallback="raise").predict(x, verbose=0))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "int64"])
def test_integers_and_booleans_go_into_an_engine(dtype: str) -> None:
    inputs = keras.Input((4,), dtype=dtype, name="x")
    model = keras.Model(inputs, kl.Dense(3)(ops.cast(inputs, "float32")))
    exported = export(model)
    assert exported.signature.inputs[0].dtype == dtype
    builder = PlanBuilder(flavor("tensorrt_rtx"))
    profile = OptimizationProfile({"x": ShapeRange((1, 4), (2, 4), (4, 4))})
    for precision in ("fp32", "fp16"):
        graph = typed(exported.onnx, precision)
        kind = onnx.load_from_string(graph).graph.input[0].type.tensor_type.elem_type
        assert onnx.helper.tensor_dtype_to_np_dtype(kind) == np.dtype(dtype)
        assert builder.build(graph, BuildSpec(precision, profile, 0), for_this_gpu=False)
    fast = accelerate(model, fallback="raise")
    x = integers(2 if dtype == "bool" else 100, 4, dtype=dtype)(9)
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0), 1e-4)


@pytest.mark.parametrize("mode", ["zeros", "constant", "reflect", "symmetric"])
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "uint16", "uint32", "int32", "int64", "float16"])
def test_pads_of_each_type(dtype: str, mode: str) -> None:
    given = "int32" if dtype == "float16" else dtype  # XLA does not round what goes through half precision
    inputs = keras.Input((4, 4, 3), dtype=given, name="image")
    filled = True if dtype == "bool" else 2
    options: dict[str, Any] = {"zeros": {}, "constant": {"constant_values": filled}}.get(mode, {"mode": mode})
    model = keras.Model(inputs, ops.cast(ops.pad(ops.cast(inputs, dtype), AROUND, **options), "float32"))
    exported = export(model)
    x = integers(2 if dtype == "bool" else 100, 4, 4, 3, dtype=given)(3)
    same(model.predict(x, verbose=0), accelerate(model, fallback="raise").predict(x, verbose=0), 0)
    if mode == "symmetric" or dtype in ("uint16", "int16", "uint32"):
        return  # TensorRT has neither `Compress` nor these types
    profile = OptimizationProfile({"image": ShapeRange((1, 4, 4, 3), (2, 4, 4, 3), (4, 4, 4, 3))})
    for precision in ("fp32", "fp16"):
        graph = typed(exported.onnx, precision)
        assert PlanBuilder(flavor("tensorrt_rtx")).build(graph, BuildSpec(precision, profile, 0), for_this_gpu=False)


def test_bytes_that_are_padded_elsewhere_too_are_filled_with_bytes() -> None:
    inputs, numbers = image(), keras.Input((4, 4, 3), name="numbers")
    padded = [ops.pad(x, AROUND, constant_values=7) for x in (inputs, ops.cast(numbers, "uint8"))]
    model = keras.Model([inputs, numbers], [ops.cast(one, "float32") for one in padded])
    x = [integers(256, 4, 4, 3, dtype="uint8")(5), integers(256, 4, 4, 3)(5).astype("float32")]
    expected = model.predict(x, verbose=0)
    same(expected, accelerate(model, fallback="raise", sample=x).predict(x, verbose=0), 0)


def test_doctor_says_the_same_of_bytes_that_are_padded_before_they_are_calculated_with() -> None:
    def said(padded: bool) -> str:
        inputs = image()
        x = kl.ZeroPadding2D(1)(inputs) if padded else inputs
        (finding,) = keras_trt.doctor(keras.Model(inputs, ops.cast(x + x, "float32")), cache=None)
        assert finding.action == "falls back"
        return finding.problem

    for problem in (said(True), said(False)):
        assert "refused the graph" in problem
        assert "uint8" in problem.lower()


def test_nothing_of_a_shape_inference_that_fails_is_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise onnx.shape_inference.InferenceError("of no use")

    inputs = image("float32")
    model = keras.Model(inputs, kl.Dense(3)(inputs))
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", fail)
    logging.getLogger("onnx_ir").propagate = False  # as without pytest's own handler of the root
    try:
        export(model)
    finally:
        logging.getLogger("onnx_ir").propagate = True
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_bins(dtype: str) -> None:
    inputs = keras.Input((4,), dtype=dtype)
    model = keras.Model(inputs, kl.Discretization([-1.0, 0.5, 2.0])(inputs))
    x = np.array([[-2, -1, 0, 0.5], [1, 2, 3, -1e9], [1e9, np.inf, -np.inf, np.nan]])
    x = x[: 3 if dtype == "float32" else 2].astype(dtype)
    expected = model.predict(x, verbose=0)
    assert set(expected.flat) == {0, 1, 2, 3}
    same(expected, accelerate(model, fallback="raise").predict(x, verbose=0))


def range_of(low: tuple[int, ...], usual: tuple[int, ...], high: tuple[int, ...]) -> ShapeRange:
    return ShapeRange((1, *low), (4, *usual), (8, *high))


def test_image_sizes_within_a_profile() -> None:
    inputs = keras.Input((None, None, 3), name="image")
    hidden = kl.Conv2D(4, 3, strides=2, padding="same", activation="relu")(inputs)
    model = keras.Model(inputs, kl.Dense(3)(kl.GlobalAveragePooling2D()(hidden)))
    profile = OptimizationProfile({"image": range_of((6, 5, 3), (8, 8, 3), (12, 16, 3))})
    fast = accelerate(model, profiles=profile, fallback="raise")
    for height, width in ((6, 5), (8, 8), (7, 16), (12, 9)):
        x = 5 * floats(height, width, 3)(11)
        expected = model.predict(x, verbose=0)
        rows_differ(expected)
        same(expected, fast.predict(x, verbose=0))
    with recorded() as records:
        x = floats(13, 8, 3)(2)
        same(model.predict(x, verbose=0), fast.predict(x, verbose=0))
    warns_once(records, "axis 1", "13", "6 to 12")


def test_lengths_of_several_inputs_and_outputs_within_a_profile() -> None:
    tokens, numbers = keras.Input((None,), dtype="int32", name="tokens"), keras.Input((None, 2), name="numbers")
    table = kl.Embedding(20, 4, mask_zero=True, embeddings_initializer="normal")
    states = kl.LSTM(5, return_sequences=True)(table(tokens))
    pooled = kl.Concatenate()([kl.GlobalAveragePooling1D()(states), kl.GlobalMaxPooling1D()(numbers)])
    model = keras.Model(
        {"tokens": tokens, "numbers": numbers}, {"each": kl.Dense(2)(states), "all": kl.Dense(3)(pooled)}
    )
    ranges = {"tokens": range_of((1,), (6,), (9,)), "numbers": range_of((2, 2), (3, 2), (5, 2))}
    fast = accelerate(model, profiles=OptimizationProfile(ranges), fallback="raise")
    for length, count in ((1, 2), (6, 3), (9, 5)):
        x = {"tokens": integers(20, length)(11), "numbers": floats(count, 2)(11)}
        expected = model.predict(x, verbose=0)
        rows_differ(expected["all"])
        same(expected, fast.predict(x, verbose=0))


def test_a_fixed_batch_in_and_out_of_a_profile() -> None:
    inputs = keras.Input(batch_shape=(4, None, 3), name="x")
    model = keras.Model(inputs, kl.GlobalAveragePooling1D()(kl.Conv1D(2, 2)(inputs)))
    profile = OptimizationProfile({"x": ShapeRange((4, 2, 3), (4, 5, 3), (4, 7, 3))})
    fast = accelerate(model, profiles=profile, fallback="raise")
    for length in (2, 7):
        x = floats(length, 3)(8)
        expected = model.predict(x, batch_size=4, verbose=0)
        rows_differ(expected)
        same(expected, fast.predict(x, batch_size=4, verbose=0))
