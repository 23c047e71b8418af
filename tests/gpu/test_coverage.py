"""Twenty of the conformance cases on a real engine: recurrent layers, attention, a small BERT, whole architectures."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_trt
from keras_trt.backends.tensorrt.flavor import flavor
from keras_trt.errors import BuildError, PrecisionError
from keras_trt.export import export
from keras_trt.specs import flatten, pack
from keras_trt.verification.verify import LIMITS

from ..conformance.case import Case, draw, functional, randomize, settle
from ..conformance.expected import SECTIONS
from . import models

pytestmark = pytest.mark.gpu

NAMES = (
    "LSTM", "GRU", "SimpleRNN", "LSTM: sequences", "GRU: backwards", "LSTM: state", "GRU: reset before",
    "Bidirectional", "Masking: LSTM", "Masking: GRU", "StackedRNNCells", "Conv2D: grouped", "MultiHeadAttention",
    "MultiHeadAttention: causal", "LayerNormalization", "MelSpectrogram", "gelu", "EfficientNetB0", "ConvNeXtTiny",
)  # fmt: skip


def bert(ids: Any) -> Any:
    """Two blocks of BERT: learned positions, attention, exact GELU, normalization behind each sum."""
    x = layers.Embedding(50, 32)(ids) + layers.Embedding(12, 32)(keras.ops.arange(12))
    x = layers.LayerNormalization(epsilon=1e-12)(x)
    for _ in range(2):
        x = layers.LayerNormalization(epsilon=1e-12)(x + layers.MultiHeadAttention(4, 8)(x, x))
        wide = layers.Dense(64, activation=lambda y: keras.activations.gelu(y, approximate=False))(x)
        x = layers.LayerNormalization(epsilon=1e-12)(x + layers.Dense(32)(wide))
    return layers.Dense(5)(x[:, 0])


def masked(make: Any) -> Any:
    """A layer on words of which a third are padding."""

    def call(ids: Any) -> Any:
        return make()(layers.Embedding(3, 8, mask_zero=True)(ids))

    return call


#: Masks as models have them; where `Masking` meets what the conformance case computes, see `test_agrees_with_keras`.
MASKED = {
    "masked: LSTM": lambda: layers.LSTM(16),
    "masked: GRU": lambda: layers.GRU(16, return_sequences=True),
    "masked: Bidirectional": lambda: layers.Bidirectional(layers.LSTM(16)),
}


def cases() -> dict[str, Case]:
    made = {name: functional(name, [(12,)], masked(make), dtype="int32", high=3) for name, make in MASKED.items()}
    known = {case.name: case for _, found in SECTIONS.values() for case in found}
    return (
        {name: known[name] for name in NAMES}
        | made
        | {"BERT": functional("BERT", [(12,)], bert, dtype="int32", high=50)}
    )


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
@pytest.mark.parametrize("case", cases().values(), ids=lambda case: case.name)
def test_agrees_with_keras(case: Case, precision: str) -> None:
    if (case.name, precision) == ("Conv2D: grouped", "fp16") and not flavor("tensorrt").strongly_typed:
        # 8.6 has this convolution in float32 alone; as a layer among others it would not hinder fp16.
        with pytest.raises(PrecisionError, match="none of the 1 layers"):
            compare(case, backend="tensorrt", precision=precision)
        with pytest.warns(keras_trt.FallbackWarning, match="fp16"):
            compare(case, backend="tensorrt", precision=None, runs="tf32")
    elif case.name.startswith("Masking") and precision == "tf32" and not flavor("tensorrt").strongly_typed:
        # Where the data's own comparison (`silenced`) stands in front of the mask, 8.6 writes a kernel that does not
        # compile for some sizes ("NVRTC Compilation failure"); in fp16 it does. Masks alone compile: `MASKED`.
        with pytest.raises(BuildError, match="Could not find any implementation"):
            compare(case, backend="tensorrt", precision="tf32")
    else:
        compare(case, backend="tensorrt", precision=precision)


def compare(case: Case, *, backend: str, precision: Any, runs: Any = None) -> float:
    """Compare with Keras; without a precision, what runs in another than fp16 is said by a warning."""
    keras.utils.set_random_seed(7)
    model, generator = case.build(), np.random.default_rng(7)
    randomize(model, generator)
    if case.deep:
        settle(case, model, generator)
    signature = export(model).signature
    sample = pack(signature.input_structure, draw(case, signature.inputs, 8, generator))
    with warnings.catch_warnings():
        warnings.simplefilter("always" if runs else "error", keras_trt.FallbackWarning)
        fast = keras_trt.accelerate(
            model, backend=backend, precision=precision, sample=sample, batch_sizes=(1, 4, 8), optimization_level=0,
            cache=None, fallback="keras" if runs else "raise", verbose=0,
        )  # fmt: skip
    worst = 0.0
    with fast:
        assert fast.precision == (runs or precision)
        for rows in (1, 5, 11):
            x = pack(signature.input_structure, draw(case, signature.inputs, rows, np.random.default_rng(rows)))
            wanted, got = flatten(model.predict(x, verbose=0)), flatten(fast.predict(x, verbose=0))
            for one, two in zip(wanted, got, strict=True):
                worst = max(worst, models.relative(np.asarray(two), np.asarray(one)))
    assert worst < LIMITS[runs or precision]
    return worst
