"""Why something was not in the cache: which fields of its key differ from those of the nearest entry."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from keras_trt.cache.upkeep import Item

__all__ = ["Nearest", "changes", "nearest"]

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Nearest:
    """The entry whose fields differ least.

    Attributes:
        item: The entry.
        changes: What differs, a phrase each.
    """

    item: Item
    changes: list[str]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what differs between the fields of two keys, a phrase each.

    Args:
        old: JSON values by name; mappings may be nested, and only their inner names are said.
        new: Likewise.

    Example:
        >>> changes({"precision": "fp32", "shapes": {"max batch": 9}}, {"precision": "fp16"})
        ["precision fp32 → fp16", "max batch 9 → none"]
    """
    before, after = dict(_leaves(old)), dict(_leaves(new))
    phrases = (
        _phrase(path[-1], before.get(path), after.get(path))
        for path in dict.fromkeys([*before, *after])
        if before.get(path) != after.get(path)
    )
    return list(dict.fromkeys(phrases))  # a version may be told in two places


def nearest(items: Iterable[Item], model: str, fields: Mapping[str, Any]) -> Nearest | None:
    """Return the entry whose fields differ least, of those of the same structure, or at least the same name.

    Those of a model that has a structure key and of one that has none say different things, and are not compared.

    Args:
        items: Entries; those without `"fields"` in their manifest are passed over.
        model: The name.
        fields: JSON values by name.
    """
    structure = fields.get("structure")
    found = []
    for item in items:
        old = item.manifest.get("fields")
        if not isinstance(old, dict) or (structure is None) != (old.get("structure") is None):
            continue
        if item.manifest.get("model") == model or (structure is not None and old["structure"] == structure):
            found.append(Nearest(item, changes(old, fields)))
    return min(found, key=lambda one: (len(one.changes), -one.item.used_ns), default=None)


def _leaves(fields: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _phrase(name: str, old: Any, new: Any) -> str:
    if any(isinstance(value, str) and _DIGEST.fullmatch(value) for value in (old, new)):
        return f"{name} changed"
    return f"{name} {_said(old)} → {_said(new)}"


def _said(value: Any) -> str:
    return "none" if value is None else str(value)
