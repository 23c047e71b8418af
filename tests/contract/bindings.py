"""What the Python bindings of each TensorRT and CUDA release hold, read off the released wheels without a GPU.

`names(release)` downloads the wheel of a release once, imports it in a child process (against stub.c in place of the
TensorRT libraries) and returns its public names. Wheels and names are cached, so that later runs are quick.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

HERE = Path(__file__).parent
Names = dict[str, dict[str, Any]]

# The library names that the bindings want, for TensorRT 8, 10 and 11, and for TensorRT-RTX 1.
LIBRARIES = (
    *(f"lib{name}.so.8" for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser", "nvparsers")),
    *(f"lib{name}.so.10" for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser")),
    *(f"lib{name}.so.11" for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser")),
    *("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"),
)


class BindingsError(Exception):
    """The names of a release could not be read."""


@dataclass(frozen=True)
class Release:
    """One release: its wheel, the module to import, and the newest CPython that the wheel was made for, if any."""

    project: str
    version: str
    module: str
    newest_python: tuple[int, int] | None = None

    @property
    def requirement(self) -> str:
        return f"{self.project}=={self.version}"

    @property
    def label(self) -> str:
        """For example tensorrt-10.3.0, tensorrt_rtx-1.7.1.116 or cuda.bindings.runtime-13.0.3."""
        return f"{self.module.removesuffix('_bindings')}-{self.version}"

    @property
    def left_out(self) -> str | None:
        """Why this release cannot be read by the running Python; None if it can."""
        if self.newest_python and sys.version_info[:2] > self.newest_python:
            return f"{self.requirement} has wheels up to CPython {'.'.join(map(str, self.newest_python))} only"
        return None


def _tensorrt(project: str, newest_python: tuple[int, int] | None, *versions: str) -> list[Release]:
    module = "tensorrt_rtx_bindings" if "rtx" in project else "tensorrt_bindings"
    return [Release(project, version, module, newest_python) for version in versions]


# TensorRT 8.6, then the newest patch of every minor version since. TensorRT 9 has no bindings on the index.
TENSORRT = [
    *_tensorrt("tensorrt-bindings", (3, 11), "8.6.1"),
    *_tensorrt("tensorrt-cu12-bindings", (3, 12), "10.0.1", "10.1.0", "10.2.0.post1", "10.3.0", "10.4.0", "10.5.0"),
    *_tensorrt("tensorrt-cu12-bindings", (3, 12), "10.6.0.post2", "10.7.0.post1", "10.8.0.43"),
    *_tensorrt("tensorrt-cu12-bindings", None, "10.9.0.34", "10.10.0.31", "10.11.0.33", "10.12.0.36"),
    *_tensorrt("tensorrt-cu12-bindings", None, "10.13.3.9.post1", "10.14.1.48.post1", "10.15.1.29", "10.16.1.11"),
    *_tensorrt("tensorrt-cu13-bindings", None, "11.0.0.114", "11.1.0.106", "11.2.1.2", "11.3.0.99", "11.4.0.106"),
    *_tensorrt("tensorrt-rtx-cu13-bindings", None, "1.4.0.76", "1.5.0.114", "1.6.1.120", "1.7.1.116"),
]
CUDA_VERSIONS = "12.9.10", "13.0.3", "13.4.4", "13.5.0"
CUDA = [Release("cuda-bindings", version, "cuda.bindings.runtime") for version in CUDA_VERSIONS]
CUDA_UTILS = [Release("cuda-bindings", version, "cuda.bindings.utils") for version in CUDA_VERSIONS]


def cache_folder() -> Path:
    chosen = os.environ.get("KERAS_TRT_TEST_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("keras_trt_tests"))


@functools.cache
def names(release: Release) -> Names:
    """The public names of a release."""
    folder = cache_folder() / f"cp{sys.version_info[0]}{sys.version_info[1]}" / f"{release.project}-{release.version}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        wheel = _wheel(release, folder)
        # The name tells the wheel, the module and the form of the dump: a change of any makes a new one.
        parts = wheel.read_bytes(), (HERE / "child.py").read_bytes(), release.module.encode()
        found = folder / f"names-{hashlib.sha256(b''.join(parts)).hexdigest()[:16]}.json"
        if not found.exists():
            _dump(release, wheel, found)
    loaded: Names = json.loads(found.read_text())
    return loaded


def all_names(releases: list[Release]) -> dict[Release, Names]:
    """The public names of those releases that the running Python can read."""
    readable = [release for release in releases if not release.left_out]
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(readable, pool.map(names, readable), strict=True))


def _wheel(release: Release, folder: Path) -> Path:
    """The wheel of a release in its cache folder, downloaded if it is not there."""
    for wheel in folder.glob("*.whl"):
        return wheel
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--retries", "2"]
        _run(
            [*command, "--no-deps", "--only-binary=:all:", "-d", scratch, release.requirement],
            f"cannot download {release.label}",
        )
        (downloaded,) = Path(scratch).glob("*.whl")
        return downloaded.replace(folder / downloaded.name)


def _dump(release: Release, wheel: Path, target: Path) -> None:
    """Writes the names of a release to `target`, as an isolated child process with the wheel's files reads them."""
    more = []
    if release.project == "cuda-bindings":  # they find CUDA by cuda-pathfinder, which is a package of its own
        spec = importlib.util.find_spec("cuda.pathfinder")
        if spec is None or spec.origin is None:
            raise BindingsError("cuda-pathfinder is not installed: install the extra `test`")
        more = [str(Path(spec.origin).parents[2])]
    libraries = os.pathsep.join(filter(None, [str(_stub()), os.environ.get("LD_LIBRARY_PATH")]))
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        zipfile.ZipFile(wheel).extractall(scratch)
        output = Path(scratch, "names.json")
        # -I and -S: neither the environment nor installed packages may mix with the wheel.
        command = [sys.executable, "-I", "-S", str(HERE / "child.py"), scratch, release.module, str(output), *more]
        _run(command, f"cannot import {release.label}", LD_LIBRARY_PATH=libraries)
        output.replace(target)


def _stub() -> Path:
    """The folder of the stub libraries."""
    source = HERE / "stub.c"
    wanted = source.read_bytes() + repr(LIBRARIES).encode()
    folder = cache_folder() / f"stub-{hashlib.sha256(wanted).hexdigest()[:16]}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            # Zig's C compiler comes from the package index: the tests ask no compiler of the machine.
            compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-musl", "-nostdlib"]
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                stub, filled = Path(scratch, "stub.so"), Path(scratch, "filled")
                _run([*compiler, "-shared", "-fPIC", "-o", str(stub), str(source)], "cannot compile stub.c")
                filled.mkdir()
                for library in LIBRARIES:
                    shutil.copy(stub, filled / library)
                filled.rename(folder)
    return folder


def _run(command: list[str], failure: str, **environment: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})
    if done.returncode:
        raise BindingsError(f"{failure}: {' '.join(command)}\n{done.stdout}{done.stderr}")
