"""Data → the flat arrays of a model, without a model: nesting, types, ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_trt.errors import InputError
from keras_trt.inputs import digest_of, is_arrays, standardize
from keras_trt.specs import Signature, TensorSpec, describe, pack

ONE = TensorSpec("image", (None, 4), "float32")
TWO = (TensorSpec("first", (None, 4), "float32"), TensorSpec("second", (None, 2), "int32"))
FIRST, SECOND = np.arange(12.0).reshape(3, 4), np.arange(6).reshape(3, 2)


def takes(*specs: TensorSpec, nesting: Any = 0) -> Signature:
    return Signature(specs, (), describe(nesting), {"tuple": []})


class Foreign:
    """An array of another library."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape = array.shape

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.array, dtype)


def equal(found: list[np.ndarray], *expected: np.ndarray) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert type(one) is np.ndarray
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (FIRST, True),
        ([FIRST, SECOND], True),
        ((FIRST, [SECOND]), True),
        ({"a": FIRST, "b": {"c": SECOND}}, True),
        (Foreign(FIRST), True),
        (np.float32(1), True),
        ([], False),
        ({}, False),
        ([FIRST, None], False),
        ([1.0, 2.0], False),
        ("text", False),
        (None, False),
        (3, False),
        ((x for x in [FIRST]), False),
    ],
)
def test_is_arrays(x: Any, expected: bool) -> None:
    assert is_arrays(x) is expected


@pytest.mark.parametrize("x", [FIRST, [FIRST], (FIRST,), {"image": FIRST}, Foreign(FIRST), FIRST[:, :, np.newaxis]])
@pytest.mark.parametrize("nesting", [0, [0], (0,), {"image": 0}])
def test_one_input(x: Any, nesting: Any) -> None:
    equal(standardize(x, takes(ONE, nesting=nesting)), FIRST.astype(np.float32))


@pytest.mark.parametrize(
    "x",
    [
        [FIRST, SECOND],
        (FIRST, SECOND),
        {"first": FIRST, "second": SECOND},
        {"second": SECOND, "first": FIRST},
        [Foreign(FIRST), SECOND],
    ],
)
@pytest.mark.parametrize("nesting", [[0, 0], (0, 0), {"first": 0, "second": 0}])
def test_two_inputs(x: Any, nesting: Any) -> None:
    equal(standardize(x, takes(*TWO, nesting=nesting)), FIRST.astype(np.float32), SECOND.astype(np.int32))


def test_keys_count_and_not_names_where_the_model_takes_a_dict() -> None:
    signature = takes(*TWO, nesting={"a": 0, "b": 0})
    equal(standardize({"b": SECOND, "a": FIRST}, signature), FIRST.astype(np.float32), SECOND.astype(np.int32))
    with pytest.raises(InputError, match="'a', 'b'"):
        standardize({"first": FIRST, "second": SECOND}, signature)


def test_deeper_nesting_must_be_the_models() -> None:
    specs = (*TWO, TensorSpec("third", (None,), "bool"))
    signature = takes(*specs, nesting={"pair": [0, 0], "single": 0})
    third = np.array([True, False, True])
    expected = FIRST.astype(np.float32), SECOND.astype(np.int32), third
    equal(standardize({"pair": [FIRST, SECOND], "single": third}, signature), *expected)
    equal(standardize({"single": third, "pair": (FIRST, SECOND)}, signature), *expected)
    for other in ([FIRST, SECOND, third], {"pair": [SECOND], "single": third}, {"pair": FIRST, "single": [third] * 2}):
        with pytest.raises(InputError, match="3 inputs"):
            standardize(other, signature)


@given(
    nesting=st.recursive(
        st.just(0),
        lambda inner: (
            st.lists(inner, min_size=1, max_size=3)
            | st.lists(inner, min_size=1, max_size=3).map(tuple)
            | st.dictionaries(st.text(max_size=3), inner, min_size=1, max_size=3)
        ),
        max_leaves=6,
    ),
    rows=st.integers(0, 5),
)
def test_any_nesting_is_taken_back(nesting: Any, rows: int) -> None:
    structure = describe(nesting)
    count = _leaves(nesting)
    specs = tuple(TensorSpec(f"input_{i}", (None, i + 1), "float32") for i in range(count))
    arrays = [np.full((rows, i + 1), i, np.float32) for i in range(count)]
    found = standardize(pack(structure, arrays), Signature(specs, (), structure, 0))
    equal(found, *arrays)
    assert len(found[0]) == rows


def _leaves(nesting: Any) -> int:
    if isinstance(nesting, dict):
        return sum(map(_leaves, nesting.values()))
    return sum(map(_leaves, nesting)) if isinstance(nesting, list | tuple) else 1


@pytest.mark.parametrize("given_as", ["float64", "float16", "int8", "int64", "uint8", "bool"])
@pytest.mark.parametrize("taken", ["float32", "float16", "int32", "int64", "uint8", "bool"])
def test_numbers_are_cast(given_as: str, taken: str) -> None:
    x = np.array([[0, 1, 1, 0], [1, 0, 1, 1]]).astype(given_as)
    equal(standardize(x, takes(TensorSpec("x", (None, 4), taken))), x.astype(taken))


def test_what_fits_is_not_copied() -> None:
    x = np.ones((3, 4), np.float32)
    assert np.shares_memory(standardize(x, takes(ONE))[0], x)


@pytest.mark.parametrize(
    ("shape", "expected"), [((3, 4), (3, 4, 1)), ((3, 4, 1), (3, 4, 1)), ((3, 4, 1, 1), (3, 4, 1))]
)
def test_a_last_axis_of_one_may_come_and_go(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    found = standardize(np.ones(shape), takes(TensorSpec("x", (None, 4, 1), "float32")))
    assert found[0].shape == expected


@pytest.mark.parametrize("spec_shape", [(None, None, 3), (None, 5, 3)])
def test_open_axes_take_any_size(spec_shape: tuple[int | None, ...]) -> None:
    signature = takes(TensorSpec("x", spec_shape, "float32"))
    assert standardize(np.ones((2, 5, 3)), signature)[0].shape == (2, 5, 3)
    if spec_shape[1] is None:
        assert standardize(np.ones((2, 0, 3)), signature)[0].shape == (2, 0, 3)


def test_extra_keys_are_left_out_with_a_warning() -> None:
    x = {"first": FIRST, "second": SECOND, "id": "anything", "age": None}
    with pytest.warns(UserWarning, match=r"no input 'age', 'id'.*\['first', 'second'\]"):
        found = standardize(x, takes(*TWO, nesting=[0, 0]))
    equal(found, FIRST.astype(np.float32), SECOND.astype(np.int32))


TEXTS = np.array([["a", "b", "c", "d"]])


@pytest.mark.parametrize(
    ("x", "name", "expected", "received"),
    [
        pytest.param(np.ones((3, 5)), "image", "(batch, 4)", (3, 5), id="size of an axis"),
        pytest.param(np.ones((3, 4, 2)), "image", "(batch, 4)", (3, 4, 2), id="rank over"),
        pytest.param(np.ones(4), "image", "(batch, 4)", (4,), id="rank under"),
        pytest.param(np.float32(1), "image", "(batch, 4)", (), id="no axes"),
        pytest.param(np.ones((0, 5)), "image", "(batch, 4)", (0, 5), id="no rows of the wrong size"),
        pytest.param(np.ones((3, 4, 1, 1)), "image", "(batch, 4)", (3, 4, 1, 1), id="two axes over"),
        pytest.param(TEXTS, "image", "float32", "<U1", id="texts"),
        pytest.param(TEXTS.astype("S"), "image", "float32", "|S1", id="bytes"),
        pytest.param(np.ones((1, 4), object), "image", "float32", "object", id="objects"),
        pytest.param(np.ones((1, 4), complex), "image", "float32", "complex128", id="complex"),
        pytest.param(np.zeros((1, 4), "datetime64[s]"), "image", "float32", "datetime64[s]", id="dates"),
        pytest.param(np.zeros((1, 4), "timedelta64[s]"), "image", "float32", "timedelta64[s]", id="durations"),
        pytest.param(np.zeros((1, 4), [("a", "f4")]), "image", "float32", "[('a', '<f4')]", id="records"),
        pytest.param({"image": [1.0, 2.0]}, "image", "an array", "list", id="list of numbers by name"),
        pytest.param({"image": None}, "image", "an array", "NoneType", id="None by name"),
        pytest.param([None], "image", "an array", "NoneType", id="None in a list"),
        pytest.param("text", "image", "an array", "str", id="str"),
        pytest.param(None, "image", "an array", "NoneType", id="None"),
        pytest.param(3.5, "image", "an array", "float", id="number"),
        pytest.param({"picture": FIRST}, "image", ["image"], ["picture"], id="wrong key"),
        pytest.param({}, "image", ["image"], [], id="empty dict"),
        pytest.param([], None, ["image"], "0 arrays nested as []", id="empty list"),
        pytest.param(
            [FIRST, FIRST], None, ["image"], "2 arrays nested as [ndarray(3, 4), ndarray(3, 4)]", id="too many"
        ),
        pytest.param(
            [1.0, 2.0, 3.0], None, ["image"], "3 arrays nested as [float, float, float]", id="list of numbers"
        ),
    ],
)
def test_what_does_not_fit(x: Any, name: str | None, expected: Any, received: Any) -> None:
    with pytest.raises(InputError) as caught:
        standardize(x, takes(ONE))
    error = caught.value
    assert isinstance(error, ValueError)
    assert error.input_name == name
    assert error.expected == expected
    assert error.received == received
    text = str(error)
    assert "'image'" in text
    assert "Received: " in text
    assert str(received) in text
    assert expected == ["image"] or str(expected) in text


@pytest.mark.parametrize(
    ("x", "words"),
    [
        pytest.param(FIRST, "takes 2 inputs ('first', 'second')", id="one for two"),
        pytest.param([FIRST], "takes 2 inputs ('first', 'second')", id="list of one for two"),
        pytest.param([FIRST, SECOND, SECOND], "takes 2 inputs ('first', 'second')", id="three for two"),
        pytest.param({"first": FIRST}, "misses the input 'second'. Received: a dict with ['first']", id="missing key"),
        pytest.param({1: FIRST}, "misses the inputs 'first', 'second'. Received: a dict with ['1']", id="wrong keys"),
        pytest.param([FIRST, SECOND[:2]], "same number of rows. Received: {'first': 3, 'second': 2}", id="rows"),
        pytest.param([SECOND, FIRST], "'first' takes the shape (batch, 4). Received: shape (3, 2)", id="swapped"),
    ],
)
def test_what_does_not_fit_two_inputs(x: Any, words: str) -> None:
    for nesting in ([0, 0], {"first": 0, "second": 0}):
        with pytest.raises(InputError) as caught:
            standardize(x, takes(*TWO, nesting=nesting))
        assert words in str(caught.value)
        assert "eceived" in str(caught.value)


@pytest.mark.parametrize("dtype", [object, "T", "U", "S"])
def test_strings_that_are_equal_have_one_digest_wherever_they_lie(dtype: Any) -> None:
    texts = ["a word that is too long to be kept in an array itself", "b"]

    def copies() -> Any:
        return np.array(["".join(list(text)) for text in texts], object if dtype is object else np.dtype(dtype))

    assert digest_of([copies()]) == digest_of([copies()])
    other = copies()
    other[0] = "A" + texts[0][1:]  # as long, and not the same
    assert digest_of([copies()]) != digest_of([other])


def test_equal_numbers_of_other_types_and_shapes_have_other_digests() -> None:
    arrays = [FIRST, FIRST.T, FIRST.astype("float32"), FIRST.astype(object), FIRST[:2]]
    assert len({digest_of([array]) for array in arrays}) == len(arrays)
    assert digest_of([FIRST.astype(object)]) == digest_of([FIRST.astype(object)])
