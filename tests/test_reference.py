"""What engines are compared with: the model's own answers, though a graph that is kept gives most of them."""

from __future__ import annotations

import gc
import sys
import weakref
from typing import Any

import numpy as np
import pytest

from keras_trt import policies
from keras_trt import reference as module
from keras_trt.cache import EngineCache
from keras_trt.export.signature import input_signature
from keras_trt.reference import Reference, reference
from keras_trt.specs import Signature, TensorSpec

from .models import accelerate, floats, keras, kl, other_weights, same, tf


class Adds(kl.Layer):
    """Adds an attribute of its class."""

    more = 0.0

    def call(self, x: Any) -> Any:
        return x + self.more


def network() -> Any:
    return keras.Sequential([keras.Input((4,)), kl.Dense(8, activation="tanh"), Adds(), kl.Dense(3)])


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Gets the model each time that Python runs one."""
    found: list[Any] = []
    real = module._call

    def call(model: Any, *rest: Any) -> Any:
        found.append(model)
        return real(model, *rest)

    monkeypatch.setattr(module, "_call", call)
    return found


def signature_of(model: Any) -> Signature:
    takes = input_signature(model, None)
    outputs = (TensorSpec("y", (None, *model.output_shape[1:]), "float32"),)
    return Signature(takes.inputs, outputs, takes.input_structure, 0)


def test_it_answers_as_the_model_and_follows_its_weights() -> None:
    model = network()
    signature, before = signature_of(model), None
    for _ in range(3):
        for answers in (Reference(model, "structure"), Reference(model)):
            for rows in (4, 1, 9):
                x = floats(4)(rows)
                same(reference(model, signature, [x])[0], answers(signature, [x])[0], 1e-6)
        answer = answers(signature, [x])[0]
        assert before is None or np.abs(answer - before).max() > 0.01
        before = answer
        other_weights(model)


def test_python_runs_a_model_once_for_each_reference_that_has_a_graph_whatever_its_weights_are(runs: list[Any]) -> None:
    model = network()
    signature = signature_of(model)

    def count(structure: str | None) -> int:
        runs.clear()
        answers = Reference(model, structure)
        for rows in (4, 8, 4, 1, 8):
            answers(signature, [floats(4)(rows)])
        other_weights(model)
        return len(runs)

    assert [count(one) for one in ("a", "a", "b", "b", None)] == [3, 1, 3, 1, 3]  # traced, and with one row


def test_a_refit_runs_the_model_once_in_python(cache: EngineCache, runs: list[Any]) -> None:
    model = network()
    accelerate(model, cache=cache)
    for _ in range(2):
        other_weights(model)
        runs.clear()
        fast = accelerate(model, cache=cache)
        assert fast.report().origin == "refitted"
        assert len(runs) == 1
        same(model.predict(floats(4)(9), verbose=0), fast.predict(floats(4)(9), verbose=0))


def test_a_change_that_no_hash_shows_is_seen() -> None:
    model, x = network(), floats(4)(6)
    signature = signature_of(model)
    Reference(model, "structure")(signature, [x])
    model.layers[1].more = 3.0
    expected = model.predict(x, verbose=0)
    same(expected, Reference(model, "structure")(signature, [x])[0])


def test_other_variables_of_the_same_structure_are_read() -> None:
    model, x = network(), floats(4)(6)
    signature = signature_of(model)
    Reference(model, "structure")(signature, [x])
    kernel = model.layers[0].kernel
    kernel._value = tf.Variable(kernel.numpy() * 0 + 0.5)
    same(np.asarray(model(x)), Reference(model, "structure")(signature, [x])[0])


class Eager(kl.Layer):
    """Acts otherwise in a graph than where it is called."""

    def call(self, x: Any) -> Any:
        return x * 2 if tf.executing_eagerly() else x


class One(kl.Layer):
    """Acts otherwise on a single row, which a graph of any number of rows does not know."""

    def call(self, x: Any) -> Any:
        return x * 2 if x.shape[0] == 1 else x


class Many(kl.Layer):
    """Gives one row where it does not know how many there are."""

    def call(self, x: Any) -> Any:
        return x[: x.shape[0] or 1] * 2


@pytest.mark.parametrize("layer", [Eager, One, Many])
def test_a_graph_that_answers_otherwise_is_not_used(layer: Any) -> None:
    model = keras.Sequential([keras.Input((4,)), layer(), kl.Dense(3)])
    signature = signature_of(model)
    for structure in (None, "structure", "structure"):
        answers = Reference(model, structure)
        for rows in (5, 1):
            same(np.asarray(model(floats(4)(rows))), answers(signature, [floats(4)(rows)])[0])


def test_a_graph_that_does_not_know_how_many_rows_there_are_is_not_used_where_graphs_are_right() -> None:
    model, x = keras.Sequential([keras.Input((4,)), kl.Rescaling(2.0), Many()]), floats(4)(6)
    for _ in range(2):
        same(x * 4, Reference(model, "structure")(signature_of(model), [x])[0])


def test_a_change_that_shows_in_several_rows_only_is_seen() -> None:
    class Moved(kl.Layer):
        by = 0

        def call(self, x: Any) -> Any:
            return keras.ops.roll(x, self.by, axis=0)

    model, x = keras.Sequential([keras.Input((4,)), Moved()]), floats(4)(6)
    for by in (0, 1):
        model.layers[0].by = by
        same(np.roll(x, by, axis=0), Reference(model, "structure")(signature_of(model), [x])[0])


def test_a_model_whose_graph_is_right_follows_too() -> None:
    """`Rescaling` is one of the layers that are compared in a graph."""
    model, x = keras.Sequential([keras.Input((4,)), kl.Rescaling(2.0, 1.0), kl.Dense(3)]), floats(4)(6)
    signature = signature_of(model)
    for scale in (2.0, 2.0, 5.0):
        model.layers[0].scale = scale
        other_weights(model)
        same(x * scale @ model.layers[1].kernel.numpy() + model.layers[1](np.ones((1, 4))).numpy(),
             Reference(model, "structure")(signature, [x])[0])  # fmt: skip


def test_a_row_that_the_model_does_not_take_alone_is_no_failure() -> None:
    inputs = keras.Input((4,))
    pairs = kl.Lambda(lambda x: keras.ops.reshape(keras.ops.reshape(x, (-1, 2, 4)) * 2, (-1, 4)))
    model = keras.Model(inputs, pairs(inputs))
    answers, signature = Reference(model), signature_of(model)
    same(floats(4)(6) * 2, answers(signature, [floats(4)(6)])[0])
    with pytest.raises(tf.errors.InvalidArgumentError):
        answers(signature, [floats(4)(1)])


def test_what_is_kept_keeps_no_model() -> None:
    model = network()
    Reference(model, "structure")(signature_of(model), [floats(4)(6)])
    held = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert held() is None


def test_a_model_on_the_cpu_does_not_use_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would compute on the GPU, and in TF32."""
    model = keras.Sequential([keras.Input((6, 4)), kl.LSTM(3)])
    signature, x = signature_of(model), floats(6, 4)(5)
    expected = reference(model, signature, [x])[0]
    monkeypatch.setattr(sys.modules["keras.src.backend.tensorflow.rnn"], "_is_gpu_available", lambda: True)
    answers = Reference(model, "structure")
    same(expected, answers(signature, [x])[0], 1e-6)
    (graph,) = answers._graphs.values()
    assert graph is not None
    assert "CudnnRNNV3" not in {one.type for one in graph.graph.get_operations()}
    assert "inner_loop" not in vars(model.layers[0])


@pytest.mark.parametrize("on_the_cpu", [True, False])
def test_a_graph_that_is_there_asks_nothing_of_the_layers(on_the_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is Python for each layer and weight at each batch, from which a training beside it is kept."""
    entered, tf32, full_float32 = list[Any](), list[bool](), policies.full_float32

    def counted(model: Any) -> Any:
        entered.append(model)
        return full_float32(model)

    monkeypatch.setattr(policies, "full_float32", counted)
    monkeypatch.setattr(policies, "_is_on_the_cpu", lambda _: on_the_cpu)
    model = network()
    signature, answers = signature_of(model), Reference(model)
    answers(signature, [floats(4)(3)])
    assert entered == [model]
    ((form, graph),) = answers._graphs.items()

    def run(*tensors: Any) -> Any:
        tf32.append(tf.config.experimental.tensor_float_32_execution_enabled())
        return graph(*tensors)

    answers._graphs[form] = run
    for rows in (5, 1):
        same(np.asarray(model(floats(4)(rows))), answers(signature, [floats(4)(rows)])[0], 1e-6)
    assert entered == [model]
    assert tf32 == [on_the_cpu] * 2  # which has none
    assert tf.config.experimental.tensor_float_32_execution_enabled()
