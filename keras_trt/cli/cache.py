"""`keras-trt cache`: what lies in an engine cache, and whether it is whole."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

from ..cache import EngineCache, Item, changes, nearest
from ..errors import CacheError

_COLUMNS = ("key", "model", "precision", "backend", "device", "size", "used")
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def add_parser(commands: Any) -> None:
    """Add the commands to those of `keras-trt`."""
    cache = commands.add_parser(
        "cache",
        help="list, explain, verify and delete engines",
        epilog="Exit status: 0 done, 1 something was damaged, 2 bad usage.",
    )
    cache.add_argument("--cache", dest="folder", metavar="FOLDER", help="default: the user's cache")
    verbs = cache.add_subparsers(dest="verb", required=True)
    for name, said in (
        ("ls", "list the engines, least recently used first"),
        ("show", "print what is known of an engine"),
        ("explain", "say what differs between the keys of an engine and of the nearest one, or of another one"),
        ("verify", "read everything; what is damaged is deleted"),
        ("clear", "delete everything that nobody uses"),
        ("prune", "delete what was used least recently until the rest is within a size"),
    ):
        verb = verbs.add_parser(name, help=said)
        verb.add_argument("--json", action="store_true", help="print JSON instead of text")
        if name in ("show", "explain"):
            verb.add_argument("key", help="an engine's key, or its beginning")
        if name == "explain":
            verb.add_argument("other", nargs="?", help="the key of the other one")
        if name == "prune":
            verb.add_argument("--max-bytes", type=_size, required=True, metavar="BYTES", help="such as 5000000 or 2GiB")


def run(chosen: argparse.Namespace) -> int:
    """Run a command.

    Returns:
        The exit status: 0, or 1 where something was damaged.

    Raises:
        CacheError: if the folder cannot be written, or used at all.
        ValueError: for a key that is not there, or of which there are several.
    """
    cache = EngineCache(chosen.folder)
    items = cache.items()
    engines = [item for item in items if _is_engine(item)]
    found: Any
    status, found, text = 0, None, ""
    match chosen.verb:
        case "ls":
            rows = found = [_row(item) for item in engines]
            text = _table(rows) if rows else f"No engines in {cache.path}."
        case "show":
            item = _one(engines, chosen.key)
            found = {**_row(item), "key": item.key, **item.manifest}
            text = json.dumps(found, indent=2, ensure_ascii=False)
        case "explain":
            found = _explained(engines, chosen.key, chosen.other)
            text = f"from {found['from']}: {'; '.join(found['changes']) or 'nothing differs'}" if found["from"] else (
                "No other engine here is of the same model."
            )  # fmt: skip
        case "verify":
            bad = [item for item in items if not _whole(cache, item)]
            status, found = int(bool(bad)), {"checked": len(items), "damaged": [item.key for item in bad]}
            text = "\n".join([*(f"damaged: {item.kind} {item.key}" for item in bad), f"{len(items)} checked"])
        case "clear" | "prune":
            gone = cache.prune(0 if chosen.verb == "clear" else chosen.max_bytes)
            left = sum(item.size_bytes for item in cache.items())
            found = {"deleted": [item.key for item in gone], "bytes": sum(item.size_bytes for item in gone)}
            text = f"{len(gone)} entries and records deleted, {_bytes(left)} left in {cache.path}"
    print(json.dumps(found, indent=2) if chosen.json else text)  # noqa: T201 (a command)
    return status


def _is_engine(item: Item) -> bool:
    """Whether an item is an engine that `accelerate` or `load` has stored: a cache takes other entries too."""
    kinds = {"model": str, "backend": dict, "fields": dict | None}
    return item.kind == "entry" and all(isinstance(item.manifest.get(name), kind) for name, kind in kinds.items())


def _row(item: Item) -> dict[str, Any]:
    """Return what `ls` says of an engine."""
    backend = item.manifest["backend"]
    return {
        "key": item.key[:12],
        "model": item.manifest["model"],
        "precision": item.manifest.get("precision"),
        "backend": backend.get("backend"),
        "device": backend.get("gpu", "cpu"),
        "size": item.size_bytes,
        "used": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(item.used_ns / 1e9)),
    }


def _one(engines: Sequence[Item], key: str) -> Item:
    found = [item for item in engines if item.key.startswith(key)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} engines have a key that begins so; `keras-trt cache ls` lists them. "
                         f"Received: {key!r}")  # fmt: skip
    return found[0]


def _explained(engines: Sequence[Item], key: str, other: str | None) -> dict[str, Any]:
    item = _one(engines, key)
    fields = item.manifest.get("fields") or {"structure": ""}
    if other is not None:
        second = _one(engines, other)
        return {"from": second.key, "changes": changes(second.manifest.get("fields") or {}, fields)}
    found = nearest([one for one in engines if one.key != item.key], item.manifest["model"], fields)
    return {"from": found.item.key, "changes": found.changes} if found else {"from": None, "changes": []}


def _whole(cache: EngineCache, item: Item) -> bool:
    """Read an item; in the order of their use, so that this order stays."""
    if (cache.get(item.key) if item.kind == "entry" else cache.get_record(item.key)) is not None:
        return True
    if item.path.exists():  # it cannot be read, or not be deleted
        raise CacheError(f"{item.path} can neither be read nor deleted.")
    return False


def _table(rows: Sequence[dict[str, Any]]) -> str:
    cells = [list(_COLUMNS)]
    cells += [[_bytes(row[name]) if name == "size" else str(row[name]) for name in _COLUMNS] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _size(text: str) -> int:
    unit, factor = next((one for one in _UNITS.items() if text.endswith(one[0])), ("", 1))
    try:
        size = int(float(text.removesuffix(unit)) * factor)
    except (ValueError, OverflowError):
        size = -1
    if size < 0:
        raise argparse.ArgumentTypeError(f"a size is a number of bytes, such as 5000000 or 2GiB. Received: {text!r}")
    return size
