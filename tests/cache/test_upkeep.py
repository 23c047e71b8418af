"""The size limit, what is deleted first and what never, and folders that others can write to."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keras_trt.cache import EngineCache, Entry, digest
from keras_trt.errors import CacheError

from . import test_faults

KIB = 1 << 10
KEYS = [digest("engine", {"number": number}) for number in range(8)]


def payload(number: int) -> bytes:
    return bytes([number]) * (100 * KIB)


def put(cache: EngineCache, *numbers: int) -> None:
    for number in numbers:
        cache.put(KEYS[number], payload(number), {"number": number})


def held(cache: EngineCache) -> list[int]:
    return [
        number for number, key in enumerate(KEYS) if (cache.path / "entries" / key[:2] / f"{key[2:]}.json").exists()
    ]


def payload_files(cache: EngineCache) -> int:
    return len(list((cache.path / "payloads").glob("*/*")))


@pytest.fixture
def small(tmp_path: Path) -> EngineCache:
    """Has room for three entries and their manifests."""
    return EngineCache(tmp_path / "cache", max_bytes=310 * KIB)


def test_what_was_used_least_recently_goes_first(small: EngineCache) -> None:
    put(small, 0, 1, 2)
    assert held(small) == [0, 1, 2]
    assert small.get(KEYS[0]) is not None
    put(small, 3)
    assert held(small) == [0, 2, 3]
    put(small, 4)
    assert held(small) == [0, 3, 4]
    assert payload_files(small) == 3
    assert small.get(KEYS[3]) == Entry(payload(3), {"number": 3})
    assert [item.key for item in small.items()] == [KEYS[0], KEYS[4], KEYS[3]]


def test_an_entry_larger_than_the_limit_is_kept_until_the_next(small: EngineCache) -> None:
    put(small, 0, 1)
    small.put(KEYS[5], bytes(500 * KIB), {})
    assert held(small) == [5]
    put(small, 2)
    assert held(small) == [2]


def test_no_limit(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, max_bytes=None)
    put(cache, *range(8))
    assert held(cache) == list(range(8))
    for size in (-1, float("nan")):
        with pytest.raises(ValueError, match="max_bytes"):
            EngineCache(tmp_path, max_bytes=size)  # type: ignore[arg-type]


def test_a_clock_that_is_set_back(small: EngineCache, count: Callable[[str], None]) -> None:
    put(small, 0, 1)
    future = time.time() + 10 * 365 * 24 * 60 * 60  # the clock was ahead when these were used
    for path in [*(small.path / "entries").rglob("*.json"), small.path / "locks" / "used"]:
        os.utime(path, (future, future))
    put(small, 2)
    assert small.get(KEYS[1]) is not None
    put(small, 3)
    assert held(small) == [1, 2, 3]
    put(small, 4)
    assert held(small) == [1, 3, 4]
    count("clock set back by 10 years: 2 evictions, each of what was used least recently")


def test_a_clock_that_was_ahead_once_sweeps_nothing_young(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    put(cache, 0)
    young = tmp_path / "tmp" / "young"
    young.write_bytes(b"half an eng")
    future = time.time() + 10 * 365 * 24 * 60 * 60
    os.utime(young, (future, future))
    put(EngineCache(tmp_path), 1)
    assert young.exists()


def test_what_is_locked_is_in_use(small: EngineCache) -> None:
    put(small, 0, 1, 2)
    with small.lock(KEYS[0]):
        put(small, 3)
        assert held(small) == [0, 2, 3]
        assert small.prune(0)
        assert held(small) == [0]
    small.prune(0)
    assert held(small) == []
    assert payload_files(small) == 0


def test_what_another_process_holds_is_in_use(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.put(test_faults.KEY, payload(0), {})
    process = test_faults.start("hold", tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert cache.prune(0) == []
    process.kill()
    process.communicate()
    assert [item.key for item in cache.prune(0)] == [test_faults.KEY]


def test_a_shared_payload_goes_with_the_last_that_names_it(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    for number in (0, 1):
        cache.put(KEYS[number], payload(9), {})
    assert payload_files(cache) == 1
    with cache.lock(KEYS[1]):
        cache.prune(0)
    assert cache.get(KEYS[1]) == Entry(payload(9), {})
    cache.prune(0)
    assert payload_files(cache) == 0


def test_payloads_that_nothing_names_go_first(small: EngineCache) -> None:
    put(small, 0, 1)
    small.put(KEYS[1], b"another", {})  # its first payload is of no use now
    assert payload_files(small) == 3
    put(small, 2, 3)
    assert held(small) == [0, 1, 2, 3]


def test_records_count_and_go_too(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    for key in KEYS:
        cache.put_record(key, {"text": "x" * 1000})
    assert cache.get_record(KEYS[0]) is not None
    size = cache.items()[0].size_bytes
    assert [item.key for item in cache.prune(2 * size)] == KEYS[1:7]
    assert [item.key for item in cache.items()] == [KEYS[7], KEYS[0]]


def test_damaged_manifests_are_listed_and_deleted(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    put(cache, 0)
    (item,) = cache.items()
    item.path.write_bytes(b"{")
    (item,) = cache.items()
    assert (item.key, item.manifest, item.payload) == (KEYS[0], {}, None)
    cache.prune(0)
    assert held(cache) == []
    assert payload_files(cache) == 0


def test_nothing_to_prune(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "none")
    assert cache.prune(0) == []
    assert cache.items() == []
    assert not cache.path.exists()


def test_writers_and_evictors_at_once(tmp_path: Path, count: Callable[[str], None]) -> None:
    """Entries come and go under many threads: each read gives the right bytes or nothing."""
    root, wrong, hits = tmp_path / "cache", [], [0]

    def work(seed: int) -> None:
        cache = EngineCache(root, max_bytes=310 * KIB)
        try:
            for turn in range(12):
                number = (seed + turn * 3) % len(KEYS)
                put(cache, number)
                other = (seed * turn + 1) % len(KEYS)
                found = cache.get(KEYS[other])
                hits[0] += found is not None
                if found not in (None, Entry(payload(other), {"number": other})):
                    wrong.append(other)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert hits[0] > 0
    cache = EngineCache(root)
    assert sum(item.size_bytes for item in cache.items()) <= 310 * KIB
    assert payload_files(cache) == len(held(cache))
    count(f"72 writes and reads by 6 threads beside evictions: {hits[0]} hits, 0 wrong")


# Folders that others can write to.

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX rights")
as_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="giving files away needs root")


def refused(cache: EngineCache, why: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "keras_trt.cache"):
        assert cache.get(KEYS[0]) is None
        assert cache.get_record(KEYS[0]) is None
    assert len(caplog.messages) == 1  # said once
    assert why in caplog.text
    for write in (lambda: put(cache, 1), lambda: cache.put_record(KEYS[1], {}), lambda: cache.prune(0)):
        with pytest.raises(CacheError, match=f"(?s){why}.*Received.*chmod.*KERAS_TRT_CACHE"):
            write()
    with pytest.raises(CacheError, match=why), cache.lock(KEYS[0]):
        pass


@posix
@pytest.mark.parametrize(("mode", "why"), [(0o777, "every user"), (0o1777, "every user"), (0o702, "every user")])
def test_a_folder_that_every_user_can_write_to(
    mode: int, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(EngineCache(tmp_path), 0)
    tmp_path.chmod(mode)
    refused(EngineCache(tmp_path), why, caplog)
    tmp_path.chmod(0o755)
    assert EngineCache(tmp_path).get(KEYS[0]) == Entry(payload(0), {"number": 0})
    tmp_path.chmod(0o700)


@as_root
def test_a_folder_of_a_group_or_of_another_user(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(EngineCache(tmp_path), 0)
    tmp_path.chmod(0o770)
    assert EngineCache(tmp_path).get(KEYS[0]) is not None  # root's own group has no other member
    os.chown(tmp_path, 0, test_faults.NOBODY)
    refused(EngineCache(tmp_path), "the group 65534", caplog)
    tmp_path.chmod(0o700)
    os.chown(tmp_path, test_faults.NOBODY, 0)
    refused(EngineCache(tmp_path), "another user, 65534", caplog)
    os.chown(tmp_path, 0, 0)
    assert EngineCache(tmp_path).get(KEYS[0]) is not None


@as_root
def test_two_users(open_folder: Path, count: Callable[[str], None]) -> None:
    """One cannot see the other's cache; a folder of root that all may read is read by both, written by one."""
    private, public = open_folder / "private", open_folder / "public"
    for root in (private, public):
        put(EngineCache(root), 0)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    for path in [public, *public.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    code = f"""
import os, sys
sys.path.insert(0, {str(test_faults.REPOSITORY)!r})
import filelock, platformdirs
from keras_trt.cache import EngineCache, Entry
from keras_trt.errors import CacheError
os.setgroups([]); os.setgid(65534); os.setuid(65534)
private, public = EngineCache({str(private)!r}), EngineCache({str(public)!r})
key = {KEYS[0]!r}
assert private.get(key) is None
assert public.get(key) == Entry(b"\\0" * {100 * KIB}, {{"number": 0}})
for cache in (private, public):
    for write in (lambda: cache.put(key, b"bad", {{}}), lambda: cache.discard(key), lambda: cache.prune(0)):
        try:
            write()
        except CacheError:
            continue
        raise AssertionError(cache)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    for root in (private, public):
        assert EngineCache(root).get(KEYS[0]) == Entry(payload(0), {"number": 0})
    count("two users, 6 writes by the wrong one: 6 refused, 0 wrong, 0 lost")


def test_an_entry_that_is_evicted_while_it_is_read_is_a_miss_and_no_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Overtaken(EngineCache):
        def _read_document(self, path: Path, kind: str, key: str) -> Any:
            found = super()._read_document(path, kind, key)
            EngineCache(tmp_path).prune(0)
            return found

    key = digest("engine", {})
    EngineCache(tmp_path).put(key, b"plan", {})
    assert Overtaken(tmp_path).get(key) is None
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
