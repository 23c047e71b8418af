"""What the processes of test_faults.py do: `python children.py NAME ARGUMENT…`. Each asserts for itself."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

# All of them before rights are given up: the interpreter may lie where the other user cannot read.
import filelock  # noqa: F401
import platformdirs  # noqa: F401

from keras_trt.cache import EngineCache, Entry, files, store
from keras_trt.errors import CacheError

KEY, OTHER = "0" * 64, "1" * 64
OLD, NEW = (b"old" * 50_000, {"build": 1}), (b"new!" * 300_000, {"build": 2})
NOBODY = 65534


def give_up_rights() -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def refused(call: Any, root: str) -> CacheError:
    try:
        call()
    except CacheError as caught:
        error = caught
    else:
        raise AssertionError("no CacheError")
    assert isinstance(error.__cause__, OSError), error.__cause__
    for part in (root, "Received", "cache=", "KERAS_TRT_CACHE"):
        assert part in str(error), (part, str(error))
    return error


def locked(cache: EngineCache) -> None:
    with cache.lock(KEY):
        pass


def build_once(root: str, log: str, start: str) -> None:
    cache = EngineCache(root)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not Path(start).exists():  # so that all of them arrive together, however slowly they started
        time.sleep(0.001)
    with cache.lock(KEY):
        entry = cache.get(KEY)
        if entry is None:
            with Path(log).open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.05)  # a build takes its time: others must be waiting meanwhile
            cache.put(KEY, *NEW)
    assert cache.get(KEY) == Entry(*NEW)


def hold(root: str) -> None:
    with EngineCache(root).lock(KEY):
        sys.stdout.write("held\n")
        sys.stdout.flush()
        time.sleep(600)


def killed(work: Any, after: float | None = None) -> bool:
    """Run `work` in a fork, and say if it was killed: by itself, or by us after so many seconds."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def check_after_kill(cache: EngineCache, allowed: list[Entry | None]) -> None:
    assert cache.get(KEY) in allowed
    signal.alarm(60)  # a lock that its dead holder still had would end this process here
    with cache.lock(KEY):
        signal.alarm(0)
        cache.put(OTHER, *OLD)
    assert cache.get(OTHER) == Entry(*OLD)


def kill_at_every_line(root: str, with_older: str) -> None:
    """Kill a writer before the first, the second, … line of the store that it runs, until it lives to the end."""
    older = Entry(*OLD) if with_older == "older" else None
    seen: set[str] = set()
    line = 0
    while True:
        cache = EngineCache(Path(root, str(line)))
        if older is not None:
            cache.put(KEY, *OLD)

        def put(cache: EngineCache = cache, last: int = line) -> None:
            lines = 0

            def trace(frame: FrameType, event: str, _: Any) -> Any:
                nonlocal lines
                if frame.f_code.co_filename not in (store.__file__, files.__file__):
                    return None
                if event in ("line", "return"):
                    if lines == last:
                        os.kill(os.getpid(), signal.SIGKILL)
                    lines += 1
                return trace

            sys.settrace(trace)
            with cache.lock(KEY):
                cache.put(KEY, *NEW)

        if not killed(put):
            break
        found = cache.get(KEY)
        seen.add("nothing" if found is None else "old" if found == Entry(*OLD) else "new")
        check_after_kill(cache, [older, Entry(*NEW)])
        line += 1
    assert cache.get(KEY) == Entry(*NEW)
    # The kills came before and after the entry appeared, or they would have proved nothing.
    assert seen == {"old" if older else "nothing", "new"}, seen
    assert line > 50, line
    sys.stdout.write(f"{line} kills, one before each line: 0 wrong, 0 lost, 0 hangs\n")


def kill_at_any_time(root: str, kills: str) -> None:
    cache = EngineCache(root)
    count = int(kills)
    contents = [(bytes([number]) * 3_000_000, {"number": number}) for number in range(8)]

    def put_forever() -> None:
        while True:
            for content in contents:
                with cache.lock(KEY):
                    cache.put(KEY, *content)

    found = set()
    for number in range(count):
        assert killed(put_forever, after=0.004 * (number + 1))
        entry = cache.get(KEY)
        found.add(entry is not None)
        check_after_kill(cache, [*(Entry(*content) for content in contents), *([] if True in found else [None])])
    assert True in found
    sys.stdout.write(f"{count} kills at any time: 0 wrong, 0 lost, 0 hangs\n")


def no_rights(root: str) -> None:
    give_up_rights()
    cache = EngineCache(root)
    assert cache.get(KEY) is None
    assert cache.get_record(KEY) is None
    for call in (lambda: cache.put(KEY, *NEW), lambda: cache.put_record(KEY, {}), lambda: locked(cache)):
        error = refused(call, root)
        assert isinstance(error.__cause__, PermissionError)
    sys.stdout.write("3 writes to a folder without rights: 3 refused\n")


def read_only(root: str) -> None:
    give_up_rights()
    cache = EngineCache(root)
    for call in (
        lambda: cache.put(KEY, *NEW),
        lambda: cache.put(OTHER, *NEW),
        lambda: cache.put_record(KEY, {"is": "new"}),
        lambda: cache.discard(KEY),
    ):
        refused(call, root)
        assert cache.get(KEY) == Entry(*OLD)
        assert cache.get_record(KEY) == {"is": "old"}
        assert cache.get(OTHER) is None
    sys.stdout.write("4 writes to a read-only cache: 4 refused, 0 wrong, 0 lost\n")


def no_home() -> None:
    os.environ.pop("HOME", None)
    os.environ.pop("XDG_CACHE_HOME", None)
    os.environ.pop("KERAS_TRT_CACHE", None)
    os.setuid(54321)  # a user that the system does not know
    try:
        EngineCache()
    except CacheError as caught:
        error = caught
    else:
        raise AssertionError("no CacheError")
    assert "KERAS_TRT_CACHE" in str(error)


def all_files(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file()}


def full_disk(root: str) -> None:
    """Run on a small disk that holds nothing else."""
    folder = Path(root, "cache")
    cache = EngineCache(folder)
    cache.put(KEY, *OLD)
    cache.put_record(KEY, {"is": "old"})
    before = all_files(folder)

    def unharmed(call: Any) -> None:
        assert refused(call, root).__cause__.errno == errno.ENOSPC  # type: ignore[union-attr]
        assert all_files(folder) == before
        assert cache.get(KEY) == Entry(*OLD)
        assert cache.get_record(KEY) == {"is": "old"}
        assert cache.get(OTHER) is None

    unharmed(lambda: cache.put(OTHER, *NEW))
    unharmed(lambda: cache.put(KEY, *NEW))
    # A payload that takes the last page: the manifest is what finds no room.
    disk = os.statvfs(root)
    last = b"x" * (disk.f_bavail * disk.f_frsize)
    assert len(last) > 0
    unharmed(lambda: cache.put(OTHER, last, {}))
    path = Path(root, "filler")
    path.write_bytes(last)
    unharmed(lambda: cache.put(OTHER, b"small", {}))
    unharmed(lambda: cache.put_record(KEY, {"is": "new"}))
    path.unlink()
    sys.stdout.write("5 writes to a full disk: 0 wrong, 0 lost, 0 left behind\n")
    cache.put(OTHER, b"small", {})
    assert cache.get(OTHER) == Entry(b"small", {})
    assert hashlib.sha256(b"small").hexdigest()[2:] in {path.name for path in all_files(folder)}


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
