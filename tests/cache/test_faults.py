"""The cache under real faults: many processes, SIGKILL, missing rights, a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import keras_trt.cache
from keras_trt.cache import EngineCache, Entry
from keras_trt.errors import CacheError

KEY = "0" * 64
NOBODY = 65534
CHILDREN = Path(__file__).with_name("children.py")
REPOSITORY = Path(keras_trt.cache.__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork, signals and POSIX rights")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", str(CHILDREN), *map(str, arguments)]


def start(*arguments: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd="/"
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Return what the process has counted."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, f"{out}\n{err}"
    return out.strip()


def test_sixteen_processes_make_one_build(tmp_path: Path, count: Callable[[str], None]) -> None:
    log, go = tmp_path / "log", tmp_path / "go"
    processes = [start("build_once", tmp_path / "cache", log, go) for _ in range(16)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    go.touch()
    for process in processes:
        finish(process)
    builds = len(log.read_text().splitlines())
    count(f"16 processes at once: {builds} build, 16 right answers")
    assert builds == 1


def test_threads_make_one_build(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    barrier = threading.Barrier(8)
    builds, failures = [], []

    def run() -> None:
        try:
            barrier.wait()
            with cache.lock(KEY):
                if cache.get(KEY) is None:
                    builds.append(threading.get_ident())
                    time.sleep(0.05)  # others must be waiting meanwhile
                    cache.put(KEY, b"engine", {})
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(builds) == 1


def test_threads_may_make_the_folders_at_once(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)
    failures = []

    def run() -> None:
        for number in range(50):
            cache = EngineCache(tmp_path / str(number) / "cache")
            barrier.wait()
            try:
                with cache.lock(KEY):
                    pass
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_lock_excludes_and_is_freed_by_a_kill(tmp_path: Path) -> None:
    from filelock import FileLock, Timeout

    process = start("hold", tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(Timeout):
        FileLock(tmp_path / "locks" / f"{KEY}.lock").acquire(timeout=0)
    with EngineCache(tmp_path).lock("1" * 64):  # another key is free
        pass
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    with EngineCache(tmp_path).lock(KEY):
        pass
    assert (tmp_path / "locks" / f"{KEY}.lock").exists()


def test_lock_is_freed_by_an_exception(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    with pytest.raises(OSError, match="the build failed") as caught, cache.lock(KEY):
        raise OSError("the build failed")
    assert not isinstance(caught.value, CacheError)
    with cache.lock(KEY):
        pass


@pytest.mark.parametrize("before", ["older", "empty"])
def test_writer_killed_at_every_line(tmp_path: Path, before: str, count: Callable[[str], None]) -> None:
    count(finish(start("kill_at_every_line", tmp_path, before)))


def test_writer_killed_at_any_time(tmp_path: Path, count: Callable[[str], None]) -> None:
    count(finish(start("kill_at_any_time", tmp_path, 30)))


@pytest.mark.parametrize("mode", [0o500, 0o000], ids=["read-only", "closed"])
def test_folder_without_rights(open_folder: Path, mode: int, count: Callable[[str], None]) -> None:
    folder = open_folder / "parent"
    folder.mkdir()
    if os.getuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    folder.chmod(mode)
    try:
        count(finish(start("no_rights", folder / "cache")))
    finally:
        folder.chmod(0o700)
    assert list(folder.iterdir()) == []


def test_read_only_cache_still_gives_what_it_has(open_folder: Path, count: Callable[[str], None]) -> None:
    root = open_folder / "cache"
    cache = EngineCache(root)
    cache.put(KEY, b"old" * 50_000, {"build": 1})
    cache.put_record(KEY, {"is": "old"})
    before = [root, *root.rglob("*")]
    for path in before:
        if os.getuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        count(finish(start("read_only", root)))
    finally:
        for path in before:
            path.chmod(0o700)
    assert sorted([root, *root.rglob("*")]) == sorted(before)


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="becoming a user without a home needs root")
def test_user_without_home() -> None:
    finish(start("no_home"))


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    root.write_text("a file")
    cache = EngineCache(root)
    assert cache.get(KEY) is None
    with pytest.raises(CacheError, match="KERAS_TRT_CACHE"):
        cache.put(KEY, b"engine", {})
    with pytest.raises(CacheError, match="KERAS_TRT_CACHE"), cache.lock(KEY):
        pass
    assert root.read_text() == "a file"


def test_full_disk(tmp_path: Path, count: Callable[[str], None]) -> None:
    if sys.platform != "linux":
        pytest.skip("mounting a small disk is done for Linux alone")
    disk = tmp_path / "disk"
    disk.mkdir()
    # In a mount namespace of its own: nothing stays mounted, whatever happens.
    namespace = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    mount = f"mount -t tmpfs -o size=1M tmpfs '{disk}'"
    tried = subprocess.run([*namespace, "sh", "-c", mount], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {tried.stderr.strip()}")
    process = subprocess.run(
        [*namespace, "sh", "-c", f'{mount} && exec "$@"', "sh", *command("full_disk", disk)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert process.returncode == 0, process.stdout + process.stderr
    count(process.stdout.strip())


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    (tmp_path / "tmp").mkdir()
    left, young = tmp_path / "tmp" / "left", tmp_path / "tmp" / "young"
    for path in (left, young):
        path.write_bytes(b"half an eng")
    two_days_ago = time.time() - 2 * 24 * 60 * 60
    os.utime(left, (two_days_ago, two_days_ago))
    assert cache.get(KEY) is None
    assert left.exists()  # reading changes nothing
    cache.put(KEY, b"engine", {})
    assert cache.get(KEY) == Entry(b"engine", {})
    assert not left.exists()
    assert young.exists()
