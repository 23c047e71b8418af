from __future__ import annotations

import json
import linecache
import math
import os
import pickle
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_trt.cache import EngineCache, Entry, digest, files

from .layout import KEY, MANIFEST, OTHER, PAYLOAD, RECORD, entry_file, payload_file, record_file

json_leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
json_values = st.recursive(
    json_leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
manifests = st.dictionaries(st.text(max_size=8), json_values, max_size=4)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> EngineCache:
    return EngineCache(tmp_path_factory.mktemp("cache"))


@settings(deadline=None)
@given(payload=st.binary(max_size=2000), manifest=manifests, number=st.integers(0, 3))
def test_round_trip(shared: EngineCache, payload: bytes, manifest: dict[str, Any], number: int) -> None:
    key = digest("engine", {"number": number})
    shared.put(key, payload, manifest)
    entry = shared.get(key)
    assert entry == Entry(payload, manifest)
    # The types too, for 1 == True == 1.0.
    assert json.dumps(entry.manifest, sort_keys=True) == json.dumps(manifest, sort_keys=True)
    shared.put_record(key, manifest)
    assert shared.get_record(key) == manifest


def test_layout(cache: EngineCache) -> None:
    files = {path.relative_to(cache.path) for path in cache.path.rglob("*") if path.is_file()}
    assert files == {
        path.relative_to(cache.path) for path in (entry_file(cache), record_file(cache), payload_file(cache))
    } | {Path("locks", "store.lock"), Path("locks", "used")}
    assert payload_file(cache).read_bytes() == PAYLOAD  # as it is, without a header
    for path in (entry_file(cache), record_file(cache)):
        document = json.loads(path.read_bytes())
        assert document["schema"] == 1
        assert list(document) == sorted(document)
    assert list((cache.path / "tmp").iterdir()) == []


@pytest.mark.skipif(not hasattr(stat, "S_IRWXU"), reason="needs POSIX rights")
def test_only_the_user_can_enter(cache: EngineCache) -> None:
    with cache.lock(KEY):
        pass
    folders = [cache.path, *(path for path in cache.path.rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (entry_file(cache), payload_file(cache))} == {0}


def test_nothing_is_made_before_the_first_write(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "a" / "b")
    assert cache.get(KEY) is None
    assert cache.get_record(KEY) is None
    cache.discard(KEY)
    cache.lock(KEY)
    assert list(tmp_path.iterdir()) == []
    cache.put(KEY, b"", {})
    assert cache.get(KEY) == Entry(b"", {})


def test_put_replaces(cache: EngineCache) -> None:
    cache.put(KEY, b"new", {"new": True})
    assert cache.get(KEY) == Entry(b"new", {"new": True})
    cache.put_record(KEY, {"new": True})
    assert cache.get_record(KEY) == {"new": True}


def test_kinds_of_mappings_and_sequences(cache: EngineCache) -> None:
    cache.put(KEY, b"new", MappingProxyType({"shape": (1, 2), "inner": MappingProxyType({})}))
    assert cache.get(KEY) == Entry(b"new", {"shape": [1, 2], "inner": {}})


def test_discard(cache: EngineCache) -> None:
    cache.put(OTHER, PAYLOAD, {"other": True})  # the same payload
    cache.discard(KEY)
    assert cache.get(KEY) is None
    assert cache.get_record(KEY) is None
    assert cache.get(OTHER) == Entry(PAYLOAD, {"other": True})
    cache.discard(KEY)


def test_caches_are_plain_values(cache: EngineCache) -> None:
    other = pickle.loads(pickle.dumps(cache))  # noqa: S301 - as multiprocessing hands it to a child
    assert other.path == cache.path
    assert other.get(KEY) == Entry(PAYLOAD, MANIFEST)
    assert str(cache.path) in repr(cache)


def test_readers_beside_writers_see_whole_entries(cache: EngineCache) -> None:
    contents = [(bytes([number]) * (10_000 + number), {"number": number}) for number in range(4)]
    allowed = [Entry(PAYLOAD, MANIFEST), *(Entry(*content) for content in contents)]
    done, wrong = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            try:
                entry = cache.get(KEY)
            except BaseException as error:
                wrong.append(error)
                return
            if entry not in allowed:
                wrong.append(entry)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for thread in readers:
        thread.start()
    for _ in range(40):
        for content in contents:
            cache.put(KEY, *content)
    done.set()
    for thread in readers:
        thread.join()
    assert wrong == []


def test_files_are_synced_before_they_appear(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    # A power cut cannot be had here, so the calls that guard against it are watched; they do their work all the same.
    calls: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        calls.append(("sync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        assert Path(source).parent == cache.path / "tmp"
        calls.append(("move", os.stat(source).st_ino))  # noqa: PTH116
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    cache.put(OTHER, b"new", {})
    expected = []
    for path in (payload_file(cache, b"new"), entry_file(cache, OTHER)):
        expected += [("sync", path.stat().st_ino), ("move", path.stat().st_ino), ("sync", path.parent.stat().st_ino)]
    assert calls == expected


def test_damage_that_another_writer_has_mended_is_left_alone(cache: EngineCache) -> None:
    seen = payload_file(cache).stat()
    cache.put(OTHER, PAYLOAD, {})  # the same bytes, in a new file
    files.unlink_unchanged(payload_file(cache), seen)
    assert cache.get(KEY) == Entry(PAYLOAD, MANIFEST)
    files.unlink_unchanged(payload_file(cache), payload_file(cache).stat())
    assert not payload_file(cache).exists()


@pytest.mark.parametrize("damaged", [payload_file, entry_file, record_file])
def test_what_is_mended_beside_a_deletion_stays(cache: EngineCache, damaged: Callable[[EngineCache], Path]) -> None:
    """The reader stops between its last look at the damaged file and the deletion, while another one mends it."""
    damaged(cache).write_bytes(b"damage")

    def mend() -> None:
        cache.put(KEY, PAYLOAD, MANIFEST)
        cache.put_record(KEY, RECORD)

    writer = threading.Thread(target=mend)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not files.unlink_unchanged.__code__:
            return None
        if event == "line" and "unlink" in linecache.getline(files.__file__, frame.f_lineno) and not writer.ident:
            writer.start()
            writer.join(1)  # ends where nothing keeps it
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        cache.get(KEY)
        cache.get_record(KEY)
    finally:
        sys.settrace(before)
    writer.join()
    assert cache.get(KEY) == Entry(PAYLOAD, MANIFEST)
    assert cache.get_record(KEY) == RECORD


UNSAFE = [
    "",
    "a",
    "A" * 64,
    "g" * 64,
    "a" * 63,
    "a" * 65,
    "a" * 64 + "\n",
    "../" + "a" * 61,
    "a/" * 32,
    "\0" * 64,
    None,
]


@pytest.mark.parametrize("key", UNSAFE, ids=repr)
def test_unsafe_keys_are_refused(tmp_path: Path, key: Any) -> None:
    cache = EngineCache(tmp_path / "cache")
    calls: list[Callable[[], Any]] = [
        lambda: cache.get(key),
        lambda: cache.put(key, b"", {}),
        lambda: cache.get_record(key),
        lambda: cache.put_record(key, {}),
        lambda: cache.discard(key),
        lambda: cache.lock(key),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"64 lowercase hexadecimal digits\. Received: key="):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("manifest", "error", "message"),
    [
        pytest.param({"a": [b"1"]}, TypeError, r"manifest\['a'\]\[0\].*b'1'", id="bytes"),
        pytest.param({"a": {1: 2}}, TypeError, r"manifest\['a'\].*\{1: 2\}", id="key that is no string"),
        pytest.param({1: 2}, TypeError, r"manifest.*\{1: 2\}", id="name that is no string"),
        pytest.param({"a": {1}}, TypeError, r"manifest\['a'\].*\{1\}", id="set"),
        pytest.param({"a": math.nan}, ValueError, r"manifest\['a'\].*finite.*nan", id="nan"),
        pytest.param({"a": [-math.inf]}, ValueError, r"manifest\['a'\]\[0\].*finite.*-inf", id="infinity"),
    ],
)
def test_put_refuses_what_is_no_json(cache: EngineCache, manifest: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cache.put(KEY, b"new", manifest)
    with pytest.raises(error, match=message.replace("manifest", "record", 1)):
        cache.put_record(KEY, manifest)
    assert cache.get(KEY) == Entry(PAYLOAD, MANIFEST)
    assert cache.get_record(KEY) == RECORD


@pytest.mark.parametrize(
    "payload", ["text", bytearray(b"1"), memoryview(b"1"), None], ids=lambda value: type(value).__name__
)
def test_put_refuses_what_is_no_bytes(cache: EngineCache, payload: Any) -> None:
    with pytest.raises(TypeError, match=f"must be bytes. Received: {type(payload).__name__}"):
        cache.put(KEY, payload, {})


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import platformdirs

    monkeypatch.setenv("KERAS_TRT_CACHE", str(tmp_path / "from env"))
    assert EngineCache().path == tmp_path / "from env"
    assert EngineCache(tmp_path / "given").path == tmp_path / "given"
    assert EngineCache(str(tmp_path / "given")).path == tmp_path / "given"
    for unset in (lambda: monkeypatch.setenv("KERAS_TRT_CACHE", ""), lambda: monkeypatch.delenv("KERAS_TRT_CACHE")):
        unset()
        assert EngineCache().path == Path(platformdirs.user_cache_dir("keras_trt"))


def test_folder_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert EngineCache("relative").path == tmp_path / "relative"
    assert EngineCache("~/engines").path == tmp_path / "home" / "engines"
    with pytest.raises(ValueError, match="must not be empty"):
        EngineCache("")
