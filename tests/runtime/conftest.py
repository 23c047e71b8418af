from __future__ import annotations

from collections.abc import Iterator

import pytest

from keras_trt.runtime.gpu import GpuRunner

from .host_cuda import HostCuda, installed
from .host_engine import HostEngineOnDevice
from .runners import running


@pytest.fixture
def host_cuda() -> Iterator[HostCuda]:
    with installed() as cuda:
        yield cuda


@pytest.fixture
def engine(host_cuda: HostCuda) -> HostEngineOnDevice:
    return HostEngineOnDevice(host_cuda)


@pytest.fixture
def one_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runners that are made after this have one slot."""
    monkeypatch.setattr("keras_trt.runtime.pool.SLOTS", 1)


@pytest.fixture
def runner(engine: HostEngineOnDevice) -> Iterator[GpuRunner]:
    with running(engine) as runner:
        yield runner
