"""Float32 → float16 graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from keras_trt.export import export
from keras_trt.precision import tensor_types, typed
from keras_trt.precision.half import _name_nodes, _sort
from keras_trt.verify import LIMITS

from .. import zoo


@pytest.mark.parametrize("name", list(zoo.ZOO))
def test_half_graphs_answer_within_the_limit(name: str) -> None:
    exported = export(zoo.make(name))
    half = typed(exported.onnx, "fp16")
    onnx.checker.check_model(onnx.load_from_string(half), full_check=True)
    inputs = {
        spec.name: array
        for spec, array in zip(
            exported.signature.inputs, zoo.random_inputs(exported.signature.inputs, 4, seed=3), strict=True
        )
    }
    full_session, half_session = (
        onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]) for graph in (exported.onnx, half)
    )
    assert [value.type for value in half_session.get_inputs()] == [value.type for value in full_session.get_inputs()]
    for wanted, got in zip(full_session.run(None, inputs), half_session.run(None, inputs), strict=True):
        assert got.dtype == wanted.dtype
        difference = zoo.relative_l2(wanted, got)
        assert 0 < difference < LIMITS["fp16"], "no difference at all: nothing was computed in float16"
    assert "float16" in tensor_types(half).values()


@pytest.mark.parametrize("precision", ["tf32", "fp32"])
def test_float32_graphs_stay_as_they_are(precision: Any) -> None:
    graph = export(zoo.make("mlp")).onnx
    assert typed(graph, precision) == graph


@given(st.data())
def test_sort_puts_each_node_after_what_it_reads(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    nodes = []
    for i in range(count):
        reads = data.draw(st.lists(st.integers(0, i - 1), unique=True, max_size=3)) if i else []
        nodes.append(helper.make_node("Sum", ["x", *(f"t{j}" for j in reads)], [f"t{i}"], name=f"n{i}"))
    shuffled = data.draw(st.permutations(nodes))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info(f"t{count - 1}", TensorProto.FLOAT, [1])
    graph = helper.make_graph(shuffled, "g", [x], [y])
    _sort(graph)
    assert sorted(node.name for node in graph.node) == sorted(node.name for node in nodes)
    known = {"x"}
    for node in graph.node:
        assert set(node.input) <= known
        known |= set(node.output)


def test_sort_sees_what_subgraphs_read() -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["late"], ["out"])],
        "then",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])],
    )
    nodes = [
        helper.make_node("If", ["c"], ["y"], name="if", then_branch=inner, else_branch=inner),
        helper.make_node("Neg", ["x"], ["late"], name="neg"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    _sort(graph)
    assert [node.name for node in graph.node] == ["neg", "if"]


def test_sort_refuses_a_cycle() -> None:
    nodes = [helper.make_node("Neg", ["b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])]
    with pytest.raises(ValueError, match="cycle"):
        _sort(helper.make_graph(nodes, "g", [], []))


@given(st.lists(st.sampled_from(["", "Neg__0", "Neg__1", "other"]), max_size=8))
def test_names_become_distinct_from_all_that_are_there(names: list[str]) -> None:
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"], name=name) for name in names], "g", [], [])
    _name_nodes(graph)
    given_names = [name for name in names if name]
    made = [node.name for node, name in zip(graph.node, names, strict=True) if not name]
    assert all(made)
    assert len({*made, *given_names}) == len(made) + len(set(given_names))


def test_constants_that_do_not_fit_are_clamped_and_small_ones_stay() -> None:
    values = np.array([1e9, -1e9, 1.0, 0.0], "float32")
    constant = onnx.numpy_helper.from_array(values, "mask")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "mask"], ["y"], name="add")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [constant],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    half = typed(proto.SerializeToString(), "fp16")
    session = onnxruntime.InferenceSession(half, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": np.zeros((1, 4), "float32")})
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result[0, 2:], [1.0, 0.0])
    assert result[0, 0] > 6e4 > -6e4 > result[0, 1]
