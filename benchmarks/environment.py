"""Where and with what a benchmark ran, and how its results are written."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def describe(script: str) -> dict[str, Any]:
    """Return date, device, host, versions and command."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": _device(),
        "host": {"cpu": _cpu(), "cores": os.cpu_count()},
        "versions": _versions(),
        "command": " ".join(["python", f"benchmarks/{script}", *sys.argv[1:]]),
    }


def of_children() -> dict[str, str]:
    """Return the environment for processes that a benchmark starts: they find this repository's packages."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}


@contextmanager
def alone() -> Iterator[None]:
    """Let no two benchmarks of this host measure at once: they would share its memory and processors.

    What each GPU does for itself, such as to build and to compile, goes on meanwhile.
    """
    import fcntl  # of POSIX alone; an interpreter that has Keras alone has no `filelock`

    with (Path(tempfile.gettempdir()) / "keras_trt-benchmarks.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write(name: str, results: dict[str, Any]) -> Path:
    """Write `benchmarks/results/NAME-DATE.json`; one that is there is never changed, so the next gets a number."""
    folder = ROOT / "benchmarks" / "results"
    path, number = folder / f"{name}-{results['date']}.json", 1
    while path.exists():
        number += 1
        path = folder / f"{name}-{results['date']}-{number}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    return path


def _device() -> dict[str, Any] | None:
    from keras_trt import cuda
    from keras_trt.errors import MissingDependencyError

    try:
        count = cuda.device_count()
    except MissingDependencyError:
        return None
    if not count:
        return None
    info = cuda.device_info(0)
    return {"name": info.name, "cuda": info.driver, "count": count}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.machine()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "keras_trt": _commit()}
    packages = ("keras", "tensorflow", "tensorflow-cpu", "tf2onnx", "onnxruntime", "tensorrt", "tensorrt-rtx-cu13")
    for name in (*packages, "cuda-python", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "tensorrt" not in found and importlib.util.find_spec("tensorrt"):  # installed without metadata
        import tensorrt

        found["tensorrt"] = tensorrt.__version__
    return found


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # a machine without git
        return "unknown"
    return done.stdout.strip() or "unknown"
