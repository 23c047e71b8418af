"""Keras → ONNX: what comes out is right, and what cannot come out is refused by name."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from keras import layers

import keras_trt
from keras_trt.errors import ExportError, refuse
from keras_trt.export import SIGNATURE_METADATA, export
from keras_trt.export.check import invalid, layer_of
from keras_trt.export.convert import convert
from keras_trt.export.graph import optimize
from keras_trt.export.signature import input_signature
from keras_trt.export.trace import trace
from keras_trt.reference import reference
from keras_trt.specs import Signature, children, flatten, pack

from .. import zoo


@pytest.fixture(scope="module", params=list(zoo.ZOO))
def exported(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    model = zoo.make(request.param)
    return model, export(model)


def run(graph: bytes, inputs: dict[str, Any]) -> list[Any]:
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, inputs)


@pytest.mark.parametrize("rows", [1, 5])
def test_answers_as_keras(exported: tuple[Any, Any], rows: int) -> None:
    model, result = exported
    signature = result.signature
    inputs = zoo.random_inputs(signature.inputs, rows, seed=rows)
    wanted = model.predict_on_batch(pack(signature.input_structure, inputs))
    got = run(result.onnx, {spec.name: array for spec, array in zip(signature.inputs, inputs, strict=True)})
    assert keras.tree.map_structure(lambda _: 0, pack(signature.output_structure, got)) == keras.tree.map_structure(
        lambda _: 0, wanted
    )
    for spec, one, two in zip(signature.outputs, flatten(wanted), got, strict=True):
        assert one.dtype == two.dtype == spec.dtype
        assert zoo.relative_l2(one, two) < 1e-5


def test_graph_is_what_every_tensorrt_reads(exported: tuple[Any, Any]) -> None:
    _, result = exported
    proto = onnx.load_from_string(result.onnx)
    onnx.checker.check_model(proto, full_check=True)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 17)]
    assert proto.ir_version <= 8  # the newest that TensorRT 8.6 was made for
    assert [value.name for value in proto.graph.input] == [spec.name for spec in result.signature.inputs]
    assert [value.name for value in proto.graph.output] == [spec.name for spec in result.signature.outputs]
    assert all(value.type.tensor_type.shape.dim[0].dim_param for value in proto.graph.input), "the batch is not open"


def test_export_does_not_change_the_model() -> None:
    model = zoo.make("cnn")
    before = [weight.copy() for weight in model.get_weights()]
    export(model)
    assert all(np.array_equal(one, two) for one, two in zip(before, model.get_weights(), strict=True))


def test_names_and_nesting_are_kept() -> None:
    signature = export(zoo.make("two_inputs_two_outputs")).signature
    assert [(spec.name, spec.shape, spec.dtype) for spec in signature.inputs] == [
        ("image", (None, 8, 8, 1), "float32"),
        ("number", (None, 3), "float32"),
    ]
    assert signature.input_structure == {"dict": {"image": 0, "number": 1}}
    assert signature.output_structure == {"dict": {"class": 0, "score": 1}}


def test_output_of_an_inputs_name_and_an_input_as_output() -> None:
    x = keras.Input((3,), name="x")
    result = export(keras.Model(x, {"x": layers.Dense(2)(x), "same": x}))
    array = np.arange(6, dtype="float32").reshape(2, 3)
    names = [spec.name for spec in (*result.signature.inputs, *result.signature.outputs)]
    assert len(set(names)) == 3
    same = dict(children(result.signature.output_structure))["same"]
    np.testing.assert_array_equal(run(result.onnx, {"x": array})[same], array)


def test_equal_outputs_have_a_tensor_each() -> None:
    x = keras.Input((3,))
    y, constant = layers.Dense(2, bias_initializer="ones")(x), keras.Input((1,))
    result = export(keras.Model([x, constant], [y, y, constant, constant]))
    names = [value.name for value in onnx.load_from_string(result.onnx).graph.output]
    assert names == [spec.name for spec in result.signature.outputs]
    assert len(set(names)) == 4
    inputs = [np.ones((2, 3), "float32"), np.full((2, 1), 7, "float32")]
    feeds = {spec.name: array for spec, array in zip(result.signature.inputs, inputs, strict=True)}
    one, two, three, four = run(result.onnx, feeds)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(three, four)
    assert not np.array_equal(one[:, :1], three)


def test_subclassed_model_takes_types_from_the_sample() -> None:
    class Lookup(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.table = layers.Embedding(10, 4)

        def call(self, x: Any) -> Any:
            return self.table(x["ids"]) * x["scale"]

    sample = {"ids": np.array([[1, 2]], "int64"), "scale": np.ones((1, 2, 1))}
    model = Lookup()
    model(sample)
    signature = export(model, sample).signature
    assert [(spec.name, spec.shape, spec.dtype) for spec in signature.inputs] == [
        ("ids", (None, 2), "int64"),
        ("scale", (None, 2, 1), "float32"),
    ]


def test_fixed_batch_stays_fixed() -> None:
    model = keras.Sequential([keras.Input(batch_shape=(4, 3)), layers.Dense(2)])
    assert export(model).signature.inputs[0].shape == (4, 3)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_policies_are_exported_as_float32_and_left_as_they_were(policy: str) -> None:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, activation="relu", dtype=policy),
            layers.UpSampling2D(interpolation="bilinear", dtype=policy),  # tf2onnx makes an invalid graph of it in half
            layers.Reshape((12, 48), dtype=policy),
            layers.LSTM(5, dtype=policy),
            layers.Dense(3, dtype=policy),
        ]
    )
    before = [layer.dtype_policy for layer in model.layers]
    result = export(model)
    assert [layer.dtype_policy for layer in model.layers] == before
    x = np.random.default_rng(0).standard_normal((6, 8, 8, 3)).astype("float32")
    wanted = model.predict_on_batch(x)
    (spec,) = result.signature.outputs
    assert spec.dtype == wanted.dtype.name == policy.removeprefix("mixed_")
    (got,) = run(result.onnx, {result.signature.inputs[0].name: x})
    assert got.dtype == np.float32
    difference = zoo.relative_l2(wanted, got.astype(spec.dtype))
    assert difference < (3e-3 if policy == "mixed_float16" else 3e-2)
    (full,) = reference(model, result.signature, [x])
    assert zoo.relative_l2(full, got.astype(spec.dtype)) < difference / 3, "the reference computes in half"


def test_layers_with_a_policy_of_integers_are_exported() -> None:
    tokens = keras.Input((2, 3), dtype="int32")
    flat = layers.Flatten(dtype="int32")
    model = keras.Model(tokens, layers.Embedding(9, 4)(flat(tokens)))
    assert flat.dtype_policy.compute_dtype == "int32"
    rows = np.random.default_rng(0).integers(0, 9, (5, 2, 3)).astype("int32")
    result = export(model)
    (got,) = run(result.onnx, {result.signature.inputs[0].name: rows})
    assert zoo.relative_l2(model.predict_on_batch(rows), got) < 1e-6


class TestRefusals:
    """Each is an `ExportError` that names the layer; never a file."""

    @pytest.mark.parametrize(
        ("given", "refused", "word"),
        [
            (lambda: keras.Input((4,)), lambda: layers.Dense(3, dtype="float16", name="guilty"), "float16"),
            (lambda: keras.Input((4,)), lambda: layers.Dense(3, dtype="float64", name="guilty"), "float64"),
            (lambda: keras.Input((4,), sparse=True, name="guilty"), lambda: layers.Dense(3), "sparse"),
            (
                lambda: keras.Input((), dtype="string", name="guilty"),
                lambda: layers.StringLookup(vocabulary=["a"]),
                "string",
            ),
            (lambda: keras.Input((8,)), lambda: layers.Lambda(lambda x: keras.ops.erfinv(x), name="guilty"), "Erfinv"),
        ],
        ids=["float16", "float64", "sparse", "string", "erfinv"],
    )
    def test_names_the_layer(self, given: Any, refused: Any, word: str, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        with pytest.raises(ExportError, match=word) as caught:
            keras_trt.export_onnx(keras.Sequential([given(), refused()]), path)
        assert caught.value.layer is not None
        assert caught.value.layer.split("/")[-1] == "guilty"
        assert "guilty" in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    def test_an_input_that_the_model_does_not_have(self) -> None:
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="guilty")], name="whole")
        takes = input_signature(model)
        proto, log = convert(trace(model, takes.input_structure, takes.inputs))
        proto = optimize(proto, model.get_weights()).proto
        refuse(invalid(proto, model, 1, log))
        proto.graph.input.add().CopyFrom(proto.graph.input[0])
        proto.graph.input[1].name = "whole_1/guilty_1/Sub/y:0"
        with pytest.raises(ExportError, match="constant of layer 'guilty' became an input"):
            refuse(invalid(proto, model, 1, log))

    def test_unbuilt(self) -> None:
        with pytest.raises(ExportError, match="has not been built"):
            export(keras.Sequential([layers.Dense(2)]))

    def test_model_that_fails_when_traced(self) -> None:
        class Breaks(keras.Model):
            def call(self, x: Any) -> Any:
                return x if float(x[0, 0]) > 0 else -x  # wants a value, which a trace has not

        model = Breaks()
        model.build((None, 3))
        model(np.zeros((2, 3)))
        with pytest.raises(ExportError, match="could not be traced"):
            export(model)

    def test_several_call_arguments(self) -> None:
        class Two(keras.Model):
            def call(self, a: Any, b: Any) -> Any:
                return a + b

        model = Two()
        model(np.zeros((2, 3)), np.zeros((2, 3)))
        with pytest.raises(ExportError, match="'b'"):
            export(model)


def test_layer_of_takes_scopes_apart() -> None:
    inner = keras.Sequential([layers.Dense(2, name="dense"), layers.Dense(2, name="dense_1")], name="head")
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, name="dense_1"), inner], name="whole")
    assert layer_of(model, "whole_1/dense_1_2/MatMul") == "dense_1"
    assert layer_of(model, "whole_1/head_1/dense_1/MatMul") == "head/dense"
    assert layer_of(model, "whole_1/head_1/dense_1_2/BiasAdd") == "head/dense_1"
    assert layer_of(model, "whole_1/mul") is None


def test_export_onnx_writes_a_file_with_its_signature(tmp_path: Path) -> None:
    model = zoo.make("two_inputs_two_outputs")
    path = tmp_path / "model.onnx"
    path.write_bytes(b"older")
    keras_trt.export_onnx(model, path)
    proto = onnx.load(path)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert Signature.from_json(json.loads(metadata[SIGNATURE_METADATA])) == export(model).signature
    assert [child.name for child in tmp_path.iterdir()] == ["model.onnx"], "a temporary file is left"


def test_one_model_gives_one_graph_to_the_bit() -> None:
    model = zoo.make("attention")
    first = export(model)
    export(zoo.make("cnn"))
    assert export(model).onnx == first.onnx


def test_a_function_inside_a_model_is_left_as_it_was() -> None:
    class Compiled(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.inner = layers.LayerNormalization()

        def build(self, shape: Any) -> None:
            self.inner.build(shape)
            self.built = True

        @tf.function
        def call(self, x: Any) -> Any:
            return self.inner(x)

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    x = keras.Input((3,))
    model = keras.Model(x, layers.Dense(2)(Compiled()(x)))
    rows = np.random.default_rng(0).standard_normal((5, 3)).astype("float32")
    for _ in range(2):
        result = export(model)
        (got,) = run(result.onnx, {result.signature.inputs[0].name: rows})
        assert zoo.relative_l2(model.predict_on_batch(rows), got) < 1e-5
        assert zoo.relative_l2(np.asarray(model(rows)), got) < 1e-5


def test_a_tf_function_with_control_flow() -> None:
    class Branch(layers.Layer):
        @tf.function
        def call(self, x: Any) -> Any:
            total = tf.reduce_sum(x)
            if total > 0:
                return x * 2.0
            return x - 1.0

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    x = keras.Input((3,))
    model = keras.Model(x, Branch()(x))
    result = export(model)
    rows = np.abs(np.random.default_rng(0).standard_normal((5, 3)).astype("float32"))
    for given in (rows, -rows):
        (got,) = run(result.onnx, {result.signature.inputs[0].name: given})
        assert zoo.relative_l2(model.predict_on_batch(given), got) < 1e-6


def test_other_threads_use_the_model_while_it_is_exported() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 3)).astype("float32")
    norm, compiled = layers.LayerNormalization(), tf.function(lambda x: x * 2.0)
    expected, got = np.asarray(norm(rows)), {}

    class Meanwhile(layers.Layer):
        def call(self, x: Any) -> Any:
            def other() -> None:
                got["layer"] = np.asarray(norm(rows))
                got["function"] = np.asarray(compiled(rows))
                got["dataset"] = [int(i) for i in tf.data.Dataset.range(3).map(lambda i: i * 2)]

            if not tf.executing_eagerly() and not got:
                thread = threading.Thread(target=other)
                thread.start()
                thread.join()
            return x

    x = keras.Input((3,))
    model = keras.Model(x, Meanwhile()(norm(x)))
    got.clear()
    export(model)
    assert np.array_equal(got["layer"], expected)
    assert np.array_equal(got["function"], rows * 2)
    assert got["dataset"] == [0, 2, 4]


def test_a_driver_without_cuda_libraries_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow's wheel brings no CUDA libraries; where there is a driver, its call for the host's GPUs then fails."""
    from tensorflow.python.grappler import _pywrap_tf_cluster, cluster

    def fails(*_: Any) -> Any:
        raise RuntimeError("Bad StatusOr access: INTERNAL: CUDA Runtime error: : Error loading CUDA libraries.")

    model = keras.Sequential([keras.Input((3,)), layers.Normalization(mean=[1.0, 2, 3], variance=[4.0, 5, 6])])
    usual = export(model).onnx
    monkeypatch.setattr(_pywrap_tf_cluster, "TF_NewCluster", fails)
    with pytest.raises(RuntimeError, match="CUDA libraries"):
        cluster.Cluster()
    assert export(model).onnx == usual
    with pytest.raises(RuntimeError, match="CUDA libraries"):  # and what others ask of TensorFlow is as it was
        cluster.Cluster()
