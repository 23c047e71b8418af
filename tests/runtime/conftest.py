from __future__ import annotations

from collections.abc import Iterator

import pytest

from .host_cuda import HostCuda, installed


@pytest.fixture
def host_cuda() -> Iterator[HostCuda]:
    with installed() as cuda:
        yield cuda
