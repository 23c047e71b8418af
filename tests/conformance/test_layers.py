from __future__ import annotations

import inspect

import pytest
from keras import layers

from .check import check
from .layers import CASES, NOT_EXPORTABLE, NOT_YET


def public_layers() -> set[str]:
    """Return each class once, under its own name: some have another name too, as `Convolution2D`."""
    found = {name: one for name, one in vars(layers).items() if inspect.isclass(one) and issubclass(one, layers.Layer)}
    return {one.__name__ if hasattr(layers, one.__name__) else name for name, one in found.items()}


def test_each_public_layer_is_covered_or_said_to_be_out_of_reach() -> None:
    covered = {*CASES, *NOT_EXPORTABLE}
    assert public_layers() - covered == set()
    assert covered - public_layers() == set()
    assert not set(CASES) & set(NOT_EXPORTABLE)
    assert set(NOT_YET) <= set(CASES)


def parameters() -> list[object]:
    found: list[object] = []
    for name, cases in CASES.items():
        marks = [pytest.mark.xfail(reason=NOT_YET[name])] if name in NOT_YET else []
        found += [pytest.param(case, id=f"{name}-{i}", marks=marks) for i, case in enumerate(cases)]
    return found


@pytest.mark.parametrize("case", parameters())
def test_layer(case: object) -> None:
    check(case)  # type: ignore[arg-type]
