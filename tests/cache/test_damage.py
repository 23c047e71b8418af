"""Whatever lies on the disk, reading gives the right bytes or a miss."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keras_trt.cache import EngineCache, Entry, documents
from keras_trt.errors import CacheError

from .layout import KEY, MANIFEST, OTHER, PAYLOAD, RECORD, entry_file, payload_file, record_file, sealed


def change(path: Path, work: Callable[[bytes], bytes]) -> None:
    path.write_bytes(work(path.read_bytes()))


def flip(position: int) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]


PAYLOAD_DAMAGE: dict[str, Callable[[Path], None]] = {
    "first byte": lambda path: change(path, flip(0)),
    "middle byte": lambda path: change(path, flip(len(PAYLOAD) // 2)),
    "last byte": lambda path: change(path, flip(len(PAYLOAD) - 1)),
    "truncated": lambda path: change(path, lambda raw: raw[:-1]),
    "empty": lambda path: change(path, lambda _: b""),
    "longer": lambda path: change(path, lambda raw: raw + b"\0"),
    "missing": Path.unlink,
}
MANIFEST_DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": lambda path: change(path, lambda raw: raw[:-1]),
    "half": lambda path: change(path, lambda raw: raw[: len(raw) // 2]),
    "empty": lambda path: change(path, lambda _: b""),
    "longer": lambda path: change(path, lambda raw: raw + b"\n"),
    "zeros": lambda path: change(path, lambda raw: bytes(len(raw))),
    "no UTF-8": lambda path: change(path, lambda _: b'{"schema": "\xff"}'),
    "a list": lambda path: change(path, lambda _: b"[1]"),
    "a number": lambda path: change(path, lambda _: b"NaN"),
    "too deep": lambda path: change(path, lambda _: b"[" * 100_000),
    "too many digits": lambda path: change(path, lambda _: b"1" * 10_000),
    "no seal": lambda path: change(path, lambda _: b'{"schema": 1}'),
    "other format": lambda path: change(path, lambda raw: json.dumps(json.loads(raw)).encode()),
    "older schema": lambda path: change(path, lambda _: sealed(schema=0)),
    "newer schema": lambda path: change(path, lambda _: sealed(schema=2)),
    "no schema": lambda path: change(path, lambda _: sealed(schema=None)),
    "of another key": lambda path: change(path, lambda _: sealed(key=OTHER)),
    "of another kind": lambda path: change(path, lambda _: sealed(kind="other")),
}
ENTRY_DAMAGE: dict[str, Callable[[Path], None]] = {
    "no size": lambda path: change(path, lambda _: sealed(payload_size=None)),
    "other size": lambda path: change(path, lambda _: sealed(payload_size=len(PAYLOAD) + 1)),
    "other payload": lambda path: change(path, lambda _: sealed(payload_sha256="0" * 64)),
    "path for payload": lambda path: change(path, lambda _: sealed(payload_sha256="../" * 20 + "etc/passwd")),
    "list for payload": lambda path: change(path, lambda _: sealed(payload_sha256=[])),
    "list for manifest": lambda path: change(path, lambda _: sealed(manifest=[])),
}


def damages(table: dict[str, Callable[[Path], None]]) -> list[Any]:
    return [pytest.param(damage, id=name) for name, damage in table.items()]


@pytest.mark.parametrize("damage", damages(PAYLOAD_DAMAGE))
def test_damaged_payload_is_a_miss(
    cache: EngineCache, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    cache.put(OTHER, PAYLOAD, MANIFEST)
    damage(payload_file(cache))
    for key in (KEY, OTHER):
        caplog.clear()
        assert cache.get(key) is None
        assert {record.levelname for record in caplog.records} == {"WARNING"}
        assert str(payload_file(cache)) in caplog.text
        assert not entry_file(cache, key).exists()
    assert not payload_file(cache).exists()
    caplog.clear()
    assert cache.get(KEY) is None
    assert caplog.messages == []  # said once
    cache.put(KEY, PAYLOAD, MANIFEST)
    assert cache.get(KEY) == Entry(PAYLOAD, MANIFEST)


@pytest.mark.parametrize("damage", damages(PAYLOAD_DAMAGE))
def test_put_mends_a_damaged_payload(cache: EngineCache, damage: Callable[[Path], None]) -> None:
    damage(payload_file(cache))
    cache.put(OTHER, PAYLOAD, {})
    assert cache.get(OTHER) == Entry(PAYLOAD, {})
    assert cache.get(KEY) == Entry(PAYLOAD, MANIFEST)


@pytest.mark.parametrize("damage", damages(MANIFEST_DAMAGE | ENTRY_DAMAGE))
def test_damaged_manifest_is_a_miss(
    cache: EngineCache, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(entry_file(cache))
    assert cache.get(KEY) is None
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert str(entry_file(cache)) in caplog.text
    assert not entry_file(cache).exists()
    cache.put(KEY, PAYLOAD, MANIFEST)
    assert cache.get(KEY) == Entry(PAYLOAD, MANIFEST)


@pytest.mark.parametrize("damage", damages(MANIFEST_DAMAGE | ENTRY_DAMAGE))
def test_damaged_manifests_are_listed_and_pruned(cache: EngineCache, damage: Callable[[Path], None]) -> None:
    damage(entry_file(cache))
    change(record_file(cache), lambda _: documents.seal({"schema": 1, "kind": "record", "key": KEY, "record": 1}))
    (cache.path / "entries" / "notes").mkdir()
    notes = cache.path / "entries" / "notes" / "of a user.json"
    notes.touch()
    assert sorted(item.kind for item in cache.items()) == ["entry", "record"]
    assert all(isinstance(item.manifest, dict) for item in cache.items())
    cache.prune(0)
    assert [path for path in cache.path.rglob("*") if path.is_file() and path.parent.name != "locks"] == [notes]


@pytest.mark.parametrize("damage", damages(MANIFEST_DAMAGE))
def test_damaged_record_is_a_miss(
    cache: EngineCache, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(record_file(cache))
    assert cache.get_record(KEY) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(record_file(cache)) in caplog.text
    assert not record_file(cache).exists()
    cache.put_record(KEY, RECORD)
    assert cache.get_record(KEY) == RECORD


def test_record_that_holds_none(cache: EngineCache, caplog: pytest.LogCaptureFixture) -> None:
    change(record_file(cache), lambda _: documents.seal({"schema": 1, "kind": "record", "key": KEY, "record": 1}))
    assert cache.get_record(KEY) is None
    assert str(record_file(cache)) in caplog.text


@pytest.mark.parametrize("bit", [1, 0x20, 0x80])
def test_any_flipped_bit_is_noticed(cache: EngineCache, bit: int, count: Callable[[str], None]) -> None:
    whole = {path: path.read_bytes() for path in (entry_file(cache), payload_file(cache), record_file(cache))}
    for path, raw in whole.items():
        read = cache.get_record if path == record_file(cache) else cache.get
        for position in range(len(raw)):
            for other, content in whole.items():
                other.write_bytes(content)
            path.write_bytes(raw[:position] + bytes([raw[position] ^ bit]) + raw[position + 1 :])
            assert read(KEY) is None, (path, position)
        path.write_bytes(raw)
    cache.put(KEY, PAYLOAD, MANIFEST)
    assert (cache.get(KEY), cache.get_record(KEY)) == (Entry(PAYLOAD, MANIFEST), RECORD)
    flips = sum(map(len, whole.values()))
    count(f"bit {bit:#x} of each byte of an entry and a record flipped: {flips} of {flips} found")


def test_folder_in_place_of_a_file(cache: EngineCache, caplog: pytest.LogCaptureFixture) -> None:
    for path in (entry_file(cache), payload_file(cache)):
        raw = path.read_bytes()
        path.unlink()
        path.mkdir()
        caplog.clear()
        assert cache.get(KEY) is None
        assert str(path) in caplog.text
        with pytest.raises(CacheError):
            cache.put(KEY, PAYLOAD, MANIFEST)
        assert list((cache.path / "tmp").iterdir()) == []
        path.rmdir()
        path.write_bytes(raw)
    assert cache.get(KEY) == Entry(PAYLOAD, MANIFEST)
