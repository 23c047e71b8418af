"""Recurrent layers as one ONNX operator: the same answers as Keras, for every option that the operator has."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from keras import layers

from keras_trt.export import export

from .. import zoo

KINDS = ("LSTM", "GRU", "SimpleRNN")
OPERATORS = {"LSTM": "LSTM", "GRU": "GRU", "SimpleRNN": "RNN"}


def answers(model: keras.Model, *inputs: Any) -> tuple[list[Any], list[Any], Counter[str]]:
    """Return Keras's answers, the exported graph's, and the operators of the graph."""
    result = export(model)
    names = [spec.name for spec in result.signature.inputs]
    session = onnxruntime.InferenceSession(result.onnx, providers=["CPUExecutionProvider"])
    got = session.run(None, dict(zip(names, inputs, strict=True)))
    wanted = keras.tree.flatten(model.predict_on_batch(list(inputs) if len(inputs) > 1 else inputs[0]))
    operators = Counter(node.op_type for node in onnx.load_from_string(result.onnx).graph.node)
    return wanted, got, operators


def assert_same(wanted: list[Any], got: list[Any]) -> None:
    for one, two in zip(wanted, got, strict=True):
        assert one.shape == two.shape
        assert zoo.relative_l2(one, two) < 1e-5
        assert zoo.relative_l2(one, np.roll(one, 1, axis=0)) > 1e-3  # else a comparison could not fail


def random(*shape: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("sequences", "state", "backwards"), list(itertools.product([False, True], repeat=3)))
def test_options(kind: str, sequences: bool, state: bool, backwards: bool) -> None:
    x = keras.Input((6, 3))
    layer = getattr(layers, kind)(4, return_sequences=sequences, return_state=state, go_backwards=backwards)
    wanted, got, operators = answers(zoo.lively(keras.Model(x, layer(x))), random(5, 6, 3))
    assert_same(wanted, got)
    assert operators[OPERATORS[kind]] == 1
    assert "Loop" not in operators


@pytest.mark.parametrize("kind", KINDS)
def test_an_initial_state_no_bias_and_other_activations(kind: str) -> None:
    x, units = keras.Input((6, 3)), 4
    states = [keras.Input((units,)) for _ in range(2 if kind == "LSTM" else 1)]
    options = {} if kind == "SimpleRNN" else {"recurrent_activation": "tanh"}
    layer = getattr(layers, kind)(units, use_bias=False, activation="softsign", return_state=True, **options)
    model = zoo.lively(keras.Model([x, *states], layer(x, initial_state=states)))
    given = [random(5, units, seed=7 + i) for i, _ in enumerate(states)]
    wanted, got, operators = answers(model, random(5, 6, 3), *given)
    assert_same(wanted, got)
    assert operators[OPERATORS[kind]] == 1


def test_gru_that_resets_before() -> None:
    x = keras.Input((6, 3))
    wanted, got, operators = answers(zoo.lively(keras.Model(x, layers.GRU(4, reset_after=False)(x))), random(5, 6, 3))
    assert_same(wanted, got)
    assert operators["GRU"] == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sequences", [False, True])
def test_bidirectional(kind: str, sequences: bool) -> None:
    x = keras.Input((6, 3))
    layer = layers.Bidirectional(getattr(layers, kind)(4, return_sequences=sequences))
    wanted, got, operators = answers(zoo.lively(keras.Model(x, layer(x))), random(5, 6, 3))
    assert_same(wanted, got)
    assert operators[OPERATORS[kind]] == 2


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_any_number_of_steps(steps: int) -> None:
    x = keras.Input((None, 3))
    both = layers.Bidirectional(layers.GRU(4, return_sequences=True))(x)
    wanted, got, _ = answers(zoo.lively(keras.Model(x, layers.LSTM(4)(both))), random(5, steps, 3))
    assert_same(wanted, got)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("wrapper", ["plain", "backwards", "bidirectional"])
def test_any_mask(kind: str, sequences: bool, wrapper: str) -> None:
    """Padded on the right, on the left, with holes, without a valid step: Keras keeps the state at masked steps."""
    ids = keras.Input((6,), dtype="int32")
    vectors = layers.Embedding(9, 3, mask_zero=True, embeddings_initializer="random_normal")(ids)
    layer = getattr(layers, kind)(4, return_sequences=sequences, go_backwards=wrapper == "backwards")
    layer = layers.Bidirectional(layer) if wrapper == "bidirectional" else layer
    given = np.array(
        [[1, 2, 3, 0, 0, 0], [0, 0, 4, 5, 6, 7], [8, 0, 1, 0, 0, 2], [0, 0, 0, 0, 0, 0], [3, 1, 4, 1, 5, 2]], "int32"
    )
    wanted, got, operators = answers(zoo.lively(keras.Model(ids, layer(vectors))), given)
    assert_same(wanted, got)
    assert operators[OPERATORS[kind]] == (2 if wrapper == "bidirectional" else 1)
    assert "Loop" not in operators


@pytest.mark.parametrize("sequences", [True, False])
def test_a_mask_that_zeroes_outputs(sequences: bool) -> None:
    x = keras.Input((6, 3))
    layer = layers.RNN(layers.LSTMCell(4), return_sequences=sequences, zero_output_for_mask=True)
    data = random(5, 6, 3)
    data[1, :2], data[2, 3:] = 0, 0
    wanted, got, operators = answers(zoo.lively(keras.Model(x, layer(layers.Masking()(x)))), data)
    assert_same(wanted, got)
    assert operators["LSTM"] == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("wrapper", ["backwards", "bidirectional"])
def test_a_mask_that_zeroes_outputs_of_unrolled_steps(kind: str, sequences: bool, wrapper: str) -> None:
    """There Keras does not reverse the mask that it zeroes a sequence with."""
    layer = getattr(layers, kind)(4, return_sequences=sequences, unroll=True, go_backwards=wrapper == "backwards")
    if wrapper == "bidirectional":
        layer = layers.Bidirectional(layer)
    else:
        layer.zero_output_for_mask = True
    x = keras.Input((6, 3))
    data = random(5, 6, 3)
    data[1, :2], data[2, 3:], data[3, 2], data[4] = 0, 0, 0, 0
    wanted, got, operators = answers(zoo.lively(keras.Model(x, layer(layers.Masking()(x)))), data)
    assert_same(wanted, got)
    kept = 1 if wrapper == "bidirectional" else 0
    assert operators[OPERATORS[kind]] == kept + (not sequences)


def test_padding_may_hold_anything() -> None:
    x, mask = keras.Input((6, 3)), keras.Input((6,), dtype="bool")
    data, valid = random(5, 6, 3), np.tile([True, True, True, True, False, False], (5, 1))
    data[:, 4:] = np.nan
    wanted, got, _ = answers(zoo.lively(keras.Model([x, mask], layers.LSTM(4)(x, mask=mask))), data, valid)
    assert_same(wanted, got)


class Other(layers.LSTMCell):
    """A cell of the user's own."""

    def call(self, inputs: Any, states: Any, training: bool = False) -> Any:
        output, states = super().call(inputs, states, training=training)
        return 2 * output, states


@pytest.mark.parametrize(
    "layer",
    [lambda: layers.LSTM(4, activation="selu"), lambda: layers.RNN(Other(4)), lambda: layers.RNN([layers.GRUCell(4)])],
    ids=["activation", "cell", "stack"],
)
def test_what_the_operator_does_not_do_stays_a_loop(layer: Any) -> None:
    x = keras.Input((6, 3))
    wanted, got, operators = answers(zoo.lively(keras.Model(x, layer()(x))), random(5, 6, 3))
    assert_same(wanted, got)
    assert operators["Loop"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_sequences_of_numbers(kind: str) -> None:
    x, mask = keras.Input((5, 3)), keras.Input((5,), dtype="int32")
    model = keras.Model([x, mask], getattr(layers, kind)(4)(x, mask=mask))
    valid = np.array([[1, 1, 0, 0, 0], [1, 0, 1, 1, 0], [1, 1, 1, 1, 1]], "int32")
    wanted, got, operators = answers(zoo.lively(model), random(3, 5, 3), valid)
    assert_same(wanted, got)
    assert operators[OPERATORS[kind]] == 1
    x = keras.Input((5, 3), dtype="int32")
    given = np.random.default_rng(2).integers(-2, 3, (3, 5, 3)).astype("int32")
    wanted, got, operators = answers(zoo.lively(keras.Model(x, getattr(layers, kind)(4)(x))), given)
    assert_same(wanted, got)
    assert operators["Loop"] == 1


@pytest.mark.parametrize("steps", [5, None])
def test_time_distributed_is_one_batch(steps: int | None) -> None:
    images, valid = keras.Input((steps, 8, 8, 3)), keras.Input((steps, 6), dtype="bool")
    block = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization()])
    model = zoo.lively(keras.Model(images, layers.TimeDistributed(block)(images)))
    for count in (5,) if steps else (2, 5):  # Keras takes as many open steps as there are rows, once it has seen two
        clone = keras.Model(images, model.outputs)
        wanted, got, operators = answers(clone, random(3, count, 8, 8, 3))
        assert_same(wanted, got)
        assert operators["Conv"] == 1
    words = keras.Input((steps, 6, 3))
    model = keras.Model([words, valid], layers.TimeDistributed(layers.GRU(4))(words, mask=valid))
    mask = np.random.default_rng(4).integers(0, 2, (3, 5, 6)).astype(bool)
    wanted, got, operators = answers(zoo.lively(model), random(3, 5, 6, 3), mask)
    assert_same(wanted, got)
    assert operators["GRU"] == 1


def test_a_layer_of_the_users_own_takes_one_step_at_a_time() -> None:
    class Centered(layers.Layer):
        def call(self, x: Any) -> Any:
            return x - keras.ops.mean(x, axis=0, keepdims=True)  # over the rows

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    x = keras.Input((5, 3))
    wanted, got, _ = answers(keras.Model(x, layers.TimeDistributed(Centered())(x)), random(3, 5, 3))
    assert_same(wanted, got)


class Own(layers.GRU):
    """A layer of the user's own, which is no operator."""


@pytest.mark.parametrize("layer", [lambda: layers.LSTM(4), lambda: Own(4)], ids=["stock", "own"])
def test_cudnns_operator_is_not_exported(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random(5, 6, 3)
    model = zoo.lively(keras.Model(x := keras.Input((6, 3)), layer()(x)))
    wanted = model.predict_on_batch(data)
    # What Keras asks TensorFlow before it takes cuDNN's; a graph with that can be written without a GPU, and not run.
    monkeypatch.setattr(sys.modules["keras.src.backend.tensorflow.rnn"], "_is_gpu_available", lambda: True)
    graph = tf.function(model, autograph=False).get_concrete_function(data).graph
    assert "CudnnRNNV3" in {one.type for one in graph.get_operations()}
    result = export(model)
    session = onnxruntime.InferenceSession(result.onnx, providers=["CPUExecutionProvider"])
    assert_same([wanted], session.run(None, {result.signature.inputs[0].name: data}))
