from __future__ import annotations

import pytest

from . import applications
from .check import check_model


def test_the_short_ones_exist() -> None:
    assert set(applications.SHORT) <= set(applications.names())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in applications.SHORT else [pytest.mark.long])
        for name in applications.names()
    ],
)
def test_application(name: str) -> None:
    check_model(applications.make(name), [applications.given(name)])
