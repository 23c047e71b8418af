"""What is said of a miss, and `keras-trt cache`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_trt.cache import EngineCache, changes
from keras_trt.cli.main import main

from ..models import accelerate, floats, keras, kl

A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"weights": A}, {"weights": B}, ["weights changed"]),
        ({"sample": None}, {"sample": B}, ["sample changed"]),
        ({"shapes": {"max batch": 128}}, {"shapes": {"max batch": 256}}, ["max batch 128 → 256"]),
        ({"backend": {"TensorRT": "10.9"}}, {"backend": {"TensorRT": "11.4"}}, ["TensorRT 10.9 → 11.4"]),
        ({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 2}}, []),
        ({"a": [1, 2]}, {"b": [1, 2]}, ["a [1, 2] → none", "b none → [1, 2]"]),
        ({"gpu": "L4"}, {"gpu": None}, ["gpu L4 → none"]),
        (
            {"a": {"keras_trt": "1"}, "b": {"keras_trt": "1"}},
            {"a": {"keras_trt": "2"}, "b": {"keras_trt": "2"}},
            ["keras_trt 1 → 2"],
        ),
    ],
)
def test_phrases(old: Any, new: Any, said: list[str]) -> None:
    assert changes(old, new) == said


def small() -> Any:
    return keras.Sequential([keras.Input((4,)), kl.Dense(3, name="only")], name="small")


def missed(caplog: pytest.LogCaptureFixture, model: Any, cache: EngineCache, **options: Any) -> str:
    """Accelerate and return the one line that says why the engine was not in the cache, or nothing."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "keras_trt"):
        accelerate(model, cache=cache, **options)
    lines = [line for line in caplog.messages if "no engine in the cache" in line]
    assert len(lines) <= 1
    return lines[0] if lines else ""


def test_each_miss_says_why(cache: EngineCache, caplog: pytest.LogCaptureFixture) -> None:
    model = small()
    assert "none of this model is there" in missed(caplog, model, cache)
    assert missed(caplog, model, cache) == ""
    assert "max batch 32 → 64 (nearest: " in missed(caplog, model, cache, batch_sizes=(1, 8, 64))
    assert ": precision fp32 → fp16 (" in missed(caplog, model, cache, precision="fp16")
    assert ": sample changed (" in missed(caplog, model, cache, sample=floats(4)(8))
    assert ": optimization_level none → 0 (" in missed(caplog, model, cache, optimization_level=0)
    model.set_weights([weight + 1 for weight in model.get_weights()])
    assert ": weights changed (" in missed(caplog, model, cache)
    other = keras.Sequential([keras.Input((4,)), kl.Dense(3, activation="tanh")], name="small")
    other.set_weights(model.get_weights())
    assert ": structure changed (" in missed(caplog, other, cache)
    assert missed(caplog, model, cache) == ""


def unkeyed(constant: float = 0.0) -> Any:
    """A model without a structure key: it reaches a generator of random numbers."""
    generator = np.random.default_rng(0)
    inputs = keras.Input((4,), name="given")
    shift = kl.Lambda(lambda x: x + (constant if generator else 1.0), name="shift")
    return keras.Model(inputs, shift(kl.Dense(3, kernel_initializer="ones", name="only")(inputs)), name="odd")


def test_a_miss_of_a_model_without_a_structure_key_says_why(
    cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    assert "'odd' has no engine in the cache: none of this model is there" in missed(caplog, unkeyed(), cache)
    assert missed(caplog, unkeyed(), cache) == ""
    assert ": max batch 32 → 64 (nearest: " in missed(caplog, unkeyed(), cache, batch_sizes=(1, 8, 64))
    assert ": graph changed (nearest: " in missed(caplog, unkeyed(1.0), cache)


@pytest.fixture
def filled(cache: EngineCache) -> EngineCache:
    """Two engines of one model."""
    model = small()
    accelerate(model, cache=cache)
    model.set_weights([weight + 1 for weight in model.get_weights()])
    accelerate(model, cache=cache, batch_sizes=(1, 8, 64))
    return cache


def command(cache: EngineCache, capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert main(["cache", "--cache", str(cache.path), *arguments]) == status
    captured = capsys.readouterr()
    assert (captured.err == "") == (status < 2)
    return captured.err if status == 2 else captured.out


def test_ls_and_show(filled: EngineCache, capsys: pytest.CaptureFixture[str]) -> None:
    head, *lines = command(filled, capsys, "ls").splitlines()
    assert head.split() == ["key", "model", "precision", "backend", "device", "size", "used"]
    assert len(lines) == 2
    rows = json.loads(command(filled, capsys, "ls", "--json"))
    for line, row in zip(lines, rows, strict=True):
        assert line.startswith(row["key"])
        assert (row["model"], row["precision"], row["backend"]) == ("small", "fp32", "onnxruntime")
        shown = json.loads(command(filled, capsys, "show", row["key"]))
        assert shown["key"].startswith(row["key"])
        assert shown["shapes"]["opt batch"] == 8


def test_explain(filled: EngineCache, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (row["key"] for row in json.loads(command(filled, capsys, "ls", "--json")))
    assert command(filled, capsys, "explain", second).strip().endswith(": max batch 32 → 64; weights changed")
    assert command(filled, capsys, "explain", second, first).strip().endswith(": max batch 32 → 64; weights changed")
    found = json.loads(command(filled, capsys, "explain", first, "--json"))
    assert found["changes"] == ["max batch 64 → 32", "weights changed"]


def test_verify(filled: EngineCache, capsys: pytest.CaptureFixture[str]) -> None:
    order = [item.key for item in filled.items()]
    assert command(filled, capsys, "verify").splitlines() == [f"{len(order)} checked"]
    assert [item.key for item in filled.items()] == order
    item = next(item for item in filled.items() if item.payload is not None)
    assert item.payload is not None
    raw = bytearray(item.payload.read_bytes())
    raw[len(raw) // 2] ^= 1
    item.payload.write_bytes(raw)
    found = json.loads(command(filled, capsys, "verify", "--json", status=1))
    assert found == {"checked": len(order), "damaged": [item.key]}
    assert command(filled, capsys, "verify").splitlines() == [f"{len(order) - 1} checked"]


def test_prune_and_clear(filled: EngineCache, capsys: pytest.CaptureFixture[str]) -> None:
    total = sum(item.size_bytes for item in filled.items())
    assert command(filled, capsys, "prune", "--max-bytes", "1GiB").startswith("0 entries")
    found = json.loads(command(filled, capsys, "prune", "--max-bytes", str(total - 1), "--json"))
    assert len(found["deleted"]) == 1
    assert " deleted, 0 B left" in command(filled, capsys, "clear")
    assert filled.items() == []
    assert "No engines" in command(filled, capsys, "ls")
    assert json.loads(command(filled, capsys, "ls", "--json")) == []


def test_bad_usage(filled: EngineCache, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "0 engines" in command(filled, capsys, "show", "zzz", status=2)
    assert "2 engines" in command(filled, capsys, "show", "", status=2)
    for arguments in ([], ["prune"], ["show"]):
        with pytest.raises(SystemExit) as caught:
            main(["cache", *arguments])
        assert caught.value.code == 2
        capsys.readouterr()
    for size in ("many", "5GB", "nan", "inf", "1e400GiB", "-1"):
        with pytest.raises(SystemExit) as caught:
            main(["cache", "prune", "--max-bytes", size])
        assert caught.value.code == 2
        said = capsys.readouterr().err
        assert size in said
        assert "2GiB" in said
    tmp_path.chmod(0o777)
    assert "every user can write" in command(EngineCache(tmp_path), capsys, "clear", status=2)


def test_entries_that_are_no_engines_are_not_listed(filled: EngineCache, capsys: pytest.CaptureFixture[str]) -> None:
    before = command(filled, capsys, "ls")
    for key, manifest in ((A, {"model": 5, "backend": {}}), (B, {"model": "odd", "backend": "text", "fields": {}})):
        filled.put(key, b"of a user", manifest)
    assert command(filled, capsys, "ls") == before
    assert "0 engines" in command(filled, capsys, "show", A, status=2)


def test_a_model_without_a_structure_key_is_listed(cache: EngineCache, capsys: pytest.CaptureFixture[str]) -> None:
    accelerate(unkeyed(), cache=cache)
    rows = json.loads(command(cache, capsys, "ls", "--json"))
    assert [row["model"] for row in rows] == ["odd"]
    assert "No other engine" in command(cache, capsys, "explain", rows[0]["key"])


def test_what_is_in_the_cache_is_not_read_for_a_line_that_nobody_sees(
    cache: EngineCache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, read, opened = small(), Path.read_bytes, list[Path]()

    def accelerate_another() -> int:
        model.set_weights([weight + 1 for weight in model.get_weights()])
        opened.clear()
        accelerate(model, cache=cache)
        return sum(path.parent.parent.name == "entries" for path in opened)

    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path) or read(path))
    caplog.set_level(logging.WARNING, "keras_trt")
    counts = [accelerate_another() for _ in range(8)]
    assert counts[-1] <= counts[1], counts
    caplog.set_level(logging.INFO, "keras_trt")
    assert accelerate_another() > counts[-1]  # so that it would show
