"""What the tests of test_gpu.py measure, and where."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from typing import Any

import keras_trt
from keras_trt import cuda

SUMMARY: dict[str, Any] = {}


def where(info: cuda.DeviceInfo) -> dict[str, Any]:
    import tensorrt

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return ""

    packages = ("keras", "tensorflow", "tensorflow-cpu", "tf2onnx", "onnx", "onnxruntime", "numpy", "cuda-python")
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = ""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python -m pytest -m gpu tests",
        "device": {"name": info.name, "driver": driver, "cuda": info.driver, "memory_bytes": info.memory_bytes},
        "host": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {
            "keras_trt": keras_trt.__version__,
            "tensorrt": tensorrt.__version__,
            "python": platform.python_version(),
            **{name: found for name in packages if (found := version(name))},
        },
    }


def note(section: str, name: str, value: Any) -> None:
    SUMMARY.setdefault(section, {})[name] = value
