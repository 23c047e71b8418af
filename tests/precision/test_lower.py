"""Float32 → float16 and bfloat16 graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from keras_trt.backends import BuildSpec
from keras_trt.backends.onnxruntime import OnnxRuntimeBackend
from keras_trt.backends.tensorrt.builder import PlanBuilder
from keras_trt.backends.tensorrt.flavor import flavor
from keras_trt.export import export
from keras_trt.precision import tensor_types, typed
from keras_trt.verification.verify import LIMITS

from .. import zoo
from . import awkward

MODELS = {**{name: lambda name=name: zoo.make(name) for name in zoo.ZOO}, **awkward.MODELS}
HALF = {"fp16": "float16", "bf16": "bfloat16"}


@pytest.fixture(scope="module", params=list(MODELS))
def exported(request: pytest.FixtureRequest) -> Any:
    return export(MODELS[request.param]())


def run(graph: bytes, inputs: dict[str, Any], precision: str) -> list[Any]:
    """Run by ONNX Runtime; it has no bfloat16 on a CPU, where ONNX's reference rounds each result instead."""
    if precision == "bf16":
        return list(ReferenceEvaluator(onnx.load_from_string(graph)).run(None, inputs))
    return list(OnnxRuntimeBackend()._session(graph).run(None, inputs))


@pytest.mark.parametrize("precision", list(HALF))
def test_half_graphs_answer_within_the_limit(exported: Any, precision: Any) -> None:
    half = typed(exported.onnx, precision)
    proto = onnx.load_from_string(half)
    onnx.checker.check_model(proto, full_check=True)
    assert len({node.name for node in proto.graph.node}) == len(proto.graph.node)
    before = onnx.load_from_string(exported.onnx).graph
    for mine, theirs in ((proto.graph.input, before.input), (proto.graph.output, before.output)):
        assert [(v.name, v.type.tensor_type.elem_type) for v in mine] == [
            (v.name, v.type.tensor_type.elem_type) for v in theirs
        ]
    assert HALF[precision] in _all_types(proto.graph)
    if precision == "bf16" and any(node.op_type == "Loop" for node in proto.graph.node):
        return  # ONNX's reference runs loops otherwise than ONNX Runtime, in float32 too
    specs = exported.signature.inputs
    inputs = dict(zip((spec.name for spec in specs), zoo.random_inputs(specs, 4, seed=3), strict=True))
    for wanted, got in zip(run(exported.onnx, inputs, "fp32"), run(half, inputs, precision), strict=True):
        assert got.dtype == wanted.dtype
        difference = zoo.relative_l2(wanted, got)
        assert 0 < difference < LIMITS[precision], "no difference at all: nothing was computed in half"


def _all_types(graph: Any) -> set[str]:
    """Return the types of the constants of a graph and its subgraphs."""
    found = {helper.tensor_dtype_to_np_dtype(one.data_type).name for one in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= _all_types(attribute.g)
    return found


@pytest.mark.parametrize("precision", ["tf32", "fp32"])
def test_float32_graphs_stay_as_they_are(precision: Any) -> None:
    graph = export(zoo.make("mlp")).onnx
    assert typed(graph, precision) == graph


def chain(nodes: Sequence[Any], constants: dict[str, Any], width: int = 4, kind: int = TensorProto.FLOAT) -> bytes:
    """Return a graph from `x` to `y`."""
    x = helper.make_tensor_value_info("x", kind, ["batch", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None])
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "g", [x], [y], stored)
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def node(operator: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), [output], name=output, **attributes)


EYE = np.eye(4, dtype="float32")


def exactly(graph: bytes, rows: Any) -> Any:
    """Run with each result rounded as the graph says: ONNX Runtime leaves casts to float16 and back out on a CPU."""
    return ReferenceEvaluator(onnx.load_from_string(graph)).run(None, {"x": np.asarray(rows)})[0]


def types_of(graph: bytes, precision: Any = "fp16", keep: Sequence[str] = ()) -> dict[str, str]:
    return tensor_types(typed(graph, precision, keep))


def test_a_product_is_half_and_what_is_kept_is_not() -> None:
    graph = chain([node("MatMul", "x w", "h"), node("MatMul", "h w", "i"), node("MatMul", "i w", "y")], {"w": EYE})
    assert [types_of(graph)[name] for name in "hi"] == ["float16"] * 2
    kept = types_of(graph, keep=["i"])
    assert [kept[name] for name in "hi"] == ["float16", "float32"]
    assert kept["y"] == types_of(graph)["y"] == "float32"


def test_a_layer_normalization_is_float32_between_products() -> None:
    graph = chain(
        [node("MatMul", "x w", "h"), node("LayerNormalization", "h s", "n"), node("MatMul", "n w", "y")],
        {"w": EYE, "s": np.linspace(0.5, 1.5, 4, dtype="float32")},
    )
    kinds = types_of(graph)
    assert (kinds["h"], kinds["n"]) == ("float16", "float32")
    assert "s/float16" not in kinds


@pytest.mark.parametrize(
    ("constant", "fp16", "bf16"),
    [
        (np.float32(-1e9), "float32", "bfloat16"),
        (np.full(4, 7e4, "float32"), "float32", "bfloat16"),
        (np.float32(1e-7), "float32", "bfloat16"),
        (np.float32(3.4028e38), "float32", "float32"),
        (np.float32(-np.inf), "float16", "bfloat16"),
        (np.float32(0), "float16", "bfloat16"),
        (np.full(4, 1e-7, "float32"), "float16", "bfloat16"),
        (np.array([1, 1e-7, 1e-3, 0], "float32"), "float16", "bfloat16"),
    ],
    ids=["mask", "large", "epsilon", "largest", "infinity", "zero", "small", "some-small"],
)
def test_a_constant_that_does_not_fit_keeps_its_node_in_float32(constant: Any, fp16: str, bf16: str) -> None:
    # An array is a bias here; behind the addition stands a product, so that only the constant decides.
    graph = chain(
        [node("MatMul", "x w", "h"), node("Add", "h c", "a"), node("MatMul", "a w", "y")], {"w": EYE, "c": constant}
    )
    assert types_of(graph)["a"] == fp16
    assert types_of(graph, "bf16")["a"] == bf16


SMALL, LARGE = np.full(4, 1e-8, "float32"), np.full(4, 7e4, "float32")


@pytest.mark.parametrize(
    ("operator", "constant", "behind", "kind"),
    [
        ("Conv", SMALL, "Relu", "float16"),
        ("ConvTranspose", SMALL, "Relu", "float16"),
        ("Gemm", SMALL, "Relu", "float16"),
        ("Add", SMALL, "Relu", "float16"),
        ("Add", SMALL, "ReduceMean", "float16"),
        ("Conv", LARGE, "Relu", "float32"),
        ("Mul", SMALL, "Relu", "float32"),
        ("Max", SMALL, "Relu", "float32"),
        *((operator, SMALL, behind, "float32") for operator in ("Conv", "Add") for behind in ("Log", "Sqrt", "Pow")),
    ],
)
def test_a_small_bias_may_vanish_where_nothing_makes_much_of_it(
    operator: str, constant: Any, behind: str, kind: str
) -> None:
    inputs = {"Conv": "i k c", "ConvTranspose": "i k c", "Gemm": "h w c"}.get(operator, "h c")
    more: dict[str, Any] = {"ReduceMean": {"axes": [1]}}.get(behind, {})
    graph = chain(
        [
            node("MatMul", "x w", "h"),
            node("Reshape", "h columns", "i"),
            node(operator, inputs, "a"),
            node("Reshape", "a rows", "b"),
            node("Relu", "b", "r"),
            node(behind, "r two" if behind == "Pow" else "r", "s", **more),
            node("MatMul", "s v" if more else "s w", "y"),
        ],
        {
            "w": EYE, "k": EYE[..., None], "c": constant, "v": EYE[:1], "two": np.float32(2),
            "columns": np.array([-1, 4, 1]), "rows": np.array([-1, 4]),
        },
    )  # fmt: skip
    assert types_of(graph)["a"] == kind


@pytest.mark.parametrize(("beta", "kind"), [(1.0, "float16"), (1e8, "float32")])
def test_what_a_factor_makes_large_is_no_small_bias(beta: float, kind: str) -> None:
    nodes = [node("Gemm", "x w c", "h", beta=beta), node("MatMul", "h w", "y")]
    assert types_of(chain(nodes, {"w": EYE, "c": SMALL}))["h"] == kind


def test_a_small_bias_of_what_is_given_back_stays_as_it_is() -> None:
    graph = chain([node("MatMul", "x w", "h"), node("Add", "h c", "y")], {"w": EYE, "c": SMALL})
    np.testing.assert_array_equal(exactly(typed(graph, "fp16"), np.zeros((1, 4), "float32")), SMALL[None])


@given(st.lists(st.floats(-6e4, 6e4, width=32), min_size=4, max_size=4), st.integers(-30, 3), st.integers(0, 99))
def test_a_bias_in_half_is_off_by_no_more_than_what_it_is_added_to(row: list[float], power: int, seed: int) -> None:
    # So small a bias may vanish: the sum, rounded to half, is off by half of its last place and that of the bias.
    bias = (np.random.default_rng(seed).standard_normal(4) * 2.0**power).astype("float32")
    x = np.array([row], "float32")
    graph = chain(
        [node("MatMul", "x w", "h"), node("Add", "h c", "a"), node("MatMul", "a w", "y")], {"w": EYE, "c": bias}
    )
    assert types_of(graph)["a"] == "float16"
    wanted, h = x.astype("float16").astype("float64") + bias, x.astype("float16")
    last = np.spacing(np.maximum(np.abs(wanted), np.abs(h)).astype("float16")).astype("float64")
    small = np.spacing(np.abs(bias).astype("float16")).astype("float64")
    assert (np.abs(exactly(typed(graph, "fp16"), x) - wanted) <= (last + small) / 2).all()


@pytest.mark.parametrize("layer", ["LSTM", "GRU"])
def test_inputs_that_are_left_out(layer: str) -> None:
    """As the lengths of a recurrent layer that has a first state."""
    make = getattr(keras.layers, layer)
    words, more = keras.Input((5, 3)), keras.Input((4, 3))
    _, *states = make(4, return_state=True)(words)
    answers = make(4, return_sequences=True)(more, initial_state=states)
    exported = export(keras.Model([words, more], keras.layers.Dense(2)(answers)))
    specs = exported.signature.inputs
    inputs = dict(zip((spec.name for spec in specs), zoo.random_inputs(specs, 4, seed=3), strict=True))
    for wanted, got in zip(
        run(exported.onnx, inputs, "fp32"), run(typed(exported.onnx, "fp16"), inputs, "fp16"), strict=True
    ):
        assert 0 < zoo.relative_l2(wanted, got) < LIMITS["fp16"]


def test_a_masked_softmax_is_float32_with_what_leads_up_to_it() -> None:
    graph = chain(
        [
            node("MatMul", "x w", "scores"),
            node("Mul", "scores scale", "scaled"),
            node("Where", "allowed scaled never", "masked"),
            node("Softmax", "masked", "shares"),
            node("MatMul", "shares w", "y"),
        ],
        {"w": EYE, "scale": np.float32(0.5), "never": np.float32(-1e9), "allowed": np.array([True, False, True, True])},
    )
    found = types_of(graph)
    assert [found[name] for name in ("scores", "scaled", "masked", "shares")] == ["float16", *["float32"] * 3]
    rows = np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
    wanted, got = (exactly(one, rows) for one in (graph, typed(graph, "fp16")))
    assert (got[:, 1] == 0).all()
    assert 0 < zoo.relative_l2(wanted, got) < 1e-2


def test_the_square_under_a_variance_is_float32() -> None:
    """Values of 300 are nothing to float16, and their squares are infinite in it."""
    graph = chain(
        [
            node("MatMul", "x w", "h"),
            node("Mul", "h h", "square"),
            node("ReduceMean", "square", "mean", axes=[-1], keepdims=1),
            node("Add", "mean epsilon", "more"),
            node("Sqrt", "more", "root"),
            node("Div", "h root", "normal"),
            node("MatMul", "normal w", "y"),
        ],
        {"w": EYE, "epsilon": np.float32(1e-3)},
    )
    found = types_of(graph)
    assert {found[name] for name in ("square", "mean", "more", "root")} == {"float32"}
    assert {found[name] for name in ("h", "normal")} == {"float16"}
    got = exactly(typed(graph, "fp16"), np.full((1, 4), 300, "float32"))
    np.testing.assert_allclose(got, 1, rtol=1e-2)


def test_inputs_of_any_scale_are_float32_up_to_the_first_product() -> None:
    graph = chain(
        [node("Sub", "x mean", "a"), node("Mul", "a scale", "b"), node("MatMul", "b w", "c"), node("Relu", "c", "y")],
        {"w": EYE, "mean": np.float32(1e4), "scale": np.float32(1e-3)},
    )
    found = types_of(graph)
    assert [found[name] for name in "abc"] == ["float32", "float32", "float16"]
    got = exactly(typed(graph, "fp16"), np.full((1, 4), 1e6, "float32"))
    np.testing.assert_allclose(got, 990, rtol=1e-2)


def test_casts_that_are_there_are_respected() -> None:
    graph = chain(
        [
            node("Cast", "x", "a", to=TensorProto.FLOAT),
            node("MatMul", "a w", "b"),
            node("Cast", "b", "c", to=TensorProto.FLOAT16),
            node("Cast", "c", "d", to=TensorProto.FLOAT),
            node("MatMul", "d w", "y"),
        ],
        {"w": EYE},
        kind=TensorProto.INT32,
    )
    found = types_of(graph, "bf16")
    assert [found[name] for name in "xabcd"] == ["int32", "float32", "bfloat16", "float16", "float32"]


def test_a_graph_in_which_nothing_can_be_half_stays_float32() -> None:
    graph = chain([node("Sin", "x", "a"), node("Neg", "a", "y")], {})
    assert set(types_of(graph).values()) == {"float32"}


@st.composite
def graphs(draw: st.DrawFn) -> bytes:
    """Return a graph of operators that are half, float32 and either, whose outputs are read inside too."""
    nodes, constants, values = [], {}, ["x"]
    for i in range(draw(st.integers(1, 8))):
        one, other = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        kind = draw(st.sampled_from(("Relu", "Exp", "Softmax", "Floor", "Add", "Mul", "Max", "MatMul", "Constant")))
        if kind == "MatMul":
            constants[f"w{i}"], other = np.random.default_rng(i).standard_normal((4, 4)).astype("float32") / 2, f"w{i}"
        elif kind == "Constant":
            kind, other = "Add", f"w{i}"
            constants[other] = np.float32(draw(st.sampled_from((1e-7, 0.5, -1e9))))
        inputs = f"{one} {other}" if kind in ("Add", "Mul", "Max", "MatMul") else one
        nodes.append(node(kind, inputs, f"v{i}"))
        values.append(f"v{i}")
    proto = onnx.load_from_string(chain(nodes, constants))
    del proto.graph.output[:]
    for name in sorted({*draw(st.sets(st.sampled_from(values[1:]))), values[-1]}):
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]))
    return bytes(proto.SerializeToString())


@given(graphs(), st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_kept_is_float32_and_all_kept_is_the_graph_itself(graph: bytes, data: st.DataObject) -> None:
    before = onnx.load_from_string(graph).graph
    names = [one.name for one in before.node]
    rows = np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
    for precision, half in HALF.items():
        keep = data.draw(st.sets(st.sampled_from(names)))
        after, kinds = onnx.load_from_string(typed(graph, precision, keep)).graph, types_of(graph, precision, keep)  # type: ignore[arg-type]
        assert list(after.output) == list(before.output)
        made = {name for one in after.node if one.name in keep for name in one.output}
        assert half not in {kinds[name] for name in made}
        with np.errstate(all="ignore"):
            wanted, got = (exactly(one, rows) for one in (graph, typed(graph, precision, names)))  # type: ignore[arg-type]
        np.testing.assert_array_equal(wanted, got)


@pytest.mark.parametrize("name", list(awkward.MODELS))
def test_tensorrt_builds_what_is_awkward(name: str) -> None:
    exported, builder = export(awkward.MODELS[name]()), PlanBuilder(flavor("tensorrt_rtx"))
    profile = zoo.profile(exported.signature.inputs)
    for precision in ("fp16", "bf16"):
        graph = typed(exported.onnx, precision)  # type: ignore[arg-type]
        assert builder.build(graph, BuildSpec(precision, profile, 0), for_this_gpu=False)  # type: ignore[arg-type]


def test_opset() -> None:
    graph = chain([node("MatMul", "x w", "y")], {"w": EYE})
    assert [onnx.load_from_string(typed(graph, one)).opset_import[0].version for one in ("fp16", "bf16")] == [17, 22]
