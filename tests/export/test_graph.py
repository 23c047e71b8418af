"""The passes over ONNX graphs: laws that they keep, for random graphs and all models of the zoo."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from typing import Any

import keras
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from onnx import TensorProto, helper, numpy_helper

from keras_trt.export import export
from keras_trt.export.einsum import plan
from keras_trt.export.graph import layout, optimize, weights
from keras_trt.precision import typed

from .. import zoo


def run(graph: bytes, inputs: dict[str, Any]) -> list[Any]:
    return list(onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, inputs))


def operators(graph: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)


def initializers(graph: bytes) -> dict[str, Any]:
    return {one.name: numpy_helper.to_array(one) for one in onnx.load_from_string(graph).graph.initializer}


# Weights.


@pytest.mark.parametrize("name", list(zoo.ZOO))
def test_a_recipe_gives_what_a_fresh_export_gives(name: str) -> None:
    model = zoo.make(name)
    before = export(model)
    generator = np.random.default_rng(3)
    model.set_weights(
        [
            one + np.abs(generator.standard_normal(one.shape)).astype(one.dtype)  # variances stay positive
            if one.dtype.kind == "f"
            else one
            for one in model.get_weights()
        ]
    )
    fresh = initializers(export(model).onnx)
    refitted = before.recipe.run([np.asarray(one) for one in model.variables])
    stale = initializers(before.onnx)
    assert set(refitted) <= set(fresh)
    for key, array in refitted.items():
        np.testing.assert_array_equal(array, fresh[key])
    for key in fresh.keys() - refitted.keys():  # what the recipe does not give depends on no weight
        np.testing.assert_array_equal(fresh[key], stale[key])
    if model.trainable_variables:
        assert any(not np.array_equal(refitted[key], stale[key]) for key in refitted)


class Alone(layers.Layer):
    """Gives some of its weights as they are, or nearly so."""

    def build(self, _: Any) -> None:
        self.w, self.v = (self.add_weight(shape=(3, 4), initializer="random_normal") for _ in range(2))

    def call(self, x: Any) -> Any:
        return x @ self.w, self.w * 2.0, self.v * 1.0

    def compute_output_shape(self, _: Any) -> Any:
        return (None, 4), (3, 4), (3, 4)


def _named_as_weight() -> Any:
    return keras.Sequential([keras.Input((3,), name="weight_0"), layers.Dense(2)])


def _weights_alone() -> Any:
    x = keras.Input((3,))
    return keras.Model(x, Alone()(x))


@pytest.mark.parametrize("build", [_named_as_weight, _weights_alone])
def test_a_recipe_names_the_initializers_of_the_final_graph(build: Any) -> None:
    model = zoo.lively(build())
    before = export(model)
    model.set_weights([2 * one + 1 for one in model.get_weights()])
    refitted, stale = before.recipe.run(model.get_weights()), onnx.load_from_string(before.onnx)
    assert before.recipe.covers(range(len(model.variables)))
    assert set(refitted) <= set(initializers(before.onnx))
    for one in stale.graph.initializer:
        if one.name in refitted:
            one.CopyFrom(numpy_helper.from_array(refitted[one.name], one.name))
    x = {before.signature.inputs[0].name: np.random.default_rng(0).standard_normal((2, 3)).astype("float32")}
    for one, two in zip(run(stale.SerializeToString(), x), run(export(model).onnx, x), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_recipe_knows_what_it_does_not_know() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 3)).astype("float32")
    normalization = layers.Normalization()
    normalization.adapt(rows)
    x = keras.Input((3,))
    model = keras.Model(x, layers.Dense(2)(normalization(x)))
    places = {variable.path.split("/")[-1]: place for place, variable in enumerate(model.variables)}
    recipe = export(model).recipe
    assert recipe.covers([places["kernel"], places["bias"]])
    assert not recipe.covers([places["mean"]])  # the graph has a tensor that the layer made of it

    class Raw(layers.Layer):
        def build(self, _: Any) -> None:
            self.w = self.add_weight(shape=(3,), initializer="ones")

        def call(self, x: Any) -> Any:
            return x * self.w + self.w._value

    assert not export(keras.Sequential([keras.Input((3,)), Raw()])).recipe.covers([0])


def test_a_recipe_is_small() -> None:
    model = zoo.make("cnn")
    assert len(export(model).recipe.onnx) < 30_000


def test_random_numbers_are_no_constants() -> None:
    nodes = [helper.make_node("RandomUniform", [], ["r"], shape=[2]), helper.make_node("Add", ["r", "x"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    assert {node.op_type for node in optimize(proto, []).proto.graph.node} == {"RandomUniform", "Add"}
    graph = ir.from_proto(proto).graph
    assert not weights.fixed_values(graph, []) & set(graph.outputs)


# Layout.

_RANK = 4
_orders = st.permutations(range(_RANK)).map(tuple)


@st.composite
def chains(draw: st.DrawFn) -> bytes:
    """Draw a graph of transposes and of nodes that a transpose may pass."""
    sizes = [2, 3, 4, 5]
    nodes, constants, current = [], [], "x"
    for number in range(draw(st.integers(1, 7))):
        kind = draw(st.sampled_from(["Transpose", "Transpose", "Relu", "Mul", "Residual", "Reduce", "Pad", "Concat",
                                     "Softmax", "Slice", "Split"]))  # fmt: skip
        name = f"t{number}"
        if kind == "Transpose":
            order = draw(_orders)
            nodes.append(helper.make_node("Transpose", [current], [name], name=name, perm=order))
            sizes = [sizes[axis] for axis in order]
        elif kind == "Mul":
            rank = draw(st.integers(0, _RANK))
            shape = [size if draw(st.booleans()) else 1 for size in sizes[_RANK - rank :]]
            array = np.arange(1, 1 + int(np.prod(shape)), dtype="float32").reshape(shape)
            constants.append(numpy_helper.from_array(array, f"c{number}"))
            nodes.append(helper.make_node("Mul", [current, f"c{number}"], [name], name=name))
        elif kind == "Residual":
            nodes.append(helper.make_node("Neg", [current], [f"n{number}"], name=f"n{number}"))
            nodes.append(helper.make_node("Max", [current, f"n{number}"], [name], name=name))
        elif kind == "Reduce":
            axis = draw(st.integers(-_RANK, _RANK - 1))
            nodes.append(helper.make_node("ReduceMean", [current], [name], name=name, axes=[axis], keepdims=1))
            sizes[axis] = 1
        elif kind == "Pad":
            pads = [draw(st.integers(0, 1)) for _ in range(2 * _RANK)]
            constants.append(numpy_helper.from_array(np.array(pads, np.int64), f"c{number}"))
            nodes.append(helper.make_node("Pad", [current, f"c{number}"], [name], name=name))
            sizes = [size + pads[axis] + pads[_RANK + axis] for axis, size in enumerate(sizes)]
        elif kind == "Concat":
            axis = draw(st.integers(-_RANK, _RANK - 1))
            nodes.append(helper.make_node("Concat", [current, current], [name], name=name, axis=axis))
            sizes[axis] *= 2
        elif kind == "Softmax":
            axis = draw(st.integers(-_RANK, _RANK - 1))
            nodes.append(helper.make_node("Softmax", [current], [name], name=name, axis=axis))
        elif kind == "Slice":
            axis = draw(st.integers(0, _RANK - 1))
            for part, value in (("s", -1), ("e", -(2**31)), ("a", axis), ("p", -1)):
                constants.append(numpy_helper.from_array(np.array([value], np.int64), f"{part}{number}"))
            inputs = [current, *(f"{part}{number}" for part in "seap")]
            nodes.append(helper.make_node("Slice", inputs, [name], name=name))
        elif kind == "Split":
            axis = draw(st.integers(0, _RANK - 1))
            if sizes[axis] % 2:
                continue
            nodes.append(helper.make_node("Split", [current], [f"{name}a", f"{name}b"], name=name, axis=axis))
            nodes.append(helper.make_node("Sub", [f"{name}b", f"{name}a"], [name], name=f"{name}sub"))
            sizes[axis] //= 2
        else:
            nodes.append(helper.make_node(kind, [current], [name], name=name))
        current = name
    nodes.append(helper.make_node("Identity", [current], ["y"], name="y"))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(onnx.shape_inference.infer_shapes(proto).SerializeToString())


@settings(max_examples=200, deadline=None)
@given(chains())
def test_passes_keep_the_answers_and_add_no_transposes(graph: bytes) -> None:
    better = optimize(onnx.load_from_string(graph), []).proto
    onnx.checker.check_model(better, full_check=True)
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype("float32")
    (wanted,), (got,) = run(graph, {"x": x}), run(better.SerializeToString(), {"x": x})
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    assert operators(better.SerializeToString())["Transpose"] <= operators(graph)["Transpose"]


@given(_orders)
def test_an_inverse_order_undoes(order: tuple[int, ...]) -> None:
    inverse = layout._inverse(order)
    assert tuple(order[axis] for axis in inverse) == tuple(range(_RANK))


@pytest.mark.parametrize(("name", "left"), [("cnn", 2), ("upsampling", 2)])
def test_transposes_that_are_left(name: str, left: int) -> None:
    """One where an image comes in; one where it leaves, or is flattened in the order of Keras."""
    assert operators(export(zoo.make(name)).onnx)["Transpose"] == left


def test_batch_normalization_is_gone() -> None:
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 3, padding="same")(x)
    y = layers.Add()([layers.ReLU()(layers.BatchNormalization()(y)), y])
    assert operators(export(keras.Model(x, layers.GlobalAveragePooling2D()(y))).onnx) == Counter(
        # The sum reads the convolution too, so that its scale has to stay.
        Transpose=1, Conv=1, Mul=1, Relu=1, Add=2, GlobalAveragePool=1, Reshape=1
    )  # fmt: skip
    z = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, use_bias=False)(x)))
    graph = export(keras.Model(x, layers.GlobalAveragePooling2D()(z))).onnx
    assert operators(graph) == Counter(Transpose=1, Conv=1, Relu=1, GlobalAveragePool=1, Reshape=1)


@pytest.mark.parametrize("shape", [(5, 4), (None, 4), (None, None, 4), (3, None, 4)])
def test_a_dense_layer_is_one_product(shape: tuple[int | None, ...]) -> None:
    x = keras.Input(shape)
    assert operators(export(keras.Model(x, layers.Dense(2, use_bias=False)(x))).onnx) == Counter(MatMul=1)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_products_with_a_matrix_have_two_or_three_axes(sizes: list[int], units: int, dense: bool, seed: int) -> None:
    """An image's rows are no batch of small products (TensorRT 8.6 computes them so)."""
    x = keras.Input(sizes)
    letters = "abcde"[: len(sizes)]
    layer = layers.Dense(units) if dense else layers.EinsumDense(f"{letters}k,kz->{letters}z", [*sizes[:-1], units])
    model = keras.Model(x, layers.ReLU()(layer(x)))
    result = export(model)
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(result.onnx)).graph
    shapes = {one.name: one.type.tensor_type.shape.dim for one in (*graph.value_info, *graph.input)}
    (product,) = (node for node in graph.node if node.op_type in ("MatMul", "Gemm"))
    assert len(shapes[product.input[0]]) <= 3
    rows = np.random.default_rng(seed).standard_normal((3, *sizes)).astype("float32")
    (got,) = run(result.onnx, {result.signature.inputs[0].name: rows})
    np.testing.assert_allclose(got, keras.ops.convert_to_numpy(model(rows)), rtol=1e-5, atol=1e-6)


# Einsum.


@st.composite
def equations(draw: st.DrawFn) -> str:
    """Draw an einsum of two operands, each with an axis at least, without diagonals and sums over one operand."""
    kinds = draw(st.lists(st.sampled_from("brls"), min_size=1, max_size=5))
    letters = "abcde"[: len(kinds)]
    first = [letter for letter, kind in zip(letters, kinds, strict=True) if kind != "r"]
    second = [letter for letter, kind in zip(letters, kinds, strict=True) if kind != "l"]
    output = [letter for letter, kind in zip(letters, kinds, strict=True) if kind != "s"]
    operands = [draw(st.permutations(part)) for part in (first, second, output)]
    return f"{''.join(operands[0])},{''.join(operands[1])}->{''.join(operands[2])}"


@settings(max_examples=25, deadline=None)
@given(equations())
def test_einsum(equation: str) -> None:
    import tensorflow as tf

    sizes = dict(zip("abcde", (2, 3, 4, 5, 6), strict=True))
    first, second = equation.split("->")[0].split(",")
    if not first or not second:
        return
    shapes = [tuple(sizes[letter] for letter in part) for part in (first, second)]
    one, two = (keras.Input((1, *shape)) for shape in shapes)

    class Product(layers.Layer):
        def call(self, x: Any, y: Any) -> Any:
            return tf.einsum(equation, x[0, 0], y[0, 0])[None]

    model = keras.Model([one, two], Product()(one, two))
    generator = np.random.default_rng(1)
    given = [generator.standard_normal((1, 1, *shape)).astype("float32") for shape in shapes]
    result = export(model)
    feeds = {spec.name: array for spec, array in zip(result.signature.inputs, given, strict=True)}
    (got,) = run(result.onnx, feeds)
    wanted = np.einsum(equation, given[0][0, 0], given[1][0, 0])[None]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert "Einsum" not in operators(result.onnx)


@pytest.mark.parametrize("equation", ["aa,ab->b", "ab,cd->a", "ab->ba", "ab,bc,cd->ad"])
def test_what_is_no_product_of_two_matrices(equation: str) -> None:
    ranks = [len(part) for part in equation.split("->")[0].split(",")]
    assert plan(equation, ranks) is None


def test_attention_has_no_computed_shapes() -> None:
    tokens = keras.Input((None, 8))
    model = keras.Model(tokens, layers.MultiHeadAttention(2, 4)(tokens, tokens))
    found = operators(export(model).onnx)
    assert found["MatMul"] == 6
    assert not {"Einsum", "ReduceProd", "Squeeze"} & set(found)


def test_orders_of_axes() -> None:
    for order in itertools.permutations(range(3)):
        assert layout._without(order, [0]) == tuple(np.argsort(np.argsort(order[1:])))


# What a user sees.


@pytest.mark.parametrize("layer", [layers.LayerNormalization(), layers.LSTM(4)], ids=["normalization", "lstm"])
def test_an_export_says_nothing_of_its_own_graphs(layer: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "onnx_ir"):
        graph = export(keras.Sequential([keras.Input((5, 3)), layer, layers.Dense(2)])).onnx
        typed(graph, "fp16")
    assert [record.getMessage() for record in caplog.records if record.name.startswith("onnx_ir")] == []
