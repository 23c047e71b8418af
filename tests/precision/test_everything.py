"""All that Keras offers, in the types of lower precisions, is taken by TensorRT-RTX's parser."""

from __future__ import annotations

from typing import Any

import keras
import pytest

from keras_trt.backends.tensorrt.builder import PlanBuilder
from keras_trt.backends.tensorrt.flavor import flavor
from keras_trt.export import export
from keras_trt.precision import Quantization, even_thresholds, kinds, tensor_types, typed

from ..conformance.expected import NOT_YET, SECTIONS

CASES = [
    pytest.param(case, id=f"{section}.{case.name}")
    for section in ("keras.layers", "keras.activations", "keras.ops")
    for case in SECTIONS[section][1]
    if not case.long and case.name not in NOT_YET[section]
]


@pytest.fixture(scope="module")
def builder() -> PlanBuilder:
    return PlanBuilder(flavor("tensorrt_rtx"))


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_low_precisions_are_parsed(case: Any, builder: PlanBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    keras.utils.set_random_seed(0)
    exported = export(case.build())
    # As in the middle of a model, where what a node reads is in half precision already.
    monkeypatch.setattr(kinds, "_only_full_inputs", lambda *_: False)
    quantization = Quantization("fp16", even_thresholds(exported.onnx))
    for precision in ("fp16", "bf16", "int8", "fp8"):
        graph = typed(exported.onnx, precision, (), quantization)  # type: ignore[arg-type]
        assert builder.supports(graph) == [], precision
        assert tensor_types(graph)
