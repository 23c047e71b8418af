"""The store of the engine cache: bytes in, verified bytes out.

    payloads/<2 hex>/<62 hex>         a payload, named by its own SHA-256
    entries/<2 hex>/<62 hex>.json     the manifest of a key: SHA-256 and size of its payload, and what the caller adds
    records/<2 hex>/<62 hex>.json     a small JSON record of a key, without a payload
    locks/<64 hex>.lock               one build at a time for each key
    tmp/                              files that are being written

Every file appears whole or not at all: it is written in `tmp/`, synced, and moved into place. A manifest is written
after its payload. Both are verified by SHA-256 at every read, so whatever a crash, a full disk or a bad disk leaves
behind is a miss. Not promised: that an entry survives a power cut, and that locks work on every network file system.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from keras_trt.errors import CacheError

__all__ = ["JSON", "SCHEMA", "EngineCache", "Entry"]

SCHEMA = 1

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

_STALE_SECONDS = 24 * 60 * 60  # far longer than any file takes to be written
_SHA256 = re.compile(r"[0-9a-f]{64}")

_logger = logging.getLogger("keras_trt.cache")


@dataclass(frozen=True)
class Entry:
    """What the cache holds for a key.

    Attributes:
        payload: The bytes, verified.
        manifest: What `put` was given beside them, as plain JSON values.
    """

    payload: bytes
    manifest: dict[str, Any]


class EngineCache:
    """A folder of engines that processes may share.

    Reading never raises for what lies on the disk: whatever is missing, damaged or of another version is a miss, and
    damage is logged as a warning. Writing raises `CacheError` and then leaves nothing half-written. No folder is made
    before the first write. Any number of threads and processes may use one folder. A key is 64 lowercase hexadecimal
    digits, as `digest` returns them; any other raises `ValueError`.

    An engine is executable code: whoever can write to this folder can run code in the processes that read it.

    Args:
        path: The folder. Defaults to the environment variable `KERAS_TRT_CACHE`, else to the user's cache folder.

    Raises:
        CacheError: If the folder is in the home of the user, who has none.
        ValueError: If `path` is empty.

    Example:
        ```python
        cache = EngineCache("engines")
        entry = cache.get(key)
        if entry is None:
            with cache.lock(key):                # others wait here while one builds
                entry = cache.get(key)           # it may have been built meanwhile
                if entry is None:
                    cache.put(key, build(), {"tensorrt": "10.13"})
        ```
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        if path is not None and not os.fspath(path):
            raise ValueError(f"The folder of an engine cache must not be empty. Received: path={path!r}")
        try:
            folder = Path(path or os.environ.get("KERAS_TRT_CACHE") or _user_folder())
            self._path = folder.expanduser().absolute()  # absolute: a later chdir must not move the cache
        except RuntimeError as error:  # from pathlib and platformdirs, for a user without a home, as in many containers
            raise CacheError(f"The engine cache has no folder: {error}. Received: path={path!r}. {_REMEDY}") from error
        self._swept = False

    def __repr__(self) -> str:
        return f"EngineCache({str(self._path)!r})"

    @property
    def path(self) -> Path:
        """The folder, as an absolute path."""
        return self._path

    def get(self, key: str) -> Entry | None:
        """Return what was put under `key`, verified, or `None` if nothing whole is there.

        Raises:
            ValueError: If `key` is not a key.
        """
        path = self._file("entries", key)
        found = self._read_document(path, "entry", key)
        if found is None:
            return None
        document, status = found
        sha256, size = document.get("payload_sha256"), document.get("payload_size")
        if (
            not isinstance(sha256, str)
            or not _SHA256.fullmatch(sha256)
            or not isinstance(document.get("manifest"), dict)
        ):
            _drop(path, status, "it names no payload")
            return None
        payload_path = self._file("payloads", sha256, "")
        try:
            with payload_path.open("rb") as file:
                payload_status = os.fstat(file.fileno())
                # A wrong size is not read at all: it may be anything, and larger than the memory.
                payload = file.read() if payload_status.st_size == size else None
        except FileNotFoundError:
            _drop(path, status, f"its payload {payload_path} is missing")
            return None
        except OSError as error:
            _warn_unreadable(payload_path, error)
            return None
        if payload is None or hashlib.sha256(payload).hexdigest() != sha256:
            _drop(path, status, f"its payload {payload_path} is damaged")
            _drop(payload_path, payload_status, "its content does not match its name")
            return None
        return Entry(payload, document["manifest"])

    def put(self, key: str, payload: bytes, manifest: Mapping[str, JSON]) -> None:
        """Store `payload` and `manifest` under `key`, in place of what was there.

        Args:
            key: A key, as `digest` returns it.
            payload: The bytes.
            manifest: What to remember beside them: JSON values with string keys. Tuples come back as lists.

        Raises:
            CacheError: If the folder cannot be written. What was under `key` before is still there.
            TypeError: If `payload` is not bytes or `manifest` is not JSON.
            ValueError: If `key` is not a key, or `manifest` holds a NaN or an infinity.
        """
        path = self._file("entries", key)
        if not isinstance(payload, bytes):
            raise TypeError(f"The payload of a cache entry must be bytes. Received: {type(payload).__name__}")
        sha256 = hashlib.sha256(payload).hexdigest()
        named = {"payload_sha256": sha256, "payload_size": len(payload), "manifest": _plain(dict(manifest), "manifest")}
        sealed = _seal({"schema": SCHEMA, "kind": "entry", "key": key, **named})
        payload_path = self._file("payloads", sha256, "")
        with self._writing(f"an engine of {len(payload)} bytes"):
            is_new = not payload_path.exists()
            # Written even if it is there: that costs less than reading it, and mends it if it is damaged.
            status = self._write(payload_path, payload)
            try:
                self._write(path, sealed)
            except BaseException:
                if is_new:  # no entry names it
                    _unlink_unchanged(payload_path, status)
                raise

    def get_record(self, key: str) -> dict[str, Any] | None:
        """Return the record that was put under `key`, verified, or `None` if nothing whole is there.

        Raises:
            ValueError: If `key` is not a key.
        """
        path = self._file("records", key)
        found = self._read_document(path, "record", key)
        if found is None:
            return None
        record = found[0].get("record")
        if not isinstance(record, dict):
            _drop(path, found[1], "it holds no record")
            return None
        return record

    def put_record(self, key: str, record: Mapping[str, JSON]) -> None:
        """Store a small record under `key`, in place of what was there.

        Args:
            key: A key, which may be that of an entry too.
            record: JSON values with string keys. Tuples come back as lists.

        Raises:
            CacheError: If the folder cannot be written. What was under `key` before is still there.
            TypeError: If `record` is not JSON.
            ValueError: If `key` is not a key, or `record` holds a NaN or an infinity.
        """
        path = self._file("records", key)
        sealed = _seal({"schema": SCHEMA, "kind": "record", "key": key, "record": _plain(dict(record), "record")})
        with self._writing("a record"):
            self._write(path, sealed)

    def discard(self, key: str) -> None:
        """Forget the entry and the record of `key`, if there are any.

        Raises:
            CacheError: If the folder cannot be written.
            ValueError: If `key` is not a key.
        """
        # The payload stays, as another entry may name it. One that nobody names is left for eviction to find.
        paths = [self._file("entries", key), self._file("records", key)]
        with self._writing("what it forgets"):
            for path in paths:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    path.unlink()

    def lock(self, key: str) -> contextlib.AbstractContextManager[None]:
        """Return a context that one thread of one process at a time can be in, for each key.

        It waits as long as another is in it. The operating system frees it when its holder dies, however that happens.
        It is not reentrant. It has to write to the folder, which `get` has not: try `get` first.

        Raises:
            CacheError: On entering, if the folder cannot be written.
            ValueError: If `key` is not a key.
        """
        return self._locked(self._path / "locks" / f"{_checked(key)}.lock")

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        from filelock import FileLock

        with self._writing("a lock"):
            _make_folder(path.parent)
            # A lock of its own for each call: two threads then exclude each other as two processes do.
            lock = FileLock(path)
            lock.acquire()
        # The file stays after the release. Were it deleted, one process could hold the deleted file that it had opened
        # just before, and another the new one, both believing that they hold the lock.
        try:
            yield
        finally:
            lock.release()

    def _file(self, folder: str, key: str, suffix: str = ".json") -> Path:
        _checked(key)
        return self._path / folder / key[:2] / f"{key[2:]}{suffix}"

    def _read_document(self, path: Path, kind: str, key: str) -> tuple[dict[str, Any], os.stat_result] | None:
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                raw = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            _warn_unreadable(path, error)
            return None
        try:
            return _unseal(raw, kind, key), status
        except (ValueError, RecursionError) as error:
            _drop(path, status, str(error))
            return None

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, NotImplementedError) as error:  # the latter: filelock, where a file system has no locks
            raise CacheError(
                f"The engine cache could not write {what}: {error}. Received: path={str(self._path)!r}. The folder "
                f"must be writable, on a disk with room. {_REMEDY}"
            ) from error

    def _write(self, path: Path, data: bytes) -> os.stat_result:
        folder = self._path / "tmp"  # inside the root: a file can only be moved into place within its file system
        _make_folder(folder)
        _make_folder(path.parent)
        if not self._swept:
            _sweep(folder)
            self._swept = True
        descriptor, name = tempfile.mkstemp(dir=folder)
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


_REMEDY = "Pass another folder with `cache=`, or set the environment variable KERAS_TRT_CACHE."


def _user_folder() -> str:
    from platformdirs import user_cache_dir

    return user_cache_dir("keras_trt")


def _checked(key: str) -> str:
    # A key becomes a file name: nothing else may reach the file system.
    if not isinstance(key, str) or not _SHA256.fullmatch(key):
        raise ValueError(f"A cache key must be 64 lowercase hexadecimal digits. Received: key={key!r}")
    return key


def _plain(value: Any, where: str) -> Any:
    """Return a copy of `value` that JSON gives back unchanged."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"The value {where!r} of a cache entry must be finite, as JSON is. Received: {value!r}")
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    raise TypeError(
        f"The value {where!r} of a cache entry must be JSON: None, bool, int, float, str, lists, and mappings with "
        f"string keys. Received: {value!r}"
    )


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, allow_nan=False, indent=1).encode() + b"\n"


def _seal(document: Mapping[str, Any]) -> bytes:
    return _canonical({**document, "seal": hashlib.sha256(_canonical(document)).hexdigest()})


def _unseal(raw: bytes, kind: str, key: str) -> dict[str, Any]:
    """Return the sealed document in `raw`, or raise a `ValueError` that says what is wrong with it."""
    document = json.loads(raw)
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    if document.get("schema") != SCHEMA:
        raise ValueError(f"its schema is {document.get('schema')!r}, and this version reads {SCHEMA}")
    document.pop("seal", None)
    if _seal(document) != raw:  # compares every byte, and so finds even damage that means the same to JSON
        raise ValueError("its SHA-256 does not match")
    if document.get("kind") != kind or document.get("key") != key:
        raise ValueError("it belongs to another key")
    return document


def _make_folder(path: Path) -> None:
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


def _sweep(folder: Path) -> None:
    """Delete what killed writers left; what is younger may belong to a living one."""
    oldest = time.time() - _STALE_SECONDS
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if path.lstat().st_mtime < oldest:
                    path.unlink()


def _warn_unreadable(path: Path, error: OSError) -> None:
    _logger.warning("Engine cache: %s cannot be read (%s); it counts as a miss", path, error)


def _drop(path: Path, status: os.stat_result, problem: str) -> None:
    _logger.warning("Engine cache: %s is of no use (%s); it is discarded and counts as a miss", path, problem)
    _unlink_unchanged(path, status)


def _unlink_unchanged(path: Path, status: os.stat_result) -> None:
    """Delete `path` unless another writer has put a new file there since `status` was taken."""
    with contextlib.suppress(OSError):
        now = path.stat()
        if (now.st_ino, now.st_size, now.st_mtime_ns) == (status.st_ino, status.st_size, status.st_mtime_ns):
            path.unlink()
