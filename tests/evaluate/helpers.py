"""What the tests of `evaluate` share: a compiled model, its data, and the comparison of results."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..models import floats, keras, kl

ROWS = 75


def compiled(**settings: Any) -> Any:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(5, activation="tanh"), kl.Dense(3)])
    model.compile(**{"loss": "mse", "metrics": ["mae", keras.metrics.RootMeanSquaredError()], **settings})
    return model


def data(rows: int = ROWS) -> tuple[Any, Any, Any]:
    return floats(4)(rows), floats(3)(rows)[::-1], np.random.default_rng(3).random(rows)


def close(expected: Any, actual: Any) -> None:
    """Assert the same results by the same names; that they are not those of another batch of data is for the caller."""
    if isinstance(expected, dict):
        assert expected.keys() == actual.keys()
        expected, actual = list(expected.values()), list(actual.values())
    assert type(actual) is type(expected)
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)
