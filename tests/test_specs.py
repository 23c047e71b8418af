"""Shapes, profiles and nested structures as plain data."""

from __future__ import annotations

import dataclasses
import json
from collections import namedtuple
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_trt.specs import OptimizationProfile, ShapeRange, Signature, TensorSpec, describe, flatten, leaf_paths, pack

leaves = st.integers() | st.text() | st.none()


def nests(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        of,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=10,
    )


specs = st.builds(
    TensorSpec,
    st.text(),
    st.lists(st.none() | st.integers(0, 2**40), max_size=5).map(tuple),
    st.sampled_from(["float32", "int64", "bool"]),
)


@given(nests(leaves))
def test_pack_is_the_reverse_of_flatten(value: Any) -> None:
    structure = describe(value)
    found = pack(structure, flatten(value))
    assert found == value
    assert repr(_sorted(found)) == repr(_sorted(value))  # types too, for 1 == True and () == ()


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return type(value)(map(_sorted, value)) if isinstance(value, list | tuple) else value


@given(nests(leaves), st.booleans())
def test_a_structure_is_json(value: Any, exactly: bool) -> None:
    structure = describe(value, exactly=exactly)
    assert json.loads(json.dumps(structure)) == structure
    assert pack(json.loads(json.dumps(structure)), flatten(value)) == value


class Answer(NamedTuple):
    """What a model may give back."""

    mean: Any
    variance: Any


@given(nests(leaves) | st.builds(Answer, nests(leaves), nests(leaves)))
def test_what_is_given_back_has_its_keys_in_order_and_its_class(value: Any) -> None:
    written = json.dumps(describe([value, {"b": value, "a": 0}], exactly=True), sort_keys=True)
    found = pack(json.loads(written), flatten([value, {"b": value, "a": 0}]))
    assert repr(found) == repr([value, {"b": value, "a": 0}])
    assert type(found[0]) is type(value)


def test_a_named_tuple_of_nowhere_is_one_all_the_same() -> None:
    local = namedtuple("local", ("one", "two"))
    structure = describe(local(1, 2), exactly=True)
    found, again = pack(structure, ["x", "y"]), pack(structure, ["x", "y"])
    assert (found.one, found.two) == found == ("x", "y")
    assert type(found) is type(again)
    assert type(found).__name__ == "local"


@given(nests(leaves))
def test_each_leaf_has_its_path(value: Any) -> None:
    paths = list(leaf_paths(describe(value)))
    assert [position for position, _ in paths] == list(range(len(flatten(value))))
    for position, path in paths:
        found: Any = eval(f"value{path}", {"value": value})  # noqa: S307 (a path is an expression)
        assert found == flatten(value)[position]


@given(nests(st.integers().map(lambda number: number)))
def test_flatten_is_that_of_keras(value: Any) -> None:
    optree = pytest.importorskip("optree")
    assert flatten(value) == optree.tree_leaves(value, none_is_leaf=True)


def test_dicts_go_by_sorted_key() -> None:
    assert flatten({"b": 1, "a": [2, 3]}) == [2, 3, 1]
    assert describe({"b": 1, "a": [2, 3]}) == {"dict": {"a": {"list": [0, 1]}, "b": 2}}
    assert describe(5) == 0
    assert pack({"tuple": [1, 0]}, ["x", "y"]) == ("y", "x")


@given(nests(specs), nests(specs))
def test_a_signature_survives_json(taken: Any, given_back: Any) -> None:
    named = [
        tuple(dataclasses.replace(spec, name=f"{spec.name}{place}") for place, spec in enumerate(flatten(value)))
        for value in (taken, given_back)
    ]
    signature = Signature(*named, describe(taken), describe(given_back))
    assert Signature.from_json(json.loads(json.dumps(signature.to_json()))) == signature


@pytest.mark.parametrize(
    "structure",
    [
        1, -1, None, "x", {"list": [0, 0]}, {"list": [1]}, {"set": 0}, {}, {"ordered": [["a"]]}, {"ordered": 0},
        {"named": ["P", ["one", 0]]}, {"named": ["m:P", ["1", 0]]}, {"named": [0, ["one", 0]]},
    ],
)  # fmt: skip
def test_a_signature_of_another_nesting_is_refused(structure: Any) -> None:
    spec = TensorSpec("x", (None, 3), "float32")
    document = Signature((spec,), (spec,), 0, 0).to_json()
    with pytest.raises((ValueError, TypeError, AttributeError)):
        Signature.from_json(document | {"input_structure": structure})


def test_a_signature_takes_the_names_of_a_live_model() -> None:
    old = TensorSpec("dense_1_input", (None, 3), "float32")
    output = TensorSpec("out", (None, 1), "float32")
    signature = Signature((old,), (output,), 0, 0)
    renamed = signature.with_inputs_of([TensorSpec("dense_7_input", (None, 9), "int8")])
    assert renamed.inputs == (TensorSpec("dense_7_input", (None, 3), "float32"),)
    assert dataclasses.replace(renamed, inputs=(old,)) == signature
    with pytest.raises(ValueError, match="zip"):
        signature.with_inputs_of([old, old])


axes = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)).map(sorted), max_size=4)


@given(axes)
def test_ranges_in_order_are_taken(sizes: list[list[int]]) -> None:
    shapes = [tuple(axis[i] for axis in sizes) for i in range(3)]
    found = ShapeRange(*shapes)
    assert [found.min, found.opt, found.max] == shapes
    assert ShapeRange(*map(list, shapes)) == found  # lists are as good, and it stays hashable
    assert hash(ShapeRange(*map(list, shapes))) == hash(found)


@given(st.tuples(*[st.lists(st.integers(-3, 9), min_size=2, max_size=2).map(tuple)] * 3))
def test_ranges_out_of_order_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    low, usual, high = shapes
    if all(0 <= a <= b <= c for a, b, c in zip(low, usual, high, strict=True)):
        ShapeRange(low, usual, high)
        return
    with pytest.raises(ValueError, match=r"min <= opt <= max.*Received: ShapeRange"):
        ShapeRange(low, usual, high)


@pytest.mark.parametrize(
    "shapes",
    [
        ((1, 2), (1, 2), (1,)),
        ((1,), (1, 2), (1, 2)),
        ((-1, 2), (1, 2), (1, 2)),
        ((1, 2), (1, 3), (1, 2)),
        ((2,), (1,), (3,)),
    ],
)
def test_bad_ranges(shapes: Any) -> None:
    with pytest.raises(ValueError, match="three shapes of one rank"):
        ShapeRange(*shapes)


@pytest.mark.parametrize("axis", [None, "two"])
def test_a_range_of_no_numbers(axis: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        ShapeRange((1, axis), (1, axis), (1, axis))


def test_profiles() -> None:
    ranges = {"b": ShapeRange((1, 2), (4, 2), (8, 2)), "a": ShapeRange((1,), (4,), (8,))}
    profile = OptimizationProfile(ranges)
    assert profile.batch == (1, 4, 8)
    assert OptimizationProfile.from_json(json.loads(json.dumps(profile.to_json()))) == profile
    other_order = OptimizationProfile(dict(reversed(ranges.items())))
    assert profile == other_order
    assert hash(profile) == hash(other_order)
    ranges.clear()
    assert len(profile.shapes) == 2  # its own


def test_the_inputs_of_a_profile_have_one_batch() -> None:
    with pytest.raises(ValueError, match=r"same batch sizes.*Received: OptimizationProfile"):
        OptimizationProfile({"a": ShapeRange((1,), (4,), (8,)), "b": ShapeRange((1,), (4,), (9,))})


def test_specs_are_values() -> None:
    spec = TensorSpec("x", (None, 3), "float32")
    assert TensorSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert len({spec, TensorSpec("x", (None, 3), "float32")}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "y"  # type: ignore[misc]
