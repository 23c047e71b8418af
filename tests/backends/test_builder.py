"""A real TensorRT parser and builder: TensorRT-RTX works on a machine without a GPU."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from keras_trt import cuda
from keras_trt.backends import BuildSpec, choose
from keras_trt.backends.onnxruntime import OnnxRuntimeBackend
from keras_trt.backends.tensorrt import types
from keras_trt.backends.tensorrt.builder import PlanBuilder
from keras_trt.backends.tensorrt.engine import TensorRTEngine
from keras_trt.backends.tensorrt.flavor import flavor
from keras_trt.building.provision import provision
from keras_trt.errors import (
    BuildError,
    EngineLoadError,
    MissingDependencyError,
    PrecisionError,
    UnsupportedOperatorError,
)
from keras_trt.export import export
from keras_trt.options import BuildOptions
from keras_trt.precision import tensor_types, typed
from keras_trt.specs import OptimizationProfile, ShapeRange

from .. import zoo

without_gpu = pytest.mark.skipif(cuda.device_count() > 0, reason="says what happens without a GPU")


@pytest.fixture(scope="module")
def builder() -> PlanBuilder:
    return PlanBuilder(flavor("tensorrt_rtx"))


@pytest.fixture(scope="module", params=list(zoo.ZOO))
def exported(request: pytest.FixtureRequest) -> Any:
    return export(zoo.make(request.param))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_every_model_builds(builder: PlanBuilder, exported: Any, precision: Any) -> None:
    graph = typed(exported.onnx, precision)
    assert builder.supports(graph) == []
    spec = BuildSpec(precision, zoo.profile(exported.signature.inputs), optimization_level=0)
    plan = builder.build(graph, spec, for_this_gpu=False)
    assert len(plan) > 1000
    kinds = tensor_types(graph)
    assert {"fp16": "float16", "bf16": "bfloat16"}.get(precision, "float32") in kinds.values()


def graph(operator: str, **attributes: Any) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    node = helper.make_node(operator, ["x"], ["y"], name="the_node", **attributes)
    proto = helper.make_model(
        helper.make_graph([node], "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


PROFILE = OptimizationProfile({"x": ShapeRange((1, 4), (2, 4), (4, 4))})


def test_a_refused_operator_is_named(builder: PlanBuilder) -> None:
    (finding,) = builder.supports(graph("Bernoulli"))
    assert (finding.node, finding.operator) == ("the_node", "Bernoulli")
    with pytest.raises(BuildError, match=r"Bernoulli \(node 'the_node'\)") as caught:
        builder.build(graph("Bernoulli"), BuildSpec("fp32", PROFILE), for_this_gpu=False)
    assert "Bernoulli" in caught.value.log
    assert isinstance(caught.value, UnsupportedOperatorError)
    assert caught.value.nodes == ("the_node",)


class ByTensorRT(OnnxRuntimeBackend):
    """Asks TensorRT-RTX whether it builds a graph, and gives it to ONNX Runtime."""

    def build(self, onnx: bytes, spec: BuildSpec, *_: Any, **__: Any) -> bytes:
        PlanBuilder(flavor("tensorrt_rtx")).build(onnx, spec, for_this_gpu=False)
        return onnx


def test_the_layer_of_a_refused_operator_is_named() -> None:
    x = keras.Input((4,))
    picked = keras.layers.Lambda(lambda x: x + keras.ops.cast(keras.ops.sum(keras.ops.nonzero(x)[1]), "float32"))
    model = keras.Model(x, keras.layers.Dense(2)(picked(keras.layers.Dense(4)(x))))
    picked_name = picked.name
    with pytest.raises(UnsupportedOperatorError, match="NonZero") as caught:
        provision(model, ByTensorRT(), BuildOptions(precision="fp32", verbose=0), None)
    assert caught.value.__notes__ == [f"These are nodes of the Keras layers '{picked_name}'."]


def test_bytes_that_are_no_graph(builder: PlanBuilder) -> None:
    with pytest.raises(BuildError):
        builder.build(b"not a graph", BuildSpec("fp32", PROFILE), for_this_gpu=False)


def test_a_profile_of_other_inputs(builder: PlanBuilder) -> None:
    other = OptimizationProfile({"z": ShapeRange((1, 4), (2, 4), (4, 4))})
    with pytest.raises(BuildError, match="does not name the inputs"):
        builder.build(graph("Relu"), BuildSpec("fp32", other), for_this_gpu=False)


def test_a_profile_that_the_graph_contradicts_is_an_error_with_the_log(builder: PlanBuilder) -> None:
    wrong = OptimizationProfile({"x": ShapeRange((1, 5), (2, 5), (4, 5))})
    with pytest.raises(BuildError) as caught:
        builder.build(graph("Relu"), BuildSpec("fp32", wrong), for_this_gpu=False)
    assert "x" in caught.value.log


def test_tf32_changes_the_plan(builder: PlanBuilder) -> None:
    exported = export(zoo.make("mlp"))
    plans = [
        builder.build(exported.onnx, BuildSpec(precision, zoo.profile(exported.signature.inputs)), for_this_gpu=False)
        for precision in ("fp32", "tf32")
    ]
    assert plans[0] != plans[1]


class TestProofOfTypes:
    def parsed(self, content: bytes) -> Any:
        trt = flavor("tensorrt_rtx").trt
        builder = trt.Builder(flavor("tensorrt_rtx").logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, flavor("tensorrt_rtx").logger)
        assert parser.parse(content)
        return builder, parser, network

    def test_passes_what_was_asked(self) -> None:
        half = typed(export(zoo.make("cnn")).onnx, "fp16")
        keep = self.parsed(half)
        types.prove_network_types(keep[-1], tensor_types(half))

    @pytest.mark.parametrize("wanted", ["float16", "bfloat16", "int8", "float8_e4m3fn"])
    def test_refuses_a_float32_network_where_less_was_asked(self, wanted: str) -> None:
        full = export(zoo.make("cnn")).onnx
        asked = {name: wanted if kind == "float32" else kind for name, kind in tensor_types(full).items()}
        keep = self.parsed(full)
        with pytest.raises(PrecisionError, match=f"{wanted} asked, float32 parsed"):
            types.prove_network_types(keep[-1], asked)

    def test_nothing_to_convert_is_no_error(self) -> None:
        numbers = numpy_helper.from_array(np.array([3], "int32"), "three")
        x = helper.make_tensor_value_info("x", TensorProto.INT32, ["batch", 4])
        y = helper.make_tensor_value_info("y", TensorProto.INT32, ["batch", 4])
        node = helper.make_node("Add", ["x", "three"], ["y"], name="add")
        proto = helper.make_model(
            helper.make_graph([node], "g", [x], [y], [numbers]),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
        half = typed(proto.SerializeToString(), "fp16")
        builder = PlanBuilder(flavor("tensorrt_rtx"))
        assert builder.build(half, BuildSpec("fp16", PROFILE), for_this_gpu=False)


@without_gpu
def test_loading_without_a_gpu_says_why(builder: PlanBuilder) -> None:
    plan = builder.build(graph("Relu"), BuildSpec("fp32", PROFILE), for_this_gpu=False)
    with pytest.raises(EngineLoadError, match="could not load the plan") as caught:
        TensorRTEngine(flavor("tensorrt_rtx"), plan, 0)
    assert "CUDA driver" in caught.value.log


class TestChoose:
    def test_missing_package_gives_the_pip_command(self) -> None:
        pytest.importorskip("keras_trt")
        try:
            import tensorrt  # noqa: F401
        except ImportError:
            with pytest.raises(MissingDependencyError, match=r"pip install 'keras-trt\[cu13\]'"):
                choose("tensorrt", [0])
        else:
            pytest.skip("TensorRT is installed here")

    @without_gpu
    def test_named_backend_without_a_gpu(self) -> None:
        with pytest.raises(EngineLoadError, match="needs a GPU"):
            choose("tensorrt_rtx", [0])

    @without_gpu
    def test_auto_ends_at_onnxruntime_and_says_why(self) -> None:
        backend, reasons = choose("auto", [0])
        assert backend.name == "onnxruntime"
        assert any("TensorRT-RTX" in reason and "needs a GPU" in reason for reason in reasons)


def test_errors_that_nobody_collects_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    one = flavor("tensorrt_rtx")
    with caplog.at_level("ERROR", "keras_trt.tensorrt"):
        one._receive(1, "lost and found")
        with one.log() as collected:
            one._receive(1, "goes into an exception")
    assert [record.message for record in caplog.records] == ["lost and found"]
    assert collected == ["goes into an exception"]


def test_logs_may_be_nested() -> None:
    one = flavor("tensorrt_rtx")
    with one.log() as outer:
        with one.log() as inner:
            one._receive(2, "inside")
        one._receive(2, "outside")
        with one.log() as empty:
            pass
        one._receive(2, "after")
    assert (outer, inner, empty) == (["inside", "outside", "after"], ["inside"], [])
    with one.log() as first, one.log() as second:  # both empty, and so equal
        pass
    assert first == second == []
    assert not one._sinks
