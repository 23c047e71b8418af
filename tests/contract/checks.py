"""Holds the uses of a source against the names of the bindings."""

from __future__ import annotations

from collections.abc import Iterable

from .bindings import Names
from .signatures import accepted
from .uses import Use


def union(names_of_versions: Iterable[Names]) -> Names:
    """The names of any version, each as the last version with it has it."""
    return {path: entry for names in names_of_versions for path, entry in names.items()}


def problems(uses: list[Use], names: Names) -> list[str]:
    """What would fail with a version of these names. A use counts if all that it is guarded by exists."""
    found = [
        f"{use.where}: {problem}" for use in uses if use.given <= names.keys() for problem in _problems(use, names)
    ]
    return sorted(set(found))


def unknown_guards(uses: list[Use], known: Names) -> list[str]:
    """The guarded names that no version has: most likely typing errors, as nothing else would notice."""
    unknown = [use for use in uses if use.guarded and use.path not in known]
    return sorted({f"{use.where}: {use.path} is in no version" for use in unknown})


def _problems(use: Use, names: Names) -> Iterable[str]:
    entry = names.get(use.path)
    if entry is None:
        yield f"{use.path} does not exist"
    elif use.call and entry["kind"] in ("property", "value"):
        yield f"{use.path} is called, and is no function"
    elif use.call and not accepted(entry.get("signatures", []), use.call, use.of_object):
        yield f"{use.path}{use.call} fits none of {entry['signatures']}"
    elif use.stored and entry["kind"] == "property" and not entry["set"]:
        yield f"{use.path} is set, and is read-only"
    elif not use.call and not use.stored and entry["kind"] == "property" and not entry["get"]:
        yield f"{use.path} is read, and is write-only"
