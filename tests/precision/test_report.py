"""An engine by Keras layers: times, fusions, types, differences; and the page of it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt.backends import EngineLayer
from keras_trt.backends.tensorrt.layers import described_layers
from keras_trt.cache import EngineCache
from keras_trt.report.html import page
from keras_trt.report.layers import layer_reports

from .. import zoo
from ..models import accelerate, keras, kl
from .trained import digits, digits_model


def layers(**options: Any) -> dict[str, Any]:
    with accelerate(digits_model(), **options) as fast:
        return {one.layer: one for one in fast.report().layers}


def test_every_layer_that_computes_is_there_with_what_it_is_fused_with() -> None:
    found = layers(precision="fp32")
    names = [layer.name for layer in digits_model().layers]
    computing = [name for name in names if not name.startswith(("input", "batch_normalization"))]
    assert set(found) - {""} == set(computing), "batch normalization is in the convolutions"
    assert sum(one.share for one in found.values()) == pytest.approx(1)
    convolution = found["conv2d"] if "conv2d" in found else found[computing[0]]
    assert convolution.kind == "Conv2D"
    assert convolution.microseconds > 0
    (activation,) = convolution.fused_with
    assert found[activation].kind == "ReLU"
    assert activation in [one.layer for one in found.values() if convolution.layer in one.fused_with]
    assert all(one.relative_error == 0 for one in found.values() if one.layer)
    assert convolution.types == ("float",)


def test_eight_bits_show_in_types_and_differences() -> None:
    found = layers(precision="int8", calibration_data=digits()[0][:64])
    errors = [one.relative_error for one in found.values() if one.relative_error is not None]
    assert len(errors) >= 10
    assert all(1e-3 < error < 0.1 for error in errors)
    assert "int8" in {kind for one in found.values() for kind in one.types}
    worst = max(found.values(), key=lambda one: one.relative_error or 0)
    assert worst.histogram is not None
    assert sum(worst.histogram.float32) >= sum(worst.histogram.typed) > 0
    assert worst.histogram.float32 != worst.histogram.typed


def test_half_precision_differs_a_little_more_from_layer_to_layer() -> None:
    errors = [one.relative_error for one in layers(precision="fp16").values() if one.relative_error is not None]
    assert all(1e-5 < error < 1e-2 for error in errors)


def test_a_warm_start_can_be_measured_too(cache: EngineCache) -> None:
    accelerate(digits_model(), cache=cache)
    fast = accelerate(digits_model(), cache=cache)
    assert fast.report().origin == "cache"
    assert {"conv2d", "dense"} <= {one.kind.lower() for one in fast.report().layers}


def test_a_model_that_has_changed_is_not_compared() -> None:
    model = zoo.make("mlp")
    fast = accelerate(model, precision="fp16")
    assert any(one.relative_error for one in fast.report().layers)
    model.layers[0].kernel.assign(model.layers[0].kernel * 2)
    assert all(one.relative_error is None for one in fast.report().layers)


@pytest.mark.parametrize("name", ["attention", "lstm", "two_inputs_two_outputs", "shared_and_nested", "subclassed"])
def test_models_of_all_kinds(name: str) -> None:
    model = zoo.make(name)
    with accelerate(model, precision="fp16") as fast:
        found = fast.report().layers
    assert sum(one.microseconds for one in found) > 0
    heavy = {type(layer).__name__ for layer in model._flatten_layers()} & {"Dense", "LSTM", "MultiHeadAttention"}
    assert heavy - {"Dense"} <= {one.kind for one in found} | {"EinsumDense"}
    assert "Dense" in {one.kind for one in found}


def test_without_an_engine_there_is_nothing_to_measure(tmp_path: Path) -> None:
    inputs = keras.Input((2,))
    model = keras.Model(inputs, kl.Dense(2)(inputs))
    fast = accelerate(model)
    fast.save(tmp_path / "model.ktrt")
    loaded = keras_trt.load(tmp_path / "model.ktrt", backend="onnxruntime")
    with pytest.raises(RuntimeError, match="layer by layer"):
        _ = loaded.report().layers
    fast.close()
    with pytest.raises(RuntimeError, match="closed"):
        _ = fast.report().layers


class Strict(HTMLParser):
    """Counts what opens and closes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert not {"src", "href"} & {name for name, _ in attrs}, "the file needs another one"
        self.seen.append(tag)
        if tag not in ("meta", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:  # noqa: ARG002
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_with_everything_in_it(tmp_path: Path) -> None:
    fast = accelerate(digits_model(), precision="int8", calibration_data=digits()[0][:64])
    fast.report().save(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    parser = Strict()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert parser.seen.count("svg") == 5, "times, differences, and the three worst histograms"
    assert "http" not in text
    for layer in fast.report().layers:
        assert layer.layer in text
    assert "relative difference" in text


def test_infinity_is_compared_and_drawn(tmp_path: Path) -> None:
    """Of masks, where it is in both graphs, and of numbers that float16 cannot hold, where it is in one."""
    inputs = keras.Input((6,))
    x = kl.Dense(8, name="first")(inputs)
    masked = kl.Lambda(lambda t: keras.ops.where(t > 0, t, -np.inf), name="masked")(x)
    large = kl.Dense(8, name="large")(kl.Rescaling(1e6)(x))
    outputs = [kl.Softmax(name="weights")(masked), kl.Dense(3, name="last")(kl.Rescaling(1e-6)(large))]
    with accelerate(keras.Model(inputs, outputs), precision="fp16", verify=False) as fast:
        found = {one.layer: one for one in fast.report().layers}
        fast.report().save(tmp_path / "report.html")
    assert found["large"].relative_error == np.inf
    for name in ("first", "masked", "weights", "last"):
        assert 0 < (found[name].relative_error or 0) < 1e-2, name
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "width='nan'" not in text
    assert "width='500.0'" in text
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


def test_names_cannot_break_the_page() -> None:
    inputs = keras.Input((2,))
    model = keras.Model(inputs, kl.Dense(2, name="a<b>&c")(inputs))
    pieces = [EngineLayer("<script>", ("model/a<b>&c_1/MatMul",), 1.0, ("float",))]
    text = page("<title>", ["<line>"], layer_reports(model, pieces, {}))
    for raw in ("<script>", "<line>", "a<b>"):
        assert raw not in text
    assert "a&lt;b&gt;&amp;c" in text


def test_what_tensorrts_inspector_says_of_fused_layers() -> None:
    """As TensorRT 8.6 and 10 write it; the separator of 8.6 is a control character."""
    written = {
        "Layers": [
            {
                "Name": "a/conv + PWN(a/relu)",
                "LayerType": "CaskConvolution",
                "Outputs": [{"Name": "t", "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
                "Metadata": "[ONNX Layer: a/conv]@[ONNX Layer: a/relu]",
            },
            {"Name": "b/gemm + PWN(b/tanh)", "Inputs": [{"Format": "Row major", "Datatype": "Half"}], "Outputs": []},
            "a layer of which only the name is known",
        ]
    }
    found = described_layers(json.dumps(written).replace("@", "\x1e"))
    assert found == {
        "a/conv + PWN(a/relu)": (("a/conv", "a/relu"), ("FP16",)),
        "b/gemm + PWN(b/tanh)": (("b/gemm", "b/tanh"), ("Half",)),
    }


def test_times_of_fused_pieces_are_counted_once() -> None:
    inputs = keras.Input((2,))
    model = keras.Model(inputs, kl.ReLU(name="relu")(kl.Dense(2, name="dense")(inputs)))
    pieces = [
        EngineLayer("p", ("m/dense_1/MatMul", "m/relu_1/Relu"), 3.0, ("Half",)),
        EngineLayer("copy", (), 1.0, ()),
    ]
    dense, relu, other = layer_reports(model, pieces, {})
    assert [one.microseconds for one in (dense, relu, other)] == [3.0, 0.0, 1.0]
    assert np.isclose(dense.share, 0.75)
    assert (dense.fused_with, relu.fused_with, other.layer) == (("relu",), ("dense",), "")
