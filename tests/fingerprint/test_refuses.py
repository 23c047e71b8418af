"""Models that have no structure key, and what is said of them."""

from __future__ import annotations

from typing import Any

import pytest

from keras_trt.fingerprint import Unhashable, structure_key

from ..models import keras, kl
from .helpers import custom, execute, registered_model, sequential

# Keras 3 itself, when it saves a model with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LOCKED = """
import threading
def factory(lock):
    def f(x):
        return x if lock else -x
    return f
f = factory(threading.Lock())
"""
LOCKED_CELL = """
import threading
class Cell(kl.LSTMCell):
    def __init__(self):
        super().__init__(2)
        self.guard = threading.Lock()
"""
TRACKED = """
class Other(kl.Layer):
    def __init__(self):
        super().__init__()
        self.tracker = keras.metrics.Mean()
a = Other()
a.built = True
"""
REFUSED: dict[str, tuple[str, str]] = {
    "a lock": (custom("x", init="self.guard = threading.Lock()", before="import threading"), "guard"),
    "a lock in a closure": (custom("f(x)", before=LOCKED), "lock"),
    "a lock in a cell of a wrapper": (sequential("kl.RNN(Cell())", shape="(5, 4)", before=LOCKED_CELL), "guard"),
    "a lock in a class": (
        custom("x", before="import threading\nclass Base:\n    guard = threading.Lock()").replace(
            "(kl.Layer)", "(Base, kl.Layer)"
        ),
        "guard",
    ),
    "the environment": (custom("x * float(os.environ.get('K', 2))", before="import os"), "environ"),
    "a file": (custom("open('k') if 1 > 2 else x"), "open"),
    "eval": (custom("eval('x')"), "eval"),
    "globals": (custom("globals()['f'](x)", before="f = ops.relu"), "globals"),
    "a module as a value": (
        custom("getattr(m, 'f')(x)", before="import types\nm = types.ModuleType('m')\nm.f = ops.relu"),
        "module",
    ),
    "a file of numpy": (custom("x * np.load('k') if 1 > 2 else x"), "numpy.load"),
    "a path": (custom("x if 1 < 2 else Path('k').stat()", before="from pathlib import Path"), "Path"),
    "a metric of another layer that infers": (custom("x * a.tracker.result()", before=TRACKED), "Mean"),
    "a metric that infers": (custom("x * self.m.result()", init="self.m = keras.metrics.Mean()"), "Mean"),
    "a generator": (custom("x * next(G)", before="G = (i for i in (1, 2))"), "generator"),
    "a random state": (custom("x * G.random()", before="G = np.random.default_rng(0)"), "Generator"),
    "an iterator": (custom("x * next(G)", before="G = iter([1, 2])"), "iterator"),
}


@pytest.mark.parametrize(("source", "named"), REFUSED.values(), ids=REFUSED)
def test_refuses(source: str, named: str) -> None:
    with pytest.raises(Unhashable) as caught:
        structure_key(execute(source))
    assert named in caught.value.reason


def test_refuses_an_open_file(tmp_path: Any) -> None:
    model = registered_model()
    with (tmp_path / "log").open("w") as file:
        model.second.log = file
        with pytest.raises(Unhashable, match=r"RegisteredModel.*Registered.*log"):
            structure_key(model)


def test_refuses_a_model_that_is_not_built() -> None:
    with pytest.raises(Unhashable, match="not built"):
        structure_key(keras.Sequential([kl.Dense(2)]))


def test_refuses_containers_that_hold_themselves() -> None:
    loop: list[Any] = []
    loop.append(loop)
    model = keras.Sequential([keras.Input((4,)), kl.Lambda(lambda x: x if loop else -x)])
    with pytest.raises(Unhashable, match="itself"):
        structure_key(model)
