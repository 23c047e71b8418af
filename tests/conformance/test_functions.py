from __future__ import annotations

import pytest

from .check import Case, check
from .functions import NO_COMPUTATION, activations, operations, used_by_layers

ACTIVATIONS, OPERATIONS = activations(), operations()


def test_each_function_that_layers_use_is_covered() -> None:
    assert used_by_layers() - NO_COMPUTATION - set(OPERATIONS) == set()


@pytest.mark.parametrize("case", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activation(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", OPERATIONS.values(), ids=OPERATIONS)
def test_operation(case: Case) -> None:
    check(case)
