"""What lies in a cache folder, and how it is kept within a size: what was used least recently goes first.

When something was used is the time of its manifest's file. It is taken from the clock, and from a file whose own time
only goes up: a clock that is set back does not make what is used now look older than what was used before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from keras_trt.cache import documents, files

__all__ = ["Item", "evict", "items", "mark_used"]

_logger = logging.getLogger("keras_trt.cache")


@dataclass(frozen=True)
class Item:
    """An entry or a record.

    Attributes:
        kind: Which of the two.
        key: Its key.
        path: The file of its manifest.
        size_bytes: What it takes on the disk: for an entry, its payload too, which others may share.
        used_ns: When it was last used, in nanoseconds since 1970.
        manifest: What was stored with it; empty if it is damaged.
        payload: The file of its payload; `None` for a record, or if it is damaged.
    """

    kind: Literal["entry", "record"]
    key: str
    path: Path
    size_bytes: int
    used_ns: int
    manifest: dict[str, Any]
    payload: Path | None


def items(root: Path) -> list[Item]:
    """Return all that lies in a cache folder, least recently used first. What vanishes meanwhile is left out."""
    found = [*_items(root, "entry"), *_items(root, "record")]
    return sorted(found, key=lambda item: (item.used_ns, item.key, item.kind))


def evict(root: Path, max_bytes: int, keep: Collection[str] = ()) -> list[Item]:
    """Delete what was used least recently until the rest is within a size, and payloads that nothing names.

    The caller holds the lock under which entries are written. What another holds the lock of is in use, and stays.

    Args:
        root: The cache folder.
        max_bytes: The size.
        keep: Keys that stay.

    Returns:
        What was deleted.
    """
    total = sum(_size(path) for path in _files(root))
    if total <= max_bytes:
        return []
    everything = items(root)
    named = Counter(item.payload for item in everything)
    for path in (root / "payloads").glob("*/*"):
        if not named[path]:  # its writer was killed, or another payload took its place
            total -= _unlinked(path)
    gone = []
    for item in everything:
        if total <= max_bytes:
            break
        if item.key in keep:
            continue
        with _free(root / "locks" / f"{item.key}.lock") as free:
            if free:
                total -= _unlinked(item.path)  # first, so that no reader finds it without its payload
                if item.payload is not None:
                    named[item.payload] -= 1
                    if not named[item.payload]:
                        total -= _unlinked(item.payload)
                gone.append(item)
    _logger.info("Engine cache: %d entries and records deleted, %d bytes left", len(gone), total)
    return gone


def mark_used(root: Path, path: Path) -> None:
    """Note that a file was used now. Where the folder cannot be written to, nothing is noted."""
    clock = root / "locks" / "used"
    with contextlib.suppress(OSError):
        files.make_folder(clock.parent)
        last = clock.stat().st_mtime_ns if clock.exists() else 0
        clock.touch(mode=0o600)
        now = max(time.time_ns(), last + 1)
        os.utime(clock, ns=(now, now))
        os.utime(path, ns=(now, now))


def _items(root: Path, kind: Literal["entry", "record"]) -> list[Item]:
    found = []
    for path in (root / ("entries" if kind == "entry" else "records")).glob("*/*.json"):
        key = path.parent.name + path.stem
        if not documents.SHA256.fullmatch(key):  # nothing of ours
            continue
        with contextlib.suppress(OSError):
            status, document = path.stat(), _document(path, kind, key)
            payload, sha256 = None, document.get("payload_sha256")
            if isinstance(sha256, str) and documents.SHA256.fullmatch(sha256):
                payload = root / "payloads" / sha256[:2] / sha256[2:]
            size = status.st_size + (_size(payload) if payload is not None else 0)
            manifest = document.get("manifest" if kind == "entry" else "record")
            manifest = manifest if isinstance(manifest, dict) else {}
            found.append(Item(kind, key, path, size, status.st_mtime_ns, manifest, payload))
    return found


def _document(path: Path, kind: str, key: str) -> dict[str, Any]:
    try:
        return documents.unseal(path.read_bytes(), kind, key)
    except ValueError:  # damaged: the next read of it says so
        return {}


def _files(root: Path) -> list[Path]:
    return [path for name in ("entries", "payloads", "records") for path in (root / name).glob("*/*")]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _unlinked(path: Path) -> int:
    """Delete a file and return its size: 0 if it could not be deleted."""
    size = _size(path)
    try:
        path.unlink()
    except OSError:  # another process reads it, on Windows
        return 0
    return size


@contextlib.contextmanager
def _free(path: Path) -> Iterator[bool]:
    """Yield whether nobody holds a lock; it is held meanwhile."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
