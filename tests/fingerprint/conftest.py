from __future__ import annotations

import sys
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _forget_users_modules() -> Any:
    yield
    for name in [name for name in sys.modules if name.startswith(("users_module", "m_one", "keras_trt_installed"))]:
        del sys.modules[name]
