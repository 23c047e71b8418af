"""`accelerate` in many processes: the second start, one build for all, kills, missing rights, a full disk."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .children import BACKEND

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork, signals and POSIX rights")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.processes.children", *map(str, arguments)]


def environment() -> dict[str, str]:
    hidden = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return os.environ | hidden | {"PYTHONPATH": str(REPOSITORY)}


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=REPOSITORY,
    )


def finish(process: subprocess.Popen[str], seconds: float = 550) -> tuple[list[str], dict[str, Any]]:
    """Return the lines that a child printed, and the JSON of the last one."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, f"{out}\n{err[-6000:]}"
    *lines, last = out.splitlines()
    return lines, json.loads(last)


def test_second_start_builds_and_exports_nothing(tmp_path: Path) -> None:
    cache, path = tmp_path / "cache", tmp_path / "model.keras"
    lines, first = finish(start("child_build", cache, path))
    assert first["origin"] == "built"
    assert {"export", "build", "verify"} <= set(first["seconds"])
    assert "engine built" in lines[-1]
    again = [start("child_load", cache, path), start("child_build", cache, "")]
    for process in again:
        lines, second = finish(process)
        assert second["origin"] == "cache"
        assert not {"export", "build", "verify", "precision"} & set(second["seconds"]), second
        assert second["seconds"]["total"] > 0
        assert not second["tf2onnx"]
        assert "found in the cache, nothing exported or built" in lines[-1]


@pytest.mark.parametrize("count", [4, pytest.param(16, marks=pytest.mark.long)])
def test_processes_at_once_make_one_build(tmp_path: Path, count: int) -> None:
    go = tmp_path / "go"
    processes = [start("child_race", tmp_path / "cache", go) for _ in range(count)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    go.touch()
    said = [finish(process)[1] for process in processes]
    assert sorted(one["origin"] for one in said) == ["built"] + ["cache"] * (count - 1)
    assert sum("build" in one["seconds"] for one in said) == 1
    assert sum("export" in one["seconds"] for one in said) == 1
    assert sum(one["tf2onnx"] for one in said) == 1


# A kill with the starts beside and after it takes 3 to 7 s.
@pytest.mark.parametrize("count", [5, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(1600)])])
def test_kills_at_any_moment_leave_a_cache_that_works(tmp_path: Path, count: int) -> None:
    _, said = finish(start("child_kills", tmp_path / "cache", count), 15.0 * count + 100)
    assert said["killed"] > count // 3  # or the kills came too late to prove anything


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="keras_trt-"))
    path.chmod(0o755)
    yield path
    for inner in (path, *path.rglob("*")):
        if inner.is_dir():
            inner.chmod(0o700)
    shutil.rmtree(path)


def assert_one_warning_about_the_cache(said: dict[str, Any], folder: Path) -> None:
    assert len(said["warnings"]) == 1, said["warnings"]
    for part in ("not cached", str(folder), "cache=", "KERAS_TRT_CACHE"):
        assert part in said["warnings"][0]


def test_cache_without_rights(open_folder: Path) -> None:
    parent = open_folder / "parent"
    parent.mkdir()
    parent.chmod(0o500)
    _, said = finish(start("child_no_rights", open_folder))
    assert_one_warning_about_the_cache(said, parent)
    assert not list(parent.iterdir())


def test_read_only_cache_still_gives_its_engine(open_folder: Path) -> None:
    _, said = finish(start("child_read_only", open_folder))
    assert said["origin"] == "cache"


def test_full_disk(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("mounting a small disk is done for Linux alone")
    disk = tmp_path / "disk"
    disk.mkdir()
    # In a mount namespace of its own: nothing stays mounted, whatever happens.
    namespace = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    mount = f"mount -t tmpfs -o size=64k tmpfs '{disk}'"
    tried = subprocess.run([*namespace, "sh", "-c", mount], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {tried.stderr.strip()}")
    process = subprocess.Popen(
        [*namespace, "sh", "-c", f'{mount} && exec "$@"', "sh", *command("child_full_disk", disk)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=REPOSITORY,
    )
    _, said = finish(process)
    assert_one_warning_about_the_cache(said, disk)
    assert "No space left" in said["warnings"][0]


def test_tensorrt_missing() -> None:
    _, said = finish(start("child_without_tensorrt"))
    assert len(said["errors"]) == 2  # whatever `fallback` is: it was asked for by name
    for message, package, is_import_error in said["errors"]:
        assert "pip install 'keras-trt[cu13]'" in message
        assert "backend 'tensorrt'" in message
        assert package == "tensorrt"
        assert is_import_error
    assert said["auto"] == BACKEND
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return
    assert len(said["rtx"]) == 2
    for message in said["rtx"]:
        assert message.startswith("EngineLoadError")
        assert "needs a GPU, and CUDA shows none" in message
        assert "onnxruntime" in message
    # TensorRT-RTX is there and cannot be used: nobody waits for a GPU that does not come without being told.
    assert len(said["warnings"]) == 1
    assert "needs a GPU" in said["warnings"][0]


@pytest.mark.long
def test_resnet50(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache, path = tmp_path / "cache", tmp_path / "resnet50.keras"
    _, first = finish(start("child_resnet50_first", cache, path))
    assert (first["origin"], first["precision"]) == ("built", "fp32")
    assert first["difference"] < 1e-4
    _, second = finish(start("child_resnet50_second", cache, path))
    assert second["origin"] == "cache"
    assert not {"export", "build", "verify"} & set(second["seconds"])
    with capsys.disabled():
        sys.stdout.write(
            f"\nResNet50: relative difference {first['difference']:.2g}; first start {first['seconds']}; "
            f"second start {second['seconds']}\n"
        )
