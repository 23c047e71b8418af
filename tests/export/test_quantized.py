"""Models that `model.quantize("int8")` has quantized become graphs with quantized weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers
from onnx import TensorProto

from keras_trt.backends import BuildSpec
from keras_trt.backends.tensorrt.builder import PlanBuilder
from keras_trt.backends.tensorrt.flavor import flavor
from keras_trt.errors import ExportError
from keras_trt.export import export

from .. import zoo

# Keras says the one of each layer without weights, and does the other with numpy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def dense() -> tuple[Any, Any]:
    x = keras.Input((6,))
    return x, layers.Dense(3)(layers.Dense(16, activation="relu")(x))


def dense_of_sequences() -> tuple[Any, Any]:
    x = keras.Input((5, 6))
    return x, layers.Dense(3)(x)


def attention() -> tuple[Any, Any]:
    x = keras.Input((5, 8))
    return x, layers.MultiHeadAttention(2, 4)(x, x)


def embedding() -> tuple[Any, Any]:
    x = keras.Input((5,), dtype="int32")
    return x, layers.Dense(3)(layers.Flatten()(layers.Embedding(32, 4)(x)))


@pytest.mark.parametrize("build", [dense, dense_of_sequences, attention, embedding])
def test_answers_as_keras_and_is_built(build: Any) -> None:
    model = keras.Model(*build())
    model.quantize("int8")
    result = export(model)
    (spec,) = result.signature.inputs
    (x,) = zoo.random_inputs([spec], 5, seed=3)
    session = onnxruntime.InferenceSession(result.onnx, providers=["CPUExecutionProvider"])
    (got,), wanted = session.run(None, {spec.name: x}), model.predict_on_batch(x)
    assert zoo.relative_l2(wanted, got) < 1e-5
    assert zoo.relative_l2(wanted, np.roll(wanted, 1, axis=0)) > 1e-2
    graph = onnx.load_from_string(result.onnx).graph
    found = Counter(node.op_type for node in graph.node)
    assert found["DequantizeLinear"] >= 1
    assert "MatMulInteger" not in found
    assert any(one.data_type == TensorProto.INT8 for one in graph.initializer), "the weights are not 8 bits any more"
    spec_ = BuildSpec("fp32", zoo.profile(result.signature.inputs), optimization_level=0)
    assert PlanBuilder(flavor("tensorrt_rtx")).build(result.onnx, spec_, for_this_gpu=False)


def test_a_recipe_of_a_quantized_model() -> None:
    model = keras.Model(*dense())
    model.quantize("int8")
    result = export(model)
    fresh = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load_from_string(result.onnx).graph.initializer}
    for name, array in result.recipe.run([np.asarray(one) for one in model.variables]).items():
        np.testing.assert_array_equal(array, fresh[name])


def test_other_ways_to_quantize_are_refused() -> None:
    model = keras.Model(*dense())
    model.quantize("int4")
    with pytest.raises(ExportError, match="int4"):
        export(model)
