"""Keys of the engine cache: pure functions from named fields to a SHA-256.

A key is the digest of a list of fields, each written as label length, label, payload length, payload, so that no two
lists can run together into the same bytes. The first field is the schema number: a change of the encoding below must
raise it, which turns every older entry into a miss instead of a wrong hit.
"""

from __future__ import annotations

import hashlib
import logging
import struct
from collections.abc import Mapping, Sequence
from typing import TypeAlias

__all__ = ["SCHEMA", "FieldValue", "digest"]

SCHEMA = 1

FieldValue: TypeAlias = "bool | int | float | str | bytes | Sequence[FieldValue] | Mapping[str, FieldValue] | None"

_logger = logging.getLogger("keras_trt.cache")

# Every NaN is one value here: its sign and payload bits differ between machines and mean nothing to an option.
_NAN = struct.pack(">Q", 0x7FF8000000000000)


def digest(kind: str, fields: Mapping[str, FieldValue]) -> str:
    """Return the key of `fields`: 64 lowercase hexadecimal digits.

    Two calls give the same key exactly if `kind`, the names, the types and the values are the same, in any process and
    on any machine. The order of a mapping does not matter, that of a sequence does; a list and a tuple are the same.
    Types are told apart: `1`, `1.0`, `True`, `"1"`, `b"1"` and `[1]` give six keys, and so do `0.0` and `-0.0`.

    At level `DEBUG` the logger `keras_trt.cache` gets one line a field, so that two runs can be compared to see
    which field made a miss.

    Args:
        kind: What the key is for, such as `"engine"`. Keys of different kinds never meet.
        fields: Name and value of each field. Hash large content first and pass its digest.

    Returns:
        The SHA-256 as a string.

    Raises:
        TypeError: If a value is of another type, such as a set, which has no order; the message names the field.

    Example:
        >>> key = digest("engine", {"onnx": "5f2b", "profile": [1, 32, 128], "precision": None})
        >>> len(key)
        64
    """
    if not isinstance(kind, str):
        raise TypeError(f"The kind of a key must be a string. Received: kind={kind!r}")
    whole = hashlib.sha256(_field("schema", _encode(SCHEMA, "schema")) + _field("kind", _encode(kind, "kind")))
    debug = _logger.isEnabledFor(logging.DEBUG)
    for name, value in _sorted_items(fields, "fields"):
        payload = _encode(value, name)
        whole.update(_field(name, payload))
        if debug:
            _logger.debug("%s key: %s = %s", kind, name, hashlib.sha256(payload).hexdigest()[:16])
    key = whole.hexdigest()
    if debug:
        _logger.debug("%s key: %s", kind, key)
    return key


def _field(label: str, payload: bytes) -> bytes:
    return _sized(_utf8(label)) + _sized(payload)


def _sized(data: bytes) -> bytes:
    return struct.pack(">Q", len(data)) + data


def _utf8(text: str) -> bytes:
    # File names that are not valid UTF-8 reach Python as lone surrogates; they too must have a key.
    return text.encode("utf-8", "surrogatepass")


def _encode(value: FieldValue, where: str) -> bytes:
    """Return `value` as bytes that begin with a tag of its type; `where` names it in an error."""
    if value is None:
        return b"n"
    if isinstance(value, bool):  # before int, of which it is a subclass
        return b"b1" if value else b"b0"
    if isinstance(value, int):
        return b"i" + format(int(value), "x").encode()  # hexadecimal: Python limits the digits of a decimal
    if isinstance(value, float):
        return b"f" + (_NAN if value != value else struct.pack(">d", value))
    if isinstance(value, str):
        return b"s" + _utf8(value)
    if isinstance(value, bytes):
        return b"y" + value
    if isinstance(value, Mapping):
        items = _sorted_items(value, where)
        return b"m" + b"".join(_field(key, _encode(item, f"{where}[{key!r}]")) for key, item in items)
    # Both are sequences by registration, but whoever passes one means its bytes: better refused than guessed.
    if isinstance(value, Sequence) and not isinstance(value, bytearray | memoryview):
        return b"l" + b"".join(_sized(_encode(item, f"{where}[{index}]")) for index, item in enumerate(value))
    hint = " A set has no order: pass sorted(…)." if isinstance(value, set | frozenset) else ""
    raise TypeError(
        f"The field {where!r} of a cache key cannot be hashed. Received: {type(value).__name__}. Allowed are None, "
        f"bool, int, float, str, bytes, and sequences and mappings of these.{hint}"
    )


def _sorted_items(mapping: Mapping[str, FieldValue], where: str) -> list[tuple[str, FieldValue]]:
    for key in mapping:
        if not isinstance(key, str):
            raise TypeError(f"The keys of the mapping {where!r} must be strings. Received: {key!r}")
    return sorted(mapping.items(), key=lambda item: item[0])
