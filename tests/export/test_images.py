"""Pads that convolutions and pools make by themselves, and means over images."""

from __future__ import annotations

from collections import Counter
from typing import Any

import keras
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from onnx import TensorProto, helper, numpy_helper

from keras_trt.export import export
from keras_trt.export.graph import optimize

from .test_convolutions import compare
from .test_graph import operators, run


def optimized(nodes: list[Any], constants: dict[str, Any]) -> tuple[bytes, bytes]:
    """Return a graph from `x` to `y`, and what the passes make of it; they keep its answers."""
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "images",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2, 7, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items() if name in read],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    before = bytes(onnx.shape_inference.infer_shapes(proto).SerializeToString())
    better = optimize(onnx.load_from_string(before), []).proto
    onnx.checker.check_model(better, full_check=True)
    after = bytes(better.SerializeToString())
    x = np.random.default_rng(0).standard_normal((3, 2, 7, 6)).astype("float32")
    (wanted,), (got,) = run(before, {"x": x}), run(after, {"x": x})
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    return before, after


KERNEL = np.random.default_rng(1).standard_normal((2, 2, 3, 3)).astype("float32")
AROUND = np.array([0, 0, 1, 0, 0, 0, 1, 2], np.int64)


def padded(kind: str, before: str = "Relu", zeros: Any = AROUND, value: float | None = None, **more: Any) -> int:
    """Return how many pads are left in front of a convolution or pool."""
    constants = {"zeros": np.array(zeros, np.int64), "kernel": KERNEL}
    constants |= {"six": np.float32(6), "least": np.float32(-1), "none": np.float32(0)}
    kind_before, *limits = before.split()
    nodes = [helper.make_node(kind_before, ["x", *limits], ["a"], name="a")]
    inputs = ["a", "zeros"]
    if value is not None:
        constants["value"] = np.float32(value)
        inputs.append("value")
    nodes.append(helper.make_node("Pad", inputs, ["b"], name="b"))
    nodes.append(helper.make_node(kind, ["b", "kernel"][: 2 if kind == "Conv" else 1], ["y"], name="y", **more))
    _, after = optimized(nodes, constants)
    return operators(after)["Pad"]


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["Conv", "MaxPool"]),
    st.sampled_from(["Relu", "Sigmoid", "Clip least six", "Clip none six", "Clip none", "Clip none least", "Neg"]),
    st.lists(st.integers(-1, 4), min_size=4, max_size=4),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([{}, {"pads": [1, 0, 1, 1]}, {"strides": [2, 2]}, {"auto_pad": "SAME_UPPER"}, {"ceil_mode": 1}]),
    st.sampled_from([{}, {"dilations": [1, 1]}, {"dilations": [2, 1]}]),
)
def test_pads_into_windows_keep_the_answers(
    kind: str, before: str, sizes: list[int], value: int | None, more: dict[str, Any], others: dict[str, Any]
) -> None:
    if kind == "Conv":
        more = {name: one for name, one in more.items() if name != "ceil_mode"}
    if "auto_pad" in more:
        others = {}
    zeros = [0, 0, *sizes[:2], 0, 0, *sizes[2:]]
    padded(kind, before, zeros, value, kernel_shape=[3, 3], **more, **others)


WINDOW = {"kernel_shape": [3, 3], "strides": [2, 2]}


def test_convolutions_and_pools_pad_by_themselves() -> None:
    assert padded("Conv", "Neg", **WINDOW) == 0
    assert padded("Conv", value=0, zeros=[0, 0, 5, 5, 0, 0, 5, 5], **WINDOW) == 0
    assert padded("MaxPool", **WINDOW) == 0
    assert padded("MaxPool", "Clip none six", **WINDOW) == 0


def test_other_pads_stay() -> None:
    assert padded("Conv", value=1, **WINDOW) == 1
    assert padded("Conv", zeros=[0, 0, -1, 0, 0, 0, 1, 1], **WINDOW) == 1
    assert padded("MaxPool", "Neg", **WINDOW) == 1  # a zero may be the largest
    assert padded("MaxPool", "Clip least six", **WINDOW) == 1
    assert padded("MaxPool", "Clip none least", **WINDOW) == 1  # all numbers are the most, which is below the least
    assert padded("MaxPool", zeros=[0, 0, 3, 0, 0, 0, 0, 0], **WINDOW) == 1  # a window of pads alone
    assert padded("MaxPool", zeros=[0, 1, 1, 1, 0, 0, 1, 1], **WINDOW) == 1


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("axes", [[2, 3], [-1, 2], [1, 2]])
def test_means_over_rows_and_columns(axes: list[int], keeps: bool) -> None:
    node = helper.make_node("ReduceMean", ["x"], ["y"], name="y", axes=axes, keepdims=int(keeps))
    _, after = optimized([node], {})
    is_pool = not keeps and axes != [1, 2]
    assert operators(after) == (Counter(GlobalAveragePool=1, Reshape=1) if is_pool else Counter(ReduceMean=1))


def test_the_parts_of_image_models() -> None:
    """ResNet's first pool, MobileNet's steps, EfficientNet's squeeze and excitation, and the head of all of them."""
    x = keras.Input((9, 9, 3), name="image")
    y = layers.Activation("relu")(layers.Conv2D(4, 3)(x))
    y = layers.MaxPooling2D(3, strides=2)(layers.ZeroPadding2D(1)(y))
    y = layers.ReLU(6.0)(y)
    y = layers.DepthwiseConv2D(3, strides=2)(layers.ZeroPadding2D(((0, 1), (0, 1)))(y))
    few = layers.Reshape((1, 1, 4))(layers.GlobalAveragePooling2D()(y))
    y = layers.Multiply()([y, layers.Conv2D(4, 1, activation="sigmoid")(few)])
    model = keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling2D()(y)))
    assert operators(export(model).onnx) == Counter(
        Transpose=1,
        Conv=3,
        Relu=1,
        MaxPool=1,
        Clip=1,
        GlobalAveragePool=2,
        Sigmoid=1,
        Mul=1,
        Reshape=1,
        MatMul=1,
        Add=1,
    )
    compare(model)
