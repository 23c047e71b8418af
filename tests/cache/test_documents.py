"""Documents that are nested: what is too deep is refused before anything goes down into it."""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_trt.cache.documents import NESTING, seal, unseal

KIND, KEY = "record", "0" * 64
# Texts with what could be taken for brackets and ends of strings.
texts = st.text(st.sampled_from('"[]{}\\:, aé\n'), max_size=6)
documents = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def with_(value: Any) -> dict[str, Any]:
    return {"schema": 1, "kind": KIND, "key": KEY, "value": value}


@given(value=documents, more=st.integers(0, NESTING + 3), style=st.sampled_from(["a list", "a mapping"]))
def test_only_what_is_too_deep_is_refused(value: Any, more: int, style: str) -> None:
    for _ in range(more):
        value = [value] if style == "a list" else {'[{"': value}
    document = with_(value)
    plain = json.dumps(document, ensure_ascii=False).encode()  # not as `seal` writes it
    if depth(document) <= NESTING:
        assert unseal(seal(document), KIND, KEY) == document
        with pytest.raises(ValueError, match="SHA-256"):
            unseal(plain, KIND, KEY)
        return
    with pytest.raises(ValueError, match="nested"):
        seal(document)
    with pytest.raises(ValueError, match="nested"):
        unseal(plain, KIND, KEY)


@given(raw=st.lists(st.sampled_from([b'"', b"\\", b"[", b"]", b"{", b"}", b"a", b"\n"])).map(b"".join))
def test_anything_else_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        unseal(raw, KIND, KEY)


class Freed:
    """Is in a cycle, so that the garbage collector frees it, and counts by a call."""

    count = 0

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        self.counted()

    @classmethod
    def counted(cls) -> None:
        cls.count += 1


def test_finalizers_have_a_stack_to_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector runs where memory is asked for: within `json`, it would find no frame left for a finalizer."""
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    monkeypatch.setattr(Freed, "count", 0)
    threshold, times = gc.get_threshold(), range(500, 1000)
    gc.collect()
    gc.freeze()  # what the other tests have left is not looked through 500 times
    try:
        for allocations in times:
            gc.collect()
            Freed()
            gc.set_threshold(allocations)
            with pytest.raises(ValueError, match="nested"):
                unseal(b"[" * 3000, KIND, KEY)
            gc.set_threshold(*threshold)
    finally:
        gc.set_threshold(*threshold)
        gc.unfreeze()
    gc.collect()
    assert Freed.count == len(times)
    assert not unraisable
