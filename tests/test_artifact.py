"""`.ktrt` files: what `save` writes `load` runs, with the base install alone; whatever else lies there is refused."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import operator
import os
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from packaging.requirements import Requirement

import keras_trt
from keras_trt import artifact
from keras_trt.artifact import Artifact, Contents, Plan
from keras_trt.backends.onnxruntime import OnnxRuntimeBackend
from keras_trt.cache import documents
from keras_trt.errors import ArtifactError, EngineLoadError, ExportError, FallbackWarning, PlanError, VerificationError
from keras_trt.specs import flatten

from . import head_models
from .models import CASES, accelerate, dependent, floats, keras, kl, pair, rows_differ, same, warns_once

PACKAGE = Path(keras_trt.__file__).parent


def load(path: Any, **options: Any) -> keras_trt.TRTModel:
    return keras_trt.load(path, **{"backend": "onnxruntime", "verbose": 0, **options})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small artifact. Tests must not change it."""
    path = tmp_path_factory.mktemp("saved") / "model.ktrt"
    pair("sequential")[1].save(path)
    return path


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What has been given to the backend to load or build."""
    given: list[bytes] = []
    for name in ("load", "build"):
        real = getattr(OnnxRuntimeBackend, name)

        def watched(self: Any, data: bytes, *rest: Any, real: Any = real, **keywords: Any) -> Any:
            given.append(data)
            return real(self, data, *rest, **keywords)

        monkeypatch.setattr(OnnxRuntimeBackend, name, watched)
    return given


@pytest.mark.parametrize("name", ["nested inputs", "dict outputs", "fixed batch", "uint8", "subclassed", "reversed"])
def test_what_is_loaded_answers_as_the_model(name: str, tmp_path: Path) -> None:
    model, fast = pair(name)
    x = CASES[name].data(10)
    expected = model.predict(x, verbose=0)
    rows_differ(expected)
    fast.save(tmp_path / "model.ktrt")
    loaded = load(tmp_path / "model.ktrt")
    assert loaded.report().origin == "artifact"
    assert loaded.report().rows_independent == fast.report().rows_independent
    assert all(difference.within for difference in loaded.report().differences)
    same(expected, loaded.predict(x, verbose=0))
    same(model.predict_on_batch(x), loaded.predict_on_batch(x))


def test_half_precision(tmp_path: Path) -> None:
    model = CASES["image"].build()
    x = CASES["image"].data(10)
    accelerate(model, precision="fp16").save(tmp_path / "model.ktrt")
    loaded = load(tmp_path / "model.ktrt")
    assert loaded.precision == "fp16"
    expected = model.predict(x, verbose=0)
    assert np.linalg.norm(loaded.predict(x, verbose=0) - expected) < 1e-2 * np.linalg.norm(expected)


def test_bfloat16_without_tensorflow(tmp_path: Path) -> None:
    """Outside of TensorFlow numpy knows no bfloat16 of its own."""
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, dtype="mixed_bfloat16")])
    accelerate(model).save(tmp_path / "model.ktrt")
    code = (
        "import numpy as np, keras_trt\n"
        "fast = keras_trt.load('model.ktrt', backend='onnxruntime', verbose=0)\n"
        "print(fast.predict(np.ones((2, 4), 'float32')).dtype)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        check=False,
    )
    assert (done.stdout, done.stderr) == ("bfloat16\n", "")


def test_from_a_warm_start_and_without_a_cache(tmp_path: Path) -> None:
    model = CASES["sequential"].build()
    cache = tmp_path / "cache"
    written = []
    for place in (None, cache, cache):
        fast = accelerate(model, cache=place)
        fast.save(tmp_path / "model.ktrt")
        written.append((fast.report().origin, (tmp_path / "model.ktrt").read_bytes()))
    assert [origin for origin, _ in written] == ["built", "built", "cache"]
    assert len({data for _, data in written}) == 1  # the same to the byte
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_graph_that_the_cache_has_lost(tmp_path: Path) -> None:
    import shutil

    model = CASES["sequential"].build()
    accelerate(model, cache=tmp_path / "cache")
    fast = accelerate(model, cache=tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(keras_trt.CacheError, match=r"keras_trt\.accelerate again"):
        fast.save(tmp_path / "model.ktrt")
    assert not (tmp_path / "model.ktrt").exists()


def base_install(folder: Path) -> None:
    """Link what `pip install keras-trt` brings, and nothing else, into a folder."""
    waiting, done = ["keras-trt"], set()
    while waiting:
        name = waiting.pop()
        if name in done:
            continue
        done.add(name)
        distribution = importlib.metadata.distribution(name)
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            target = Path(str(distribution.locate_file(top)))
            if name != "keras-trt" and not (folder / top).exists():
                (folder / top).symlink_to(target)
    (folder / "keras_trt").symlink_to(PACKAGE)


def test_the_base_install_alone_loads_it(tmp_path: Path) -> None:
    base = tmp_path / "packages"
    base.mkdir()
    base_install(base)
    model, fast = pair("nested inputs")
    x = CASES["nested inputs"].data(10)
    fast.save(tmp_path / "model.ktrt")
    np.savez(tmp_path / "x.npz", one=x["one"], pair_0=x["pair"][0], pair_1=x["pair"][1])
    code = f"""
import json, sys, warnings
warnings.simplefilter("error")
sys.path.insert(0, {str(base)!r})
import importlib.util
assert not any(importlib.util.find_spec(name) for name in ("tensorflow", "keras", "tensorrt_rtx", "tf2onnx", "onnx_ir"))
import numpy as np
import keras_trt
data = np.load("x.npz")
fast = keras_trt.load("model.ktrt", cache=None)
x = {{"one": data["one"], "pair": [data["pair_0"], data["pair_1"]]}}
np.savez("y.npz", *[fast.predict(x), fast.predict_on_batch(x), np.asarray(fast(x))])
fast.save("again.ktrt")
try:
    fast.predict(iter([x]))
except keras_trt.MissingDependencyError as error:
    assert "keras-trt[tensorflow]" in str(error), error
else:
    raise AssertionError("a generator needs Keras's adapters")
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "keras_trt: ONNX Runtime" in done.stdout
    assert not {"tensorflow", "keras"} & set(json.loads(done.stdout.splitlines()[-1]))
    expected = model.predict(x, verbose=0)
    rows_differ(expected)
    for answer in np.load(tmp_path / "y.npz").values():
        same(expected, answer)
    assert (tmp_path / "again.ktrt").read_bytes() == (tmp_path / "model.ktrt").read_bytes()


@pytest.mark.long
def test_an_empty_environment_loads_it(tmp_path: Path) -> None:
    """What `pip install keras-trt` puts into a new environment is enough: nothing of this one can be seen there."""
    model, fast = pair("dict outputs")
    x = CASES["dict outputs"].data(10)
    fast.save(tmp_path / "model.ktrt")
    np.save(tmp_path / "x.npy", x)
    run = {
        "check": True,
        "cwd": tmp_path,
        "timeout": 500,
        "env": {k: v for k, v in os.environ.items() if "PYTHON" not in k},
    }
    subprocess.run([sys.executable, "-m", "venv", "empty"], **run)  # type: ignore[call-overload]
    python = str(tmp_path / "empty" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(PACKAGE.parent)], **run)  # type: ignore[call-overload]
    code = (
        "import numpy as np, keras_trt\n"
        "fast = keras_trt.load('model.ktrt', cache='cache')\n"
        "np.savez('y.npz', **fast.predict(np.load('x.npy')))\n"
    )
    subprocess.run([python, "-W", "error", "-c", code], **run)  # type: ignore[call-overload]
    names = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, **run).stdout  # type: ignore[call-overload]
    assert not {"tensorflow", "keras", "tensorrt"} & set(names.split())
    expected = model.predict(x, verbose=0)
    for name, answer in np.load(tmp_path / "y.npz").items():
        same(expected[name], answer)


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
            pair("sequential")[1].save(tmp_path / "6", key=empty)  # type: ignore[arg-type]
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


def changed(path: Path, target: Path, **fields: Any) -> Path:
    """Write the artifact at `path` again with other contents, all digests right."""
    file = Artifact(path)
    inputs, outputs = file.golden()
    contents = Contents(
        file.name, file.signature, file.input_names, file.profile, file.precision, file.optimization_level,
        file.rows_independent, file.versions, file.graph(), inputs, outputs, file.plans(),
    )  # fmt: skip
    artifact.write(target, replace(contents, **fields))
    return target


def test_an_engine_that_answers_otherwise_is_refused(saved: Path, tmp_path: Path) -> None:
    _, outputs = Artifact(saved).golden()
    path = changed(saved, tmp_path / "model.ktrt", outputs=[output * 1.01 for output in outputs])
    with pytest.raises(VerificationError, match=r"otherwise here than when it was saved.*relative difference"):
        load(path)


def test_a_plan_for_another_machine_is_not_run(saved: Path, tmp_path: Path, ran: list[bytes]) -> None:
    other = Plan({"backend": "tensorrt", "version": "10.9", "gpu": "another"}, b"a plan of another GPU")
    path = changed(saved, tmp_path / "model.ktrt", plans=[other])
    loaded = load(path)
    assert ran
    assert set(ran) == {Artifact(path).graph()}
    loaded.save(tmp_path / "again.ktrt")  # and it is kept, for that machine
    assert (tmp_path / "again.ktrt").read_bytes() == path.read_bytes()


def test_a_plan_that_does_not_load_is_built_anew(saved: Path, tmp_path: Path) -> None:
    bad = Plan(OnnxRuntimeBackend().identity(), b"a plan that is none")
    path = changed(saved, tmp_path / "model.ktrt", plans=[bad])
    with pytest.warns(FallbackWarning, match="of no use"):
        loaded = load(path)
    model, _ = pair("sequential")
    x = CASES["sequential"].data(5)
    same(model.predict(x, verbose=0), loaded.predict(x, verbose=0))


# What cannot be saved, and what a loaded one cannot do.


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "model.ktrt"
    text = accelerate(head_models.text_model(), batch_sizes=(1, 4, 8))
    with pytest.raises(ExportError, match=r"cannot be saved.*text_vectorization") as caught:
        text.save(path)
    assert caught.value.layer is not None

    class Overrides(keras.Model):
        def predict_step(self, data: Any) -> Any:
            return super().predict_step(data)

        def call(self, x: Any) -> Any:
            return x

    model = Overrides()
    model(np.ones((2, 3), "float32"))
    with pytest.warns(FallbackWarning):
        slow = accelerate(model)
    with pytest.raises(ExportError, match=r"Keras runs.*predict_step"):
        slow.save(path)
    closed = accelerate(CASES["sequential"].build())
    closed.close()
    with pytest.raises(RuntimeError, match="closed"):
        closed.save(path)
    assert not path.exists()


def test_a_failed_save_leaves_the_older_file(tmp_path: Path) -> None:
    folder = tmp_path / "model.ktrt"
    folder.mkdir()
    with pytest.raises(OSError, match=r"model\.ktrt"):
        pair("sequential")[1].save(folder)
    assert list(tmp_path.iterdir()) == [folder]
    with pytest.raises(FileNotFoundError):
        pair("sequential")[1].save(tmp_path / "missing" / "model.ktrt")


def test_batches_that_the_engine_does_not_take(tmp_path: Path) -> None:
    model = dependent("minus mean")
    accelerate(model, batch_sizes=(1, 4, 8)).save(tmp_path / "model.ktrt")
    loaded = load(tmp_path / "model.ktrt")
    x = floats(4)(20)
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        answer = loaded.predict_on_batch(x)
    warns_once(records, "ONNX Runtime runs a batch")
    same(model.predict_on_batch(x), answer)
    same(model.predict(x, batch_size=5, verbose=0), loaded.predict(x, batch_size=5, verbose=0))


def test_sizes_that_the_graph_does_not_take(tmp_path: Path) -> None:
    words = keras.Input((None,), dtype="int32")
    pooled = kl.GlobalAveragePooling1D()(kl.Embedding(11, 4, embeddings_initializer="normal")(words))
    model = keras.Model(words, kl.Dense(3)(pooled))
    rows = np.random.default_rng(0).integers(0, 11, (6, 5)).astype("int32")
    accelerate(model, sample=rows).save(tmp_path / "model.ktrt")
    loaded = load(tmp_path / "model.ktrt")
    longer = np.random.default_rng(0).integers(0, 11, (6, 9)).astype("int32")
    with pytest.warns(FallbackWarning, match="ONNX Runtime runs a batch"):
        same(model.predict(longer, verbose=0), loaded.predict(longer, verbose=0))
    with pytest.raises(keras_trt.InputError, match="no Keras model"):
        loaded.predict(np.full((6, 9), 1000, "int32"), verbose=0)  # no such word


def test_calls_that_need_keras(saved: Path) -> None:
    loaded = load(saved)
    x = CASES["sequential"].data(4)
    same(loaded.predict(x, verbose=0), loaded(x))
    with pytest.raises(NotImplementedError, match="its inference alone"):
        loaded(x, training=True)
    with pytest.raises(NotImplementedError, match="mask"):
        loaded(x, mask=None)
    with pytest.raises(AttributeError, match=r"loaded from a file.*`compute_metrics`"):
        loaded._source.compute_metrics  # noqa: B018 (what a method of `TRTModel` may ask its Keras model for)


def test_options_of_load(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="`fallback`"):
        load(saved, fallback="keras")
    with pytest.raises(ValueError, match="`device`"):
        load(saved, device=-1)
    load(saved, verbose=1)
    assert "loaded from its file, nothing built" in capsys.readouterr().out


def test_without_a_gpu(saved: Path) -> None:
    from keras_trt import cuda

    if cuda.device_count():
        pytest.skip("says what happens without a GPU")
    with pytest.raises(EngineLoadError, match="needs a GPU"):
        load(saved, backend="tensorrt_rtx")
    with pytest.raises(EngineLoadError, match="needs a GPU"):
        load(saved, backend="auto", fallback="raise")
    with pytest.warns(FallbackWarning, match="ONNX Runtime .* runs 'sequential"):
        loaded = load(saved, backend="auto")
    assert loaded.backend == "onnxruntime"
    assert len(flatten(loaded.predict(CASES["sequential"].data(3), verbose=0))[0]) == 3


def test_others_may_read_what_is_saved(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        model = CASES["sequential"].build()
        keras_trt.export_onnx(model, tmp_path / "model.onnx")
        with accelerate(model) as fast:
            fast.save(tmp_path / "model.ktrt")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("model.onnx", "model.ktrt")] == [0o644] * 2
