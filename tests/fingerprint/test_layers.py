"""The structure key over all layers of the conformance suite: it is of the model, not of what was done with it."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf

from keras_trt.fingerprint import structure_key

from ..conformance.expected import SECTIONS

#: A `TFSMLayer` has no key: what it runs is not in its configuration.
CASES = {
    case.name: case for _, found in SECTIONS.values() for case in found if not case.deep and case.name != "TFSMLayer"
}


@pytest.mark.parametrize("name", CASES)
def test_a_call_changes_no_key(name: str) -> None:
    model = CASES[name].build()
    before = structure_key(model)
    inputs: list[Any] = []
    for tensor in model.inputs:
        shape = [2 if axis == 0 else size or 4 for axis, size in enumerate(tensor.shape)]
        inputs.append(tf.fill(shape, "") if tensor.dtype == "string" else tf.zeros(shape, tensor.dtype))
    for training in (False, True):
        model(inputs[0] if len(inputs) == 1 else inputs, training=training)
    assert structure_key(model) == before
