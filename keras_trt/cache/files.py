"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
from pathlib import Path

__all__ = ["make_folder", "others_can_write", "sweep", "unlink_unchanged", "write"]

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


def others_can_write(folder: Path) -> str | None:
    """Return who else can write to a folder, for people, or `None` if nobody can, or there is no such folder.

    The system's administrator always can. So can the members of a group; a group of the same name as its only member
    is that user's own. Folders above are not looked at. Systems without POSIX rights are not judged.
    """
    if os.name != "posix":
        return None
    try:
        status = folder.stat()
    except OSError:
        return None
    mode = f"mode {stat.S_IMODE(status.st_mode):04o}"
    if status.st_uid not in (os.geteuid(), 0):
        return f"it belongs to another user, {status.st_uid}"
    if status.st_mode & stat.S_IWOTH:
        return f"every user can write to it ({mode})"
    if status.st_mode & stat.S_IWGRP and not _own_group(status.st_gid):
        return f"the group {status.st_gid} can write to it ({mode})"
    return None


def _own_group(number: int) -> bool:
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(number), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def unlink_unchanged(path: Path, status: os.stat_result) -> bool:
    """Delete `path` unless others have deleted or replaced it since `status` was taken; return whether they had not."""
    try:
        now = path.stat()
    except OSError:
        return False
    if (now.st_ino, now.st_size, now.st_mtime_ns) != (status.st_ino, status.st_size, status.st_mtime_ns):
        return False
    with contextlib.suppress(OSError):
        path.unlink()
    return True
