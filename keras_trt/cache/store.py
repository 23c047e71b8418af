"""The store of the engine cache: bytes in, verified bytes out.

    payloads/<2 hex>/<62 hex>         a payload, named by its own SHA-256
    entries/<2 hex>/<62 hex>.json     the manifest of a key: SHA-256 and size of its payload, and what the caller adds
    records/<2 hex>/<62 hex>.json     a small JSON record of a key, without a payload
    locks/<64 hex>.lock               one build at a time for each key
    locks/store.lock                  one entry or record is written, or deleted for damage or want of room, at a time
    locks/used                        its time is the last at which anything was used
    tmp/                              files that are being written

Every file appears whole or not at all: it is written in `tmp/`, synced, and moved into place. A manifest is written
after its payload. Both are verified by SHA-256 at every read, so whatever a crash, a full disk or a bad disk leaves
behind is a miss. Not promised: that an entry survives a power cut, and that locks work on every network file system.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_trt.cache import files, upkeep
from keras_trt.cache.documents import JSON, SCHEMA, SHA256, plain, seal, unseal
from keras_trt.cache.upkeep import Item
from keras_trt.errors import CacheError

__all__ = ["EngineCache", "Entry"]

DEFAULT_MAX_BYTES = 10 << 30

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
        max_bytes: The size that it is kept within, by deleting what was used least recently whenever an entry is
            written. What was just written, and what another process holds the lock of, stays in any case. Defaults to
            10 GiB; `None` is no limit.

    Raises:
        CacheError: If the folder is in the home of the user, who has none.
        ValueError: If `path` is empty, or `max_bytes` is negative.

    Example:
    >>> cache = keras_trt.EngineCache("engines/", max_bytes=1 << 30)
    >>> fast = keras_trt.accelerate(model, cache=cache)
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, max_bytes: int | None = DEFAULT_MAX_BYTES
    ) -> None:
        if max_bytes is not None and not max_bytes >= 0:  # as NaN is
            raise ValueError(f"`max_bytes` is a size in bytes, or None. Received: max_bytes={max_bytes!r}")
        self._max_bytes = max_bytes
        if path is not None and not os.fspath(path):
            raise ValueError(f"The folder of an engine cache must not be empty. Received: path={path!r}")
        try:
            folder = Path(path or os.environ.get("KERAS_TRT_CACHE") or _user_folder())
            self._path = folder.expanduser().absolute()  # absolute: a later chdir must not move the cache
        except RuntimeError as error:  # from pathlib and platformdirs, for a user without a home, as in many containers
            raise CacheError(f"The engine cache has no folder: {error}. Received: path={path!r}. {_REMEDY}") from error
        self._store_lock = self._path / "locks" / "store.lock"
        self._swept = False
        self._distrusted = False

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
            or not SHA256.fullmatch(sha256)
            or not isinstance(document.get("manifest"), dict)
        ):
            self._drop(path, status, "it names no payload")
            return None
        payload_path = self._file("payloads", sha256, "")
        try:
            with payload_path.open("rb") as file:
                payload_status = os.fstat(file.fileno())
                # A wrong size is not read at all: it may be anything, and larger than the memory.
                payload = file.read() if payload_status.st_size == size else None
        except FileNotFoundError:
            self._drop(path, status, f"its payload {payload_path} is missing")
            return None
        except OSError as error:
            _warn_unreadable(payload_path, error)
            return None
        if payload is None or hashlib.sha256(payload).hexdigest() != sha256:
            self._drop(path, status, f"its payload {payload_path} is damaged")
            self._drop(payload_path, payload_status, "its content does not match its name")
            return None
        upkeep.mark_used(self._path, path)
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
        named = {"payload_sha256": sha256, "payload_size": len(payload), "manifest": plain(dict(manifest), "manifest")}
        sealed = seal({"schema": SCHEMA, "kind": "entry", "key": key, **named})
        payload_path = self._file("payloads", sha256, "")
        with self._writing(f"an engine of {len(payload)} bytes"), self._locked(self._store_lock):
            is_new = not payload_path.exists()
            # Written even if it is there: that costs less than reading it, and mends it if it is damaged.
            status = self._write(payload_path, payload)
            try:
                self._write(path, sealed)
            except BaseException:
                if is_new:  # no entry names it
                    files.unlink_unchanged(payload_path, status)
                raise
            upkeep.mark_used(self._path, path)
            if self._max_bytes is not None:
                upkeep.evict(self._path, self._max_bytes, keep=[key])

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
            self._drop(path, found[1], "it holds no record")
            return None
        upkeep.mark_used(self._path, path)
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
        sealed = seal({"schema": SCHEMA, "kind": "record", "key": key, "record": plain(dict(record), "record")})
        with self._writing("a record"), self._locked(self._store_lock):
            self._write(path, sealed)
        upkeep.mark_used(self._path, path)

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

    def items(self) -> list[Item]:
        """Return all entries and records, least recently used first. Their payloads are not read.

        Raises:
            CacheError: if the folder cannot be read.
        """
        try:
            return upkeep.items(self._path)
        except OSError as error:
            raise CacheError(f"The engine cache {self._path} cannot be read: {error}") from error

    def prune(self, max_bytes: int) -> list[Item]:
        """Delete what was used least recently until the rest is within a size; what others hold the lock of stays.

        Args:
            max_bytes: The size; 0 deletes all that nobody uses.

        Returns:
            What was deleted.

        Raises:
            CacheError: If the folder cannot be written.
        """
        if not self._path.exists():
            return []
        with self._writing("what it deletes"), self._locked(self._store_lock):
            return upkeep.evict(self._path, max_bytes)

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
            files.make_folder(path.parent)
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
        if (others := files.others_can_write(self._path)) is not None:
            if not self._distrusted:
                self._distrusted = True
                _logger.warning("Engine cache: %s is not read, as %s", self._path, others)
            return None
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
            return unseal(raw, kind, key), status
        except ValueError as error:
            self._drop(path, status, str(error))
            return None

    def _drop(self, path: Path, status: os.stat_result, problem: str) -> None:
        gone = True  # for this process, also where it cannot be deleted
        with contextlib.suppress(CacheError), self._locked(self._store_lock):  # nobody mends it at this moment
            gone = files.unlink_unchanged(path, status)
        if gone:  # else it was evicted or mended meanwhile
            _logger.warning("Engine cache: %s is of no use (%s); it is discarded and counts as a miss", path, problem)

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        if (others := files.others_can_write(self._path)) is not None:
            raise CacheError(
                f"The engine cache is not used, as {others}, and what lies there is run. "
                f"Received: path={str(self._path)!r}. Take their rights away (chmod go-w, chown). {_REMEDY}"
            )
        try:
            yield
        except (OSError, NotImplementedError) as error:  # the latter: filelock, where a file system has no locks
            raise CacheError(
                f"The engine cache could not write {what}: {error}. Received: path={str(self._path)!r}. The folder "
                f"must be writable, on a disk with room. {_REMEDY}"
            ) from error

    def _write(self, path: Path, data: bytes) -> os.stat_result:
        folder = self._path / "tmp"  # inside the root: a file can only be moved into place within its file system
        files.make_folder(folder)
        files.make_folder(path.parent)
        if not self._swept:
            files.sweep(folder)
            self._swept = True
        return files.write(path, data, folder)


_REMEDY = "Pass another folder with `cache=`, or set the environment variable KERAS_TRT_CACHE."


def _user_folder() -> str:
    from platformdirs import user_cache_dir

    return user_cache_dir("keras_trt")


def _checked(key: str) -> str:
    # A key becomes a file name: nothing else may reach the file system.
    if not isinstance(key, str) or not SHA256.fullmatch(key):
        raise ValueError(f"A cache key must be 64 lowercase hexadecimal digits. Received: key={key!r}")
    return key


def _warn_unreadable(path: Path, error: OSError) -> None:
    _logger.warning("Engine cache: %s cannot be read (%s); it counts as a miss", path, error)
