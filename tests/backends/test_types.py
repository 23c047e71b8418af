"""The proof of half precision by the engine inspector's report: it passes what is proved and nothing else."""

from __future__ import annotations

import json
from typing import Any

import keras
import onnx
import pytest
from keras import layers

from keras_trt.backends.tensorrt.flavor import flavor
from keras_trt.backends.tensorrt.types import ordered, prove_engine_types
from keras_trt.errors import PrecisionError
from keras_trt.export import export
from keras_trt.precision import tensor_types, typed


def prove(report: str, *, obeyed: bool) -> None:
    prove_engine_types(report, "fp16", obeyed=obeyed)


FULL, HALF = "Row major linear FP32", "Channel major FP16 format where channel % 8 == 0"


def layer(kind: str, name: str, *formats: str) -> dict[str, Any]:
    """Return a layer as TensorRT 8.6 describes it under detailed verbosity."""
    tensors = [{"Name": f"t{i}", "Location": "Device", "Format/Datatype": one} for i, one in enumerate(formats)]
    return {"Name": name, "LayerType": kind, "Inputs": tensors[:1], "Outputs": tensors[1:], "Metadata": "[ONNX: FP16]"}


def report(*layers: Any) -> str:
    return json.dumps({"Layers": list(layers), "Bindings": ["x", "y"]})


def test_a_layer_that_computes_in_half_is_the_proof() -> None:
    prove(report(layer("Reformat", "in", FULL, HALF), layer("CaskConvolution", "conv", HALF, HALF)), obeyed=True)
    newer = {
        "Name": "gemm",
        "LayerType": "gemm",
        "Inputs": [{"Format": "Row major", "Datatype": "Half"}],
        "Outputs": [],
    }
    prove(report(newer), obeyed=False)


@pytest.mark.parametrize(
    "layers",
    [
        [layer("CaskConvolution", "conv", FULL, FULL)],
        [layer("Reformat", "Reformatting CopyNode", FULL, HALF), layer("CaskConvolution", "conv", FULL, FULL)],
        [layer("Cast", "cast", FULL, HALF), layer("gemm", "dense FP16 by name alone", FULL, FULL)],
        [layer("Reformat", "in", FULL, HALF)],
        [],
    ],
    ids=["full", "only-a-reformat-is-half", "only-a-cast-is-half", "nothing-computes", "empty"],
)
def test_what_proves_nothing_is_refused(layers: list[Any]) -> None:
    with pytest.raises(PrecisionError, match="none of the"):
        prove(report(*layers), obeyed=True)


def test_a_network_compiled_into_one_layer_counts_only_where_the_builder_had_to_obey() -> None:
    whole = report(layer("Reformat", "in", FULL, HALF), layer("Myelin", "{ForeignNode[a...z]}", FULL, FULL))
    prove(whole, obeyed=True)
    with pytest.raises(PrecisionError, match="is not known"):
        prove(whole, obeyed=False)


def test_what_is_told_may_all_lie_in_layers_that_show_nothing() -> None:
    """ConvNeXt's blocks: dense layers in half within Myelin's, depthwise convolutions that 8.6 keeps in float32."""
    opaque, wide = layer("Myelin", "{ForeignNode[a...z]}", FULL, FULL), layer("CaskConvolution", "depth", FULL, FULL)
    prove(report(opaque, wide), obeyed=True)
    with pytest.raises(PrecisionError, match="none of the 1 layers"):
        prove(report(opaque, wide), obeyed=False)


def test_eight_bits_are_proved_by_layers_in_eight_bits() -> None:
    eight = "Thirty-two wide channel vectorized row major Int8 format"
    prove_engine_types(report(layer("CaskConvolution", "conv", eight, eight)), "int8", obeyed=False)
    with pytest.raises(PrecisionError, match="int8 was asked for"):
        prove_engine_types(report(layer("CaskConvolution", "conv", HALF, HALF)), "int8", obeyed=False)


@pytest.mark.parametrize(("window", "multiplier", "free"), [((7, 7), 1, True), ((1, 7), 2, True), ((5, 5), 1, False)])
def test_wide_depthwise_convolutions_are_left_to_the_timing_of_the_builder(
    window: tuple[int, int], multiplier: int, free: bool
) -> None:
    x = keras.Input((9, 9, 4))
    y = layers.DepthwiseConv2D(window, depth_multiplier=multiplier, padding="same")(x)
    graph = typed(export(keras.Model(x, layers.Conv2D(3, 7)(layers.ReLU()(y)))).onnx, "fp16")
    types = tensor_types(graph)
    depthwise, dense = (one.output[0] for one in onnx.load_from_string(graph).graph.node if one.op_type == "Conv")
    assert (types[depthwise], types[dense]) == ("float16", "float16")
    assert ordered(types, graph) == {name: kind for name, kind in types.items() if name != depthwise or not free}
    kept = types | {depthwise: "float32"}
    assert ordered(kept, graph) == kept, "what must be float32 stays so"


def test_control_characters_in_the_report_are_read() -> None:
    raw = report(layer("CaskConvolution", "a@b", HALF, HALF)).replace("@", "\x1e")
    prove(raw, obeyed=True)


def test_a_report_that_is_no_json_proves_nothing() -> None:
    with pytest.raises(PrecisionError, match="cannot be read"):
        prove('{"Layers": [ -inf', obeyed=True)


def test_ctrl_c_inside_tensorrts_logger_is_raised_after_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    one = flavor("tensorrt_rtx")
    builder = one.trt.Builder(one.logger)
    network = builder.create_network(0)
    parser = one.trt.OnnxParser(network, one.logger)

    def interrupted(_severity: int, _message: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(one, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt), one.log():
            parser.parse(b"not a graph")
    with one.log() as collected:
        parser.parse(b"not a graph")
    assert collected, "the next call is not interrupted"
