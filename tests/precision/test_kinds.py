"""Which constants half precision can hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from keras_trt.precision import kinds

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# Of all sizes that float32 has, and around the ends of float16's range.
numbers = st.one_of(
    st.floats(width=32),
    st.floats(-(2.0**-13), 2.0**-13, width=32),
    st.floats(6e4, 7e4, width=32),
    st.sampled_from([2.0**-24, 2.0**-14]),
)


@given(arrays(np.float32, array_shapes(max_dims=2, max_side=6), elements=numbers), st.sampled_from(HALVES))
def test_the_short_look_agrees_with_the_long_one(array: Any, low: Any) -> None:
    quick = kinds._surely_fits
    answer = kinds._fits(array, low)
    try:
        kinds._surely_fits = lambda *_: False
        assert answer == kinds._fits(array, low)
    finally:
        kinds._surely_fits = quick


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ([0.1, -3.0], True),
        ([1.0, 1e-7], True),  # what is lost is small beside the rest
        ([1e-7, -1e-8], False),
        ([1.0, -1e9], False),
        ([1.0, -np.inf], True),
        ([65504.0, 65505.0], True),
        ([0.0, 0.0], True),
    ],
)
def test_what_float16_holds(values: list[float], fits: bool) -> None:
    assert kinds._fits(np.array(values, np.float32), ir.DataType.FLOAT16) == fits
