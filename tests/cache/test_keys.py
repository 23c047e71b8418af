from __future__ import annotations

import enum
import logging
import math
import os
import struct
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from keras_trt.cache import digest, keys

BASE: dict[str, Any] = {"onnx": "ab12", "profile": [1, 32, 128], "options": {"precision": "fp16", "workspace": None}}


class Level(enum.IntEnum):
    HIGH = 3


def key(**changed: Any) -> str:
    return digest("engine", BASE | changed)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(BASE | {"onnx": "ab13"}, id="value"),
        pytest.param(BASE | {"onnx": b"ab12"}, id="bytes for str"),
        pytest.param(BASE | {"onnx": ["ab12"]}, id="list for its item"),
        pytest.param(BASE | {"onnx": None}, id="None for str"),
        pytest.param(BASE | {"onnx": "None"}, id="'None'"),
        pytest.param(BASE | {"onnx": ""}, id="empty str"),
        pytest.param(BASE | {"onnx": "ab12\0"}, id="trailing zero"),
        pytest.param(BASE | {"profile": [32, 1, 128]}, id="order of a sequence"),
        pytest.param(BASE | {"profile": [1, 32]}, id="shorter sequence"),
        pytest.param(BASE | {"profile": [1, 32, [128]]}, id="nesting"),
        pytest.param(BASE | {"profile": [1, 32, 128.0]}, id="float for int"),
        pytest.param(BASE | {"profile": [True, 32, 128]}, id="bool for int"),
        pytest.param(BASE | {"profile": {"0": 1, "1": 32, "2": 128}}, id="mapping for sequence"),
        pytest.param(BASE | {"options": {"precision": "fp16"}}, id="absent for None"),
        pytest.param(BASE | {"options": {"precision": None, "workspace": "fp16"}}, id="values swapped"),
        pytest.param(BASE | {"more": None}, id="one field more"),
        pytest.param({name: BASE[name] for name in ("onnx", "profile")}, id="one field less"),
        pytest.param({"Onnx" if name == "onnx" else name: value for name, value in BASE.items()}, id="name"),
        pytest.param({}, id="no fields"),
    ],
)
def test_differs_on(fields: dict[str, Any]) -> None:
    assert digest("engine", fields) != digest("engine", BASE)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(dict(reversed(BASE.items())), id="order of fields"),
        pytest.param(BASE | {"options": {"workspace": None, "precision": "fp16"}}, id="order of a mapping"),
        pytest.param(BASE | {"profile": (1, 32, 128)}, id="tuple for list"),
        pytest.param(MappingProxyType(OrderedDict(BASE)), id="kind of mapping"),
    ],
)
def test_same_on(fields: dict[str, Any]) -> None:
    assert digest("engine", fields) == digest("engine", BASE)


def test_kinds_differ() -> None:
    assert digest("engine", BASE) != digest("structure", BASE)
    # A field that poses as part of the head is still a field.
    assert digest("engine", {"schema": 1}) != digest("engine", {"kind": 1}) != digest("engine", {})


def test_every_type_has_its_own_keys() -> None:
    values = [1, 1.0, True, "1", b"1", [1], {"1": 1}, None, [], {}, "", b"", 0, False, 0.0, -0.0, -1, 2**64, math.inf]
    assert len({key(onnx=value) for value in values}) == len(values)


def test_nan_is_one_value() -> None:
    nans = [math.nan, -math.nan, struct.unpack(">d", bytes.fromhex("7ff8dead00000001"))[0]]
    assert len({key(onnx=value) for value in nans}) == 1


def test_subclasses_are_their_values() -> None:
    assert key(onnx=Level.HIGH) == key(onnx=3)


def test_odd_values_have_keys() -> None:
    assert key(onnx="\udcff") != key(onnx="\udcfe")  # a file name that is no UTF-8
    assert key(onnx=10**5000) != key(onnx=10**5000 + 1)  # more digits than Python would print


def test_schema_changes_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(keys, "SCHEMA", keys.SCHEMA + 1)
    assert key() != before


def test_key_of_this_schema_never_moves() -> None:
    # If this fails, entries of released versions become unreachable: raise SCHEMA, then write the new key here.
    assert keys.SCHEMA == 1
    assert key() == "b35491f0257ed71767f09daf8af3bbb2a02419c8020761b850b03a71c0c7e464"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param({1, 2}, r"'onnx'.*set.*sorted", id="set"),
        pytest.param(frozenset("a"), r"'onnx'.*frozenset.*sorted", id="frozenset"),
        pytest.param([{"deep": [1, {2}]}], r"onnx\[0\]\['deep'\]\[1\].*set", id="nested"),
        pytest.param(object(), r"'onnx'.*object", id="object"),
        pytest.param(1j, r"'onnx'.*complex", id="complex"),
        pytest.param(bytearray(b"1"), r"'onnx'.*bytearray", id="bytearray"),
        pytest.param(memoryview(b"1"), r"'onnx'.*memoryview", id="memoryview"),
        pytest.param(iter([1]), r"'onnx'.*list_iterator", id="iterator"),
        pytest.param({1: "one"}, r"'onnx'.*strings.*Received: 1", id="key of a mapping"),
    ],
)
def test_refuses(value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        key(onnx=value)


def test_refuses_names_and_kinds_that_are_no_strings() -> None:
    with pytest.raises(TypeError, match="strings"):
        digest("engine", {1: "one"})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="kind=1"):
        digest(1, {})  # type: ignore[arg-type]


def test_debug_log_explains_a_miss(caplog: pytest.LogCaptureFixture) -> None:
    def lines(**changed: Any) -> set[str]:
        caplog.clear()
        key(**changed)
        return set(caplog.messages)

    with caplog.at_level(logging.INFO, "keras_trt.cache"):
        assert lines() == set()
    with caplog.at_level(logging.DEBUG, "keras_trt.cache"):
        before, after = lines(), lines(onnx="ab13")
    assert sorted(line.split(" = ")[0] for line in before - after if " = " in line) == ["engine key: onnx"]
    assert any(key() in line for line in before)
    assert not any("fp16" in line for line in before)  # hashes, not values


def test_same_in_every_process() -> None:
    code = f"from keras_trt.cache import digest; print(digest('engine', {BASE!r}))"
    repository = Path(keys.__file__).parents[2]
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(repository)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1", "12345")
    }
    assert found == {key()}


def test_importing_the_cache_loads_only_the_standard_library() -> None:
    code = (
        "import sys, keras_trt; before = set(sys.modules); import keras_trt.cache\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - sys.stdlib_module_names - {'keras_trt'}))"
    )
    repository = Path(keys.__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.strip() == "[]"


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
)
maps = st.dictionaries(st.text(max_size=6), values, max_size=5)


def typed(value: Any) -> Any:
    """`value` as a thing that compares equal only if the types are equal too."""
    if isinstance(value, list):
        return ("list", [typed(item) for item in value])
    if isinstance(value, dict):
        return ("dict", {name: typed(item) for name, item in value.items()})
    if isinstance(value, float):
        return ("float", "nan" if math.isnan(value) else struct.pack(">d", value))
    return (type(value).__name__, value)


def shuffled(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: shuffled(item) for name, item in reversed(value.items())}
    return tuple(map(shuffled, value)) if isinstance(value, list) else value


@settings(deadline=None)
@given(maps)
def test_order_of_mappings_does_not_matter(fields: dict[str, Any]) -> None:
    assert digest("engine", fields) == digest("engine", shuffled(fields))


@settings(deadline=None)
@given(maps, maps)
def test_keys_are_equal_exactly_if_fields_are(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (digest("engine", one) == digest("engine", other)) == (typed(one) == typed(other))


@settings(deadline=None)
@given(maps.filter(bool), values, st.data())
def test_any_change_of_a_field_changes_the_key(fields: dict[str, Any], value: Any, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(fields)))
    assume(typed(fields[name]) != typed(value))
    assert digest("engine", fields) != digest("engine", fields | {name: value})


@settings(deadline=None)
@given(st.text(min_size=1), st.integers(0), st.integers(0))
def test_text_cut_elsewhere_changes_the_key(text: str, one: int, other: int) -> None:
    one, other = one % (len(text) + 1), other % (len(text) + 1)
    assume(one != other)
    cuts = [(text[:cut], text[cut:]) for cut in (one, other)]
    assert digest("engine", {cuts[0][0]: cuts[0][1]}) != digest("engine", {cuts[1][0]: cuts[1][1]})
    assert key(onnx=cuts[0]) != key(onnx=cuts[1])
    assert digest("engine", {"a": cuts[0][0], "b": cuts[0][1]}) != digest("engine", {"a": cuts[1][0], "b": cuts[1][1]})
    assert digest(*_kind(cuts[0])) != digest(*_kind(cuts[1]))


def _kind(cut: tuple[str, str]) -> tuple[str, dict[str, str]]:
    return cut[0], {cut[1]: ""}
