"""Models that take strings or look values up and cannot be cut: the error names the layer, and Keras runs them."""

from __future__ import annotations

from typing import Any

import pytest

from keras_trt.errors import ExportError

from .head_models import WORDS, embedding, words
from .models import accelerate, keras, kl, ops, recorded, same, tf, warns_once


class InAClass(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.lookup, self.table, self.out = kl.StringLookup(vocabulary=WORDS), embedding(8), kl.Dense(2)

    def call(self, x: Any) -> Any:
        return self.out(self.table(self.lookup(x)))


def in_a_class() -> Any:
    model = InAClass()
    model(tf.constant([["alpha"]]))
    return model


def with_weights() -> Any:
    inputs = keras.Input((1,), dtype="string")
    return keras.Model(inputs, kl.Dense(2)(InAClass()(inputs)))


def behind_a_network() -> Any:
    inputs = keras.Input((4,))
    labels = kl.StringLookup(vocabulary=WORDS, invert=True, name="labels")
    return keras.Model(inputs, labels(ops.argmax(kl.Dense(3, name="scores")(inputs), -1)))


def behind_a_network_and_inside() -> Any:
    number = keras.Input((1,), dtype="int64")
    lookup = kl.IntegerLookup(vocabulary=[1, 2], name="lookup")
    inner = keras.Model(number, kl.Flatten()(embedding(3)(lookup(number))), name="inner")
    inputs = keras.Input((4,))
    scores = kl.Dense(3, name="scores")(inputs)
    return keras.Model(inputs, inner(ops.cast(ops.argmax(scores, -1, keepdims=True), "int64")))


def of_strings() -> Any:
    inputs = keras.Input((1,), dtype="string", name="text")
    return keras.Model(inputs, [inputs, embedding(8)(kl.StringLookup(vocabulary=WORDS)(inputs))])


def nothing_else() -> Any:
    inputs = keras.Input((1,), dtype="string")
    return keras.Model(inputs, kl.StringLookup(vocabulary=WORDS, name="lookup")(inputs))


def ragged() -> Any:
    inputs = keras.Input((), dtype="string")
    tokens = kl.TextVectorization(vocabulary=WORDS, ragged=True, name="tokens")(inputs)
    return keras.Model(inputs, kl.Lambda(lambda x: x * 2, output_shape=(None,))(tokens))


def sparse() -> Any:
    inputs = keras.Input((1,), dtype="string")
    lookup = kl.StringLookup(vocabulary=WORDS, output_mode="multi_hot", sparse=True, name="lookup")
    return keras.Model(inputs, kl.Dense(2)(lookup(inputs)))


class Masking(kl.Layer):
    """Looks words up, and says by a mask which of them it has met."""

    def __init__(self) -> None:
        super().__init__(name="masking")
        self.lookup, self.supports_masking = kl.StringLookup(vocabulary=WORDS), True

    def call(self, x: Any) -> Any:
        return self.lookup(x)

    def compute_mask(self, x: Any, _: Any = None) -> Any:
        return ops.not_equal(self.lookup(x), 0)

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, "int64")


def masked() -> Any:
    inputs = keras.Input((4,), dtype="string")
    return keras.Model(inputs, kl.Activation("linear")(Masking()(inputs)))


@pytest.mark.parametrize(
    ("build", "layer", "said"),
    [
        (masked, None, "a mask"),
        (in_a_class, "string_lookup", "Make a Functional model"),
        (with_weights, "in_a_class", "Make two layers of it"),
        (behind_a_network, "labels", "behind 'scores'"),
        (behind_a_network_and_inside, "inner/lookup", "behind 'scores'"),
        (of_strings, "text", "Make a model without this output"),
        (nothing_else, None, "left for an engine"),
        (ragged, "tokens", "ragged=False"),
        (sparse, "lookup", "sparse=False"),
    ],
)
def test_what_cannot_be_cut_names_the_layer(build: Any, layer: str | None, said: str) -> None:
    with pytest.raises(ExportError) as caught:
        accelerate(build(), fallback="raise")
    assert said in str(caught.value)
    if layer is not None:
        assert layer in str(caught.value.layer)
        assert layer in str(caught.value)


def test_what_cannot_be_cut_is_run_by_keras_with_one_warning() -> None:
    model = in_a_class()
    with recorded() as records:
        fast = accelerate(model)
    warns_once(records, "Keras runs", "string_lookup")
    x = tf.constant(words(5))
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))
