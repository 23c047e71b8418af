"""The `.ktrt` file: a model's graph, plans and golden rows in one zip, written whole and checked before it is used.

    manifest.json           what is in it, sealed; SHA-256 and size of every other member
    graph.onnx              the typed ONNX graph
    golden/input_0 …        rows, and …
    golden/output_0 …       what the engine answered when it was saved: the bytes of arrays in C order
    plans/0 …               plans, each for one kind of GPU, system and TensorRT
    signature               if it was saved with a key: the HMAC-SHA256 of the manifest under it

Members are stored as they are, so that no file is larger in memory than on the disk, and nothing is ever unpacked to
disk. The zip's comment is the SHA-256 of all before it: whatever byte is damaged or missing, the file is refused.
A digest is no signature: a plan is executable code, and whoever can write the file can put another one in, unless those
who load it ask for the signature of a key that he does not know.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
import weakref
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, get_args

import numpy as np

from ._files import replacing
from .cache import documents
from .errors import ArtifactError
from .options import Precision, range_of
from .specs import Measured, OptimizationProfile, Signature

Array = np.ndarray[Any, np.dtype[Any]]

_COMMENT = b"sha256:"
_DIGITS = 64
_MANIFEST, _SIGNATURE = "manifest.json", "signature"
_MANIFEST_BYTES = 16 << 20  # more than any model's names take
_TIME = (1980, 1, 1, 0, 0, 0)  # the same content is the same file


@dataclass(frozen=True)
class Plan:
    """An engine for one kind of machine.

    Attributes:
        identity: what it depends on, as `Backend.identity` says it.
        data: the plan.
        measured: what was found out about it there.
    """

    identity: Mapping[str, Any]
    data: bytes
    measured: Measured = field(default_factory=Measured)


@dataclass(frozen=True)
class Contents:
    """What an artifact holds.

    Attributes:
        name: the model's name.
        signature: inputs and outputs by the graph's names.
        input_names: the inputs' names as the model's users know them.
        profile: the shapes to build for.
        precision: the precision of the graph's types.
        optimization_level: TensorRT's, or `None`.
        rows_independent: whether batches may be regrouped.
        versions: of what made it, by name.
        graph: the typed ONNX graph.
        inputs: golden rows.
        outputs: the engine's answers to them.
        plans: one for each kind of machine.
    """

    name: str
    signature: Signature
    input_names: Sequence[str]
    profile: OptimizationProfile
    precision: str
    optimization_level: int | None
    rows_independent: bool
    versions: Mapping[str, str]
    graph: bytes
    inputs: Sequence[Array]
    outputs: Sequence[Array]
    plans: Sequence[Plan]


def check_name(path: str | os.PathLike[str]) -> None:
    """Raise a `ValueError` for a name that does not end in `.ktrt`: Keras would take `.keras` for its own."""
    if not os.fspath(path).endswith(".ktrt"):
        raise ValueError(f"The file of an engine ends in `.ktrt`. Received: filepath={os.fspath(path)}")


def write(path: str | os.PathLike[str], contents: Contents, key: bytes | None = None) -> None:
    """Write an artifact. An existing file is replaced only by a complete one.

    Args:
        path: where.
        contents: what.
        key: signs it. Defaults to `None`: it is not signed.

    Raises:
        ValueError: if the key is empty, or the name does not end in `.ktrt`.
        OSError: if it cannot be written.
    """
    check_name(path)
    if key is not None:
        _check_key(key)
    arrays = {"input": contents.inputs, "output": contents.outputs}
    members: dict[str, Any] = {"graph.onnx": contents.graph}
    for kind, values in arrays.items():
        members |= {f"golden/{kind}_{i}": np.ascontiguousarray(array).tobytes() for i, array in enumerate(values)}
    members |= {f"plans/{i}": plan.data for i, plan in enumerate(contents.plans)}
    manifest = {
        "schema": documents.SCHEMA,
        "kind": "artifact",
        "key": contents.name,
        "signature": contents.signature.to_json(),
        "input_names": list(contents.input_names),
        "profile": contents.profile.to_json(),
        "precision": contents.precision,
        "optimization_level": contents.optimization_level,
        "rows_independent": contents.rows_independent,
        "versions": dict(contents.versions),
        "golden": {kind: [[a.dtype.name, list(a.shape)] for a in values] for kind, values in arrays.items()},
        "plans": [{"identity": plan.identity, "measured": plan.measured.to_json()} for plan in contents.plans],
        "members": {name: [hashlib.sha256(data).hexdigest(), len(data)] for name, data in members.items()},
    }
    sealed = documents.seal(documents.plain(manifest, "manifest"))
    members = {_MANIFEST: sealed, **members}
    if key is not None:
        members[_SIGNATURE] = _signature(sealed, key)
    with replacing(Path(path)) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, data in members.items():
                archive.writestr(zipfile.ZipInfo(name, _TIME), data)
            archive.comment = _COMMENT + b"0" * _DIGITS
        size = file.seek(0, os.SEEK_END)
        digest = _digest(file, size - _DIGITS)
        file.seek(size - _DIGITS)
        file.write(digest.encode())


class Artifact:
    """An artifact on the disk, checked from its first byte to its last.

    As a context it keeps the file open: another one that takes its place meanwhile does not show. Afterwards it does.

    Args:
        path: the file.
        key: what it must be signed with. Defaults to `None`: signatures are not looked at.

    Raises:
        ArtifactError: if it is no artifact, or damaged, or of another version, or not signed with the key.
        ValueError: if the key is empty, or not bytes.
        OSError: if there is no such file, or it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], key: bytes | None = None) -> None:
        if key is not None:
            _check_key(key)
        self.path = Path(path)
        self._file = self.path.open("rb")
        self._close = weakref.finalize(self, self._file.close)
        try:
            self._manifest = _checked_manifest(self._file, key)
            self.name: str = self._manifest["key"]
            self.signature = Signature.from_json(self._manifest["signature"])
            self.input_names: list[str] = list(self._manifest["input_names"])
            self.profile = OptimizationProfile.from_json(self._manifest["profile"])
            self.precision: str = self._manifest["precision"]
            self.optimization_level: int | None = self._manifest["optimization_level"]
            self.rows_independent: bool = self._manifest["rows_independent"]
            self.versions: dict[str, str] = dict(self._manifest["versions"])
            self.identities: list[dict[str, Any]] = [plan["identity"] for plan in self._manifest["plans"]]
            self._measured = [Measured.from_json(plan["measured"]) for plan in self._manifest["plans"]]
            self._check()
        except _MALFORMED as error:
            raise ArtifactError(f"'{self.path}' cannot be loaded: {_why(error)}. Save the model again.") from error

    def __enter__(self) -> Artifact:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def live_signature(self) -> Signature:
        """The signature by the names that the model's users know."""
        pairs = zip(self.signature.inputs, self.input_names, strict=True)
        return self.signature.with_inputs_of([replace(spec, name=name) for spec, name in pairs])

    def graph(self) -> bytes:
        """Return the typed graph.

        Raises:
            ArtifactError: if it is damaged, or takes weights from other files.
        """
        graph = self._member("graph.onnx")
        if b"location" not in graph:  # the key under which a tensor names another file
            return graph
        import onnx

        if _reads_files(onnx.load_from_string(graph)):
            raise ArtifactError(f"'{self.path}' cannot be loaded: its graph takes weights from other files.")
        return graph

    def golden(self) -> tuple[list[Array], list[Array]]:
        """Return the golden rows, and the answers to them."""
        inputs, outputs = (
            [self._array(f"golden/{kind}_{i}", *what) for i, what in enumerate(self._manifest["golden"][kind])]
            for kind in ("input", "output")
        )
        return inputs, outputs

    def plan(self, identity: Mapping[str, Any]) -> Plan | None:
        """Return the plan that was built for `identity`, a machine as `Backend.identity` says it, if there is one."""
        wanted = documents.plain(identity, "identity")
        return self._plan(self.identities.index(wanted)) if wanted in self.identities else None

    def plans(self) -> list[Plan]:
        """Return all plans."""
        return [self._plan(i) for i in range(len(self.identities))]

    def _plan(self, i: int) -> Plan:
        return Plan(self.identities[i], self._member(f"plans/{i}"), self._measured[i])

    def _check(self) -> None:
        """Raise a `ValueError` if what the manifest says does not fit together."""
        inputs, outputs = self.signature.inputs, self.signature.outputs
        level = self.optimization_level
        told = {
            "name": isinstance(self.name, str),
            "names of inputs": all(isinstance(name, str) for name in self.input_names),
            "optimization level": level is None or (type(level) is int and 0 <= level <= 5),
            "independence of rows": isinstance(self.rows_independent, bool),
            "versions": all(isinstance(one, str) for one in self.versions.values()),
            "signature": bool(inputs and outputs),
            "plans": all(isinstance(one, dict) for one in self.identities),
        }
        if bad := [name for name, right in told.items() if not right]:
            raise ValueError(f"its {bad[0]} cannot be what it says")
        for spec in inputs:
            range_of(spec, self.profile)
        if any(spec.dtype == "bfloat16" for spec in (*inputs, *outputs)):
            import ml_dtypes  # noqa: F401 (numpy learns the type from it)
        counts = {"golden/input_": len(inputs), "golden/output_": len(outputs), "plans/": len(self.identities)}
        expected = {"graph.onnx", *(f"{prefix}{i}" for prefix, count in counts.items() for i in range(count))}
        if set(self._manifest["members"]) != expected:
            raise ValueError("its manifest does not name what an artifact holds")
        golden = self._manifest["golden"]
        if (len(golden["input"]), len(golden["output"])) != (len(inputs), len(outputs)):
            raise ValueError("its golden rows are not those of its inputs and outputs")
        for spec, (dtype, shape) in zip((*inputs, *outputs), (*golden["input"], *golden["output"]), strict=True):
            fits = len(shape) == len(spec.shape) and all(
                type(size) is int and size >= 0 and known in (None, size)
                for known, size in zip(spec.shape, shape, strict=True)
            )
            if dtype != spec.dtype or not fits:
                raise ValueError(f"its golden rows of '{spec.name}' are of type {dtype!r} and shape {shape!r}")
        if set(self.profile.shapes) != {spec.name for spec in inputs} or len(self.input_names) != len(inputs):
            raise ValueError("its shapes are not those of its inputs")
        if self.precision not in get_args(Precision):
            raise ValueError(f"this version does not know its precision {self.precision!r}")

    def _member(self, name: str) -> bytes:
        try:
            again = self.path.open("rb") if self._file.closed else nullcontext(self._file)
            with again as file, zipfile.ZipFile(file) as archive:
                sha256, size = self._manifest["members"][name]
                data = archive.read(name) if archive.getinfo(name).file_size == size else b""
            if hashlib.sha256(data).hexdigest() != sha256:
                raise ValueError(f"its member {name!r} does not match its SHA-256: it is damaged, or was replaced")
        except _MALFORMED as error:
            raise ArtifactError(f"'{self.path}' cannot be loaded: {_why(error)}. Save the model again.") from error
        return data

    def _array(self, name: str, dtype: str, shape: Sequence[int]) -> Array:
        data = self._member(name)
        try:
            return np.frombuffer(data, np.dtype(dtype)).reshape(shape)
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"'{self.path}' cannot be loaded: {name!r} is no such array: {error}.") from error


# What zipfile, json and reading the wrong types from a manifest raise.
_MALFORMED = (
    zipfile.BadZipFile,
    struct.error,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    NotImplementedError,
    EOFError,
    RuntimeError,
)


def _why(error: BaseException) -> str:
    return f"it holds no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__


def _check_key(key: bytes) -> None:
    if not isinstance(key, bytes) or not key:
        raise ValueError("The key of a .ktrt file is bytes, and not empty.")  # what was received is a secret


def _reads_files(message: Any) -> bool:
    """Whether a tensor in an ONNX message lies in another file."""
    if message.DESCRIPTOR.name == "TensorProto":
        return bool(message.external_data)
    values = [value for field, value in message.ListFields() if field.message_type]
    return any(_reads_files(one) for value in values for one in ([value] if hasattr(value, "ListFields") else value))


def _signature(manifest: bytes, key: bytes) -> bytes:
    return hmac.digest(key, manifest, "sha256").hex().encode()


def _checked_manifest(file: IO[bytes], key: bytes | None) -> dict[str, Any]:
    size = file.seek(0, os.SEEK_END)
    start = size - _DIGITS - len(_COMMENT)
    file.seek(max(start, 0))
    ending = file.read()
    if start < 0 or not ending.startswith(_COMMENT):
        raise ValueError("it is no .ktrt file, or its end is missing")
    if ending != _COMMENT + _digest(file, size - _DIGITS).encode():
        raise ValueError("it is damaged: its SHA-256 does not match")
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        names = [info.filename for info in infos]
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
                raise ValueError(f"its member {info.filename!r} is compressed or encrypted, and none may be")
        if len(set(names)) != len(names) or sum(info.file_size for info in infos) > size:
            raise ValueError("its members overlap")
        if _MANIFEST not in names or archive.getinfo(_MANIFEST).file_size > _MANIFEST_BYTES:
            raise ValueError("it has no manifest, or too large a one")
        raw = archive.read(_MANIFEST)
        if key is not None:
            signed = _SIGNATURE in names and archive.getinfo(_SIGNATURE).file_size == _DIGITS
            if not signed or not hmac.compare_digest(archive.read(_SIGNATURE), _signature(raw, key)):
                raise ValueError("it is not signed with this key")
    manifest = documents.unseal(raw, "artifact")
    listed = {name: listing[1] for name, listing in manifest["members"].items()}
    if listed != {info.filename: info.file_size for info in infos if info.filename not in (_MANIFEST, _SIGNATURE)}:
        raise ValueError("it does not hold the members that its manifest names")
    return manifest


def _digest(file: IO[bytes], size: int) -> str:
    """Return the SHA-256 of the first `size` bytes."""
    whole = hashlib.sha256()
    file.seek(0)
    while size > 0 and (block := file.read(min(size, 1 << 22))):
        whole.update(block)
        size -= len(block)
    return whole.hexdigest()
