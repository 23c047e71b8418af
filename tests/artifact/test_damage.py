"""`.ktrt` files that are damaged, made to do harm, unsigned, replaced, or no such files are refused."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from keras_trt.artifact import Artifact
from keras_trt.cache import documents
from keras_trt.errors import ArtifactError, PlanError, VerificationError

from ..models import floats, pair
from .helpers import load

# Damage.


def test_every_flipped_byte_is_found(saved: Path, tmp_path: Path, count: Callable[[str], None]) -> None:
    raw = bytearray(saved.read_bytes())
    path = tmp_path / "model.ktrt"
    path.write_bytes(raw)
    Artifact(path)
    found = 0
    with path.open("r+b", buffering=0) as file:
        for position in range(len(raw)):
            os.pwrite(file.fileno(), bytes([raw[position] ^ (1 << position % 8)]), position)
            with pytest.raises(ArtifactError):
                Artifact(path)
            found += 1
            os.pwrite(file.fileno(), raw[position : position + 1], position)
    Artifact(path)
    count(f"{found} of {len(raw)} flipped bytes of a .ktrt file found")


def test_every_truncation_is_found(saved: Path, tmp_path: Path) -> None:
    raw = saved.read_bytes()
    path = tmp_path / "model.ktrt"
    for size in [*range(0, len(raw), 13), len(raw) - 1]:
        path.write_bytes(raw[:size])
        with pytest.raises(ArtifactError):
            Artifact(path)
    path.write_bytes(raw + b"\0")
    with pytest.raises(ArtifactError):
        Artifact(path)


def test_damage_after_it_was_opened(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.ktrt"
    path.write_bytes(saved.read_bytes())
    file = Artifact(path)
    graph = file.graph()
    position = path.read_bytes().index(graph[100:200])
    with path.open("r+b") as opened:
        opened.seek(position)
        opened.write(b"\0\0")
    with pytest.raises(ArtifactError, match=r"graph\.onnx"):
        file.graph()


# Files made to do harm: their own digests are all right.


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def forge(path: Path, entries: list[tuple[zipfile.ZipInfo, bytes]], patch: Callable[[bytes], bytes] = bytes) -> Path:
    """Write a zip as it is told, with the right digest of the whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that occur twice
        with zipfile.ZipFile(path, "w") as archive:
            for info, data in entries:
                archive.writestr(info, data, info.compress_type)
            archive.comment = b"sha256:" + b"0" * 64
    body = patch(path.read_bytes()[:-64])
    path.write_bytes(body + hashlib.sha256(body).hexdigest().encode())
    return path


def entries(members: dict[str, bytes]) -> list[tuple[zipfile.ZipInfo, bytes]]:
    return [(zipfile.ZipInfo(name), data) for name, data in members.items()]


def with_manifest(members: dict[str, bytes], /, **changed: Any) -> dict[str, bytes]:
    manifest = json.loads(members["manifest.json"])
    del manifest["seal"]
    return members | {"manifest.json": documents.seal(manifest | changed)}


def compressed(name: str, data: bytes) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    return info, data


def _larger(raw: bytes) -> bytes:
    """Let the central directory say that the first member has 3 GiB."""
    place = raw.index(b"PK\x01\x02")
    huge = (3 << 30).to_bytes(4, "little")
    return raw[: place + 20] + huge + huge + raw[place + 28 :]


def _weights_elsewhere(members: dict[str, bytes], path: Path) -> Path:
    graph = onnx.load_from_string(members["graph.onnx"])
    tensor = graph.graph.initializer[0]
    size = len(tensor.raw_data)
    (path.parent / "secret").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "secret"), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    data = graph.SerializeToString()
    listed = json.loads(members["manifest.json"])["members"] | {
        "graph.onnx": [hashlib.sha256(data).hexdigest(), len(data)]
    }
    return forge(path, entries(with_manifest(members, members=listed) | {"graph.onnx": data}))


HARM: dict[str, Callable[[dict[str, bytes], Path], Path]] = {
    "a bomb": lambda m, p: forge(
        p, [compressed("graph.onnx", bytes(50 << 20)), *entries({k: v for k, v in m.items() if k != "graph.onnx"})]
    ),
    "a compressed manifest": lambda m, p: forge(
        p, [compressed("manifest.json", m["manifest.json"]), *entries({k: m[k] for k in list(m)[1:]})]
    ),
    "sizes that are not true": lambda m, p: forge(p, entries(m), _larger),
    "a path upwards": lambda m, p: forge(p, entries(m | {"../../escaped": b"x"})),
    "an absolute path": lambda m, p: forge(p, entries(m | {"/tmp/escaped": b"x"})),  # noqa: S108
    "a member too many": lambda m, p: forge(p, entries(m | {"plans/0": b"x"})),
    "a member that is missing": lambda m, p: forge(p, entries({k: v for k, v in m.items() if k != "graph.onnx"})),
    "a name twice": lambda m, p: forge(p, [*entries(m), (zipfile.ZipInfo("graph.onnx"), m["graph.onnx"])]),
    "another graph": lambda m, p: forge(p, entries(m | {"graph.onnx": m["graph.onnx"][::-1]})),
    "no manifest": lambda m, p: forge(p, entries({k: v for k, v in m.items() if k != "manifest.json"})),
    "a manifest without its seal": lambda m, p: forge(p, entries(m | {"manifest.json": b'{"key": "a", "schema": 1}'})),
    "a manifest that is no JSON": lambda m, p: forge(p, entries(m | {"manifest.json": b"[" * 100_000})),
    "a newer schema": lambda m, p: forge(p, entries(with_manifest(m, schema=2))),
    "another kind": lambda m, p: forge(p, entries(with_manifest(m, kind="entry"))),
    "a precision of tomorrow": lambda m, p: forge(p, entries(with_manifest(m, precision="fp3"))),
    "a path among its members": lambda m, p: forge(p, entries(with_manifest(m, members={"../x": ["0" * 64, 1]}))),
    "numbers for its members": lambda m, p: forge(p, entries(with_manifest(m, members=3))),
    "no signature": lambda m, p: forge(p, entries(with_manifest(m, signature=None))),
    "shapes of other inputs": lambda m, p: forge(p, entries(with_manifest(m, profile={"z": [[1], [2], [3]]}))),
    "objects for rows": lambda m, p: forge(
        p, entries(with_manifest(m, golden={"input": [["object", [1]]], "output": [["float32", [1]]]}))
    ),
    "rows of another size": lambda m, p: forge(
        p, entries(with_manifest(m, golden={"input": [["float32", [1 << 40]]], "output": [["float32", [1]]]}))
    ),
    "another rank of its rows": lambda m, p: forge(
        p, entries(with_manifest(m, golden={"input": [["float32", [16]]], "output": [["float32", [4, 3]]]}))
    ),
    "text for a flag": lambda m, p: forge(p, entries(with_manifest(m, rows_independent="false"))),
    "a level that TensorRT has not": lambda m, p: forge(p, entries(with_manifest(m, optimization_level=1 << 70))),
    "no inputs": lambda m, p: forge(p, entries(with_manifest(m, profile={}, input_names=[]))),
    "weights that lie elsewhere": _weights_elsewhere,
    "an empty zip": lambda _, p: forge(p, []),
}


@pytest.mark.parametrize("harm", list(HARM))
def test_harm_is_refused_and_nothing_is_run(
    harm: str, saved: Path, tmp_path: Path, ran: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "a" / "b" / "c"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    path = HARM[harm](members_of(saved), inner / "model.ktrt")
    before = {file for file in tmp_path.rglob("*") if file.name != "cache"}
    with pytest.raises(ArtifactError, match=r"model\.ktrt"):
        load(path)
    assert ran == []
    assert {file for file in tmp_path.rglob("*") if file.name != "cache"} == before


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each value in a JSON document."""
    children = document.items() if isinstance(document, dict) else enumerate(document)
    for key, child in children:
        yield (*path, key)
        if isinstance(child, dict | list):
            yield from places(child, (*path, key))


def test_any_value_of_a_manifest_may_be_another(saved: Path, tmp_path: Path, count: Callable[[str], None]) -> None:
    """It is refused by name; or it changes nothing that counts, and the engine still gives the golden answers."""
    members = members_of(saved)
    manifest = json.loads(members["manifest.json"])
    path, refused, loaded = tmp_path / "model.ktrt", 0, 0
    for place in places(manifest):
        for value in (None, True, 0, -1, 1 << 62, 1 << 70, 1.5, "", "x", "object", [], [None], {}, {"x": 1}):
            changed = json.loads(members["manifest.json"])
            *parents, last = place
            functools.reduce(operator.getitem, parents, changed)[last] = value
            del changed["seal"]
            forge(path, entries(members | {"manifest.json": documents.seal(changed)}))
            try:
                load(path).predict(floats(4)(2))
            except (ArtifactError, VerificationError, PlanError):
                refused += 1
            else:
                loaded += 1
    assert refused > 10 * loaded
    count(f"{refused + loaded} manifests with a value of another type or size: {refused} refused, {loaded} harmless")


def test_a_file_that_is_replaced_while_it_is_loaded(saved: Path, tmp_path: Path) -> None:
    """As a training does it beside a server: what is loaded is the older or the newer one, whole."""
    path, other = tmp_path / "model.ktrt", tmp_path / "other.ktrt"
    path.write_bytes(saved.read_bytes())
    pair("dict outputs")[1].save(other)
    with Artifact(path) as file:
        other.replace(path)
        assert file.graph() == Artifact(saved).graph()
        np.testing.assert_array_equal(file.golden()[0][0], Artifact(saved).golden()[0][0])
    with pytest.raises(ArtifactError, match="replaced"):
        file.graph()
    file = Artifact(path)
    del file  # nothing is left open: that would be a warning, and so an error


def test_signatures(saved: Path, tmp_path: Path, ran: list[bytes]) -> None:
    path, key = tmp_path / "signed.ktrt", b"a secret"
    pair("sequential")[1].save(path, key=key)
    load(path, key=key)
    load(path)  # whoever asks for no signature gets none checked
    assert load(saved).backend == "onnxruntime"
    ran.clear()
    signed = members_of(path)
    forged = with_manifest(signed, rows_independent=False)
    for bad in (
        saved,
        forge(tmp_path / "1", entries(forged)),
        forge(tmp_path / "2", entries({**signed, "signature": b"0" * 64})),
        forge(tmp_path / "3", entries({**signed, "signature": b""})),
        forge(tmp_path / "4", entries({**signed, "signature": signed["signature"][:-1] + b"\n"})),
    ):
        with pytest.raises(ArtifactError, match="not signed with this key"):
            load(bad, key=key)
    for other in (b"another secret", b"a secret "):
        with pytest.raises(ArtifactError, match="not signed with this key"):
            load(path, key=other)
    with pytest.raises(ArtifactError, match=r"graph\.onnx"):  # signed is the manifest, and what it says of the rest
        load(forge(tmp_path / "5", entries({**signed, "graph.onnx": signed["graph.onnx"][::-1]})), key=key)
    assert ran == []
    for empty in (b"", "text"):
        with pytest.raises(ValueError, match="key"):
            pair("sequential")[1].save(tmp_path / "6.ktrt", key=empty)  # type: ignore[arg-type]
        for file in (path, saved):
            with pytest.raises(ValueError, match="key"):
                load(file, key=empty)
    assert not (tmp_path / "6").exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip" * 100, bytes(10_000)], ids=range(4))
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.ktrt").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"no \.ktrt file"):
        load(tmp_path / "model.ktrt")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing.ktrt")
