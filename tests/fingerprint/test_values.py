"""The weights key, and how values are hashed."""

from __future__ import annotations

import os
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_trt.fingerprint import Unhashable, weights_digest, weights_key

from ..models import keras, tf

# Keras 3 itself, when it saves a model with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class Holder:
    """As much of a model as `weights_key` looks at."""

    def __init__(self, *arrays: Any) -> None:
        self.weights = [
            keras.Variable(array, dtype=keras.backend.standardize_dtype(array.dtype), name=f"v{i}")
            for i, array in enumerate(arrays)
        ]


def f4(*values: float) -> Any:
    return np.array(values, "float32")


WEIGHTS_DIFFER: dict[str, tuple[list[Any], list[Any]]] = {
    "value": ([f4(1, 2)], [f4(1, 3)]),
    "last bit": ([f4(1, 2)], [np.nextafter(f4(1, 2), f4(9, 2))]),
    "order": ([f4(1), f4(2)], [f4(2), f4(1)]),
    "shape": ([f4(1, 2).reshape(1, 2)], [f4(1, 2).reshape(2, 1)]),
    "rank": ([f4(1)], [f4(1).reshape(())]),
    "split": ([f4(1, 2), f4(3)], [f4(1), f4(2, 3)]),
    "number": ([f4(1)], [f4(1), np.zeros((0,), "float32")]),
    "type of equal bytes": ([np.zeros(2, "float32")], [np.zeros(2, "int32")]),
    "type of equal values": ([f4(1)], [np.array([1.0], "float64")]),
    "half types": ([np.zeros(2, "float16")], [keras.ops.zeros(2, "bfloat16")]),
    "sign of zero": ([f4(0.0)], [f4(-0.0)]),
}


@pytest.mark.parametrize(("one", "other"), WEIGHTS_DIFFER.values(), ids=WEIGHTS_DIFFER)
def test_weights_differ_on(one: list[Any], other: list[Any]) -> None:
    assert weights_key(Holder(*one)) != weights_key(Holder(*other))
    assert weights_key(Holder(*one)) == weights_key(Holder(*one))


@pytest.mark.parametrize("a_thread", [1, 1 << 24])
def test_threads_are_for_many_numbers_and_change_no_key(a_thread: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For few they keep a training beside them waiting, and take longer than one does."""
    holder = Holder(*(np.full((5, place + 1), place, "float32") for place in range(9)))
    expected, content, threads = weights_key(holder), weights_digest._content, set[int]()
    several = threading.Event()

    def looked_at(variable: Any) -> bytes:
        threads.add(threading.get_ident())
        if len(threads) > 1:
            several.set()
        assert a_thread > 1 or several.wait(60)  # no thread takes all of them before another comes
        return content(variable)

    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(weights_digest, "_A_THREAD", a_thread)
    monkeypatch.setattr(weights_digest, "_content", looked_at)
    assert weights_key(holder) == expected
    assert len(threads) > 1 if a_thread == 1 else threads == {threading.get_ident()}


def test_where_python_starts_no_thread_any_more_one_hashes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is being made when Ctrl-C ends the program is still finished."""
    holder = Holder(*(np.full((5, place + 1), place, "float32") for place in range(9)))
    expected = weights_key(holder)

    def refuse(*_: Any) -> Any:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(weights_digest, "_A_THREAD", 1)
    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    assert weights_key(holder) == expected


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=6),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=6),
)
def test_weights_keys_are_equal_exactly_if_the_bytes_are(one: list[float], other: list[float]) -> None:
    a, b = f4(*one), f4(*other)
    same = a.shape == b.shape and a.tobytes() == b.tobytes()
    assert (weights_key(Holder(a)) == weights_key(Holder(b))) == same


_CONSTANTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.0, -0.0, 1.0, 2.5])
    | st.sampled_from(["", "a", "1"])
    | st.sampled_from([b"", b"a"]),
    lambda children: (
        st.lists(children, max_size=3)
        | st.lists(children, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from("ab"), children, max_size=2)
        | st.frozensets(st.integers(0, 3), max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_CONSTANTS, _CONSTANTS)
def test_constants_hash_alike_exactly_if_they_are_written_alike(one: Any, other: Any) -> None:
    from keras_trt.fingerprint.code_digest import Digester

    def key(value: Any) -> bytes:
        digester = Digester()
        digester.value(value)
        return digester.digest()

    assert (key(one) == key(other)) == (repr(one) == repr(other))


def test_weights_of_strings_are_refused() -> None:
    holder = types.SimpleNamespace(weights=[tf.Variable(["a", "b"])])
    with pytest.raises(Unhashable, match="numbers"):
        weights_key(holder)
