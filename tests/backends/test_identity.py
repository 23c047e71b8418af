"""What a plan depends on, of a GPU that is given here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from keras_trt.backends.tensorrt import TensorRTBackend
from keras_trt.backends.tensorrt.flavor import flavor
from keras_trt.cuda.runtime import DeviceInfo

H100 = DeviceInfo("NVIDIA H100 80GB HBM3", (9, 0), 132, 85 << 30, 13000)


def identity(info: DeviceInfo) -> dict[str, Any]:
    backend = object.__new__(TensorRTBackend)  # one is only made where there is a GPU
    backend.name, backend._flavor, backend._info = "tensorrt_rtx", flavor("tensorrt_rtx"), info
    return backend.identity()


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb"},
        {"compute_capability": (8, 9)},
        {"multiprocessors": 114},
        {"memory_bytes": 80 << 30},
        {"driver": 12090},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_gpu_or_driver_is_another_engine(changed: dict[str, Any]) -> None:
    assert identity(replace(H100, **changed)) != identity(H100)


def test_a_newer_driver_of_the_same_cuda_is_not() -> None:
    """Drivers run what was built for an older minor version: an update is no reason to build everything again."""
    assert identity(replace(H100, driver=13010)) == identity(H100)
