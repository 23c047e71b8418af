"""JSON documents with a seal: the SHA-256 of all that they say, so that any changed byte shows."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

__all__ = ["JSON", "NESTING", "SCHEMA", "SHA256", "plain", "seal", "unseal"]

SCHEMA = 1
SHA256 = re.compile(r"[0-9a-f]{64}")
NESTING = 32  # lists and mappings within each other that a document may have; ours have five or so
_NO_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[^"\[\]{}]+', re.DOTALL)  # a string, whole, or no string

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"


def plain(value: Any, where: str) -> Any:
    """Return a copy of `value` that JSON gives back unchanged."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"The value {where!r} of a cache entry must be finite, as JSON is. Received: {value!r}")
        return value
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    raise TypeError(
        f"The value {where!r} of a cache entry must be JSON: None, bool, int, float, str, lists, and mappings with "
        f"string keys. Received: {value!r}"
    )


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, allow_nan=False, indent=1).encode() + b"\n"


def seal(document: Mapping[str, Any]) -> bytes:
    """Return a document as bytes, with its seal."""
    raw = _sealed(document)
    _check_nesting(raw)
    return raw


def unseal(raw: bytes, kind: str, key: str | None = None) -> dict[str, Any]:
    """Return the sealed document in `raw`, or raise a `ValueError` that says what is wrong with it.

    Without `key` it may be of any.
    """
    _check_nesting(raw)
    document = json.loads(raw)
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    if document.get("schema") != SCHEMA:
        raise ValueError(f"its schema is {document.get('schema')!r}, and this version reads {SCHEMA}")
    document.pop("seal", None)
    if _sealed(document) != raw:  # compares every byte, and so finds even damage that means the same to JSON
        raise ValueError("its SHA-256 does not match")
    if document.get("kind") != kind or key not in (None, document.get("key")):
        raise ValueError("it belongs to another key")
    return document


def _sealed(document: Mapping[str, Any]) -> bytes:
    return _canonical({**document, "seal": hashlib.sha256(_canonical(document)).hexdigest()})


def _check_nesting(raw: bytes) -> None:
    # Else `json` goes down to the end of the stack, and finalizers that run there fail.
    steps = (1 if bracket in b"[{" else -1 for bracket in _NO_BRACKET.sub(b"", raw))
    if max(itertools.accumulate(steps), default=0) > NESTING:
        raise ValueError(f"it is nested more deeply than {NESTING} times")
