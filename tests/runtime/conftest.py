from __future__ import annotations

from collections.abc import Iterator

import pytest

from keras_trt.runtime import Session
from keras_trt.runtime.gpu import GpuRunner
from keras_trt.runtime.plan import Batch

from .helpers import assert_right, in_threads, inputs, session
from .host_cuda import HostCuda, installed
from .host_engine import HostEngineOnDevice
from .joined import COSTS, noted
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


@pytest.fixture
def one(host_cuda: HostCuda) -> Iterator[Session]:
    """A session whose calls can be run together."""
    one = session(HostEngineOnDevice(host_cuda), largest=32, costs=COSTS)
    assert_right(one, inputs(1))  # it is known then that the shapes of its outputs are
    yield one
    in_threads([one.close], 10)


@pytest.fixture
def ran(one: Session, monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """All batches that are run, in their order."""
    return noted(one, monkeypatch)
