"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path

__all__ = ["make_folder", "sweep", "unlink_unchanged", "write"]

_STALE_SECONDS = 24 * 60 * 60  # far longer than any file takes to be written


def write(path: Path, data: bytes, temporary_folder: Path) -> os.stat_result:
    """Write a file and return its status.

    Args:
        path: where it appears, whole and synced, in place of what was there.
        data: its content.
        temporary_folder: where it is written; on the same file system, so that it can be moved into place.

    Raises:
        OSError: if it cannot be written; nothing of it is left then.
    """
    descriptor, name = tempfile.mkstemp(dir=temporary_folder)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
            status = os.fstat(descriptor)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)
    return status


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing."""
    # For the user alone: what lies here is run. mkdir(parents=True) would give the mode to the last folder only.
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)


def _sync_folder(path: Path) -> None:
    # Not every system can sync a folder. What a power cut then loses is a miss, because reads are verified.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sweep(folder: Path) -> None:
    """Delete what killed writers left; what is younger may belong to a living one."""
    oldest = time.time() - _STALE_SECONDS
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if path.lstat().st_mtime < oldest:
                    path.unlink()


def unlink_unchanged(path: Path, status: os.stat_result) -> None:
    """Delete `path` unless another writer has put a new file there since `status` was taken."""
    with contextlib.suppress(OSError):
        now = path.stat()
        if (now.st_ino, now.st_size, now.st_mtime_ns) == (status.st_ino, status.st_size, status.st_mtime_ns):
            path.unlink()
