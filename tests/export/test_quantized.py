"""Models that `model.quantize("int8")` has quantized become graphs with quantized weights."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import onnx
import pytest
from keras import layers
from onnx import TensorProto

from keras_trt import policies
from keras_trt.backends import BuildSpec
from keras_trt.backends.onnxruntime import OnnxRuntimeBackend
from keras_trt.backends.tensorrt.builder import PlanBuilder
from keras_trt.backends.tensorrt.flavor import flavor
from keras_trt.errors import ExportError
from keras_trt.export import export
from keras_trt.reference import reference

from .. import zoo

# Keras says the one of each layer without weights, and does the other with numpy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def dense() -> tuple[Any, Any]:
    x = keras.Input((6,))
    return x, layers.Dense(3)(layers.Dense(16, activation="relu")(x))


def wide_dense() -> tuple[Any, Any]:
    """Return what ONNX Runtime multiplies in blocks, of 8 bits where it may."""
    x = keras.Input((256,))
    return x, layers.Dense(8)(x)


def dense_of_sequences() -> tuple[Any, Any]:
    x = keras.Input((5, 6))
    return x, layers.Dense(3)(x)


def attention() -> tuple[Any, Any]:
    x = keras.Input((5, 8))
    return x, layers.MultiHeadAttention(2, 4)(x, x)


def einsum() -> tuple[Any, Any]:
    x = keras.Input((5, 6))
    return x, layers.EinsumDense("abc,cd->abd", output_shape=(None, 7), bias_axes="d")(x)


def embedding() -> tuple[Any, Any]:
    x = keras.Input((5,), dtype="int32")
    return x, layers.Dense(3)(layers.Flatten()(layers.Embedding(32, 4)(x)))


def reversible_embedding() -> tuple[Any, Any]:
    x = keras.Input((5,), dtype="int32")
    table = layers.ReversibleEmbedding(32, 4)
    return x, table(table(x), reverse=True)


BUILDS = [dense, wide_dense, dense_of_sequences, attention, einsum, embedding, reversible_embedding]


def run(onnx_: bytes, feeds: dict[str, Any]) -> Any:
    (engine,) = OnnxRuntimeBackend().load(onnx_)
    (answer,) = engine.run(feeds)
    return answer


@pytest.mark.parametrize("build", BUILDS)
def test_answers_as_keras_and_is_built(build: Any) -> None:
    model = keras.Model(*build())
    model.quantize("int8")
    result = export(model)
    (spec,) = result.signature.inputs
    (x,) = zoo.random_inputs([spec], 5, seed=3)
    got, wanted = run(result.onnx, {spec.name: x}), model.predict_on_batch(x)
    assert zoo.relative_l2(wanted, got) < 1e-5
    assert zoo.relative_l2(wanted, np.roll(wanted, 1, axis=0)) > 1e-2
    graph = onnx.load_from_string(result.onnx).graph
    found = Counter(node.op_type for node in graph.node)
    assert found["DequantizeLinear"] >= 1
    assert "MatMulInteger" not in found
    assert any(one.data_type == TensorProto.INT8 for one in graph.initializer), "the weights are not 8 bits any more"
    spec_ = BuildSpec("fp32", zoo.profile(result.signature.inputs), optimization_level=0)
    assert PlanBuilder(flavor("tensorrt_rtx")).build(result.onnx, spec_, for_this_gpu=False)


@pytest.fixture
def bfloat16() -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.usefixtures("bfloat16")
def test_stays_quantized_where_it_computes_in_half(build: Any) -> None:
    model = keras.Model(*build())
    model.quantize("int8")
    before = [layer._dtype_policy for layer in model._flatten_layers()]
    result = export(model)
    (spec,) = result.signature.inputs
    (x,) = zoo.random_inputs([spec], 5, seed=3)
    got, wanted = run(result.onnx, {spec.name: x}), model.predict_on_batch(x).astype("float32")
    assert zoo.relative_l2(wanted, got) < 3e-2
    (full,) = reference(model, result.signature, [x])
    assert zoo.relative_l2(full.astype("float32"), got) < 5e-3  # of the type that Keras gives
    after = [layer._dtype_policy for layer in model._flatten_layers()]
    assert all(map(operator.is_, before, after))


def test_a_layer_of_a_map_of_policies_stays_quantized() -> None:
    quantized = keras.dtype_policies.QuantizedDTypePolicy("int8", "mixed_bfloat16")
    by_path = keras.dtype_policies.DTypePolicyMap("mixed_bfloat16", {"some/dense": quantized})
    model = keras.Sequential([keras.Input((12,)), layers.Dense(16, dtype=by_path, name="dense")], name="some")
    (layer,) = model.layers
    assert (layer.quantization_mode, layer.compute_dtype) == ("int8", "bfloat16")
    with policies.in_float32(model):
        assert (layer.quantization_mode, layer.compute_dtype) == ("int8", "float32")
    assert layer.dtype_policy is by_path
    assert by_path["some/dense"] is quantized


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
