"""The two keys of a model: what must change them, what must not, and what has none."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the libraries' own imports
    import keras
    import tensorflow as tf

from keras import layers as kl

from keras_trt.fingerprint import Unhashable, structure_key, weights_key

# Keras 3 itself, when it saves a model with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# A model by source code, so that two that differ in one token have equal names and configurations.
PRELUDE = """
import dataclasses, enum, functools, math
import keras, numpy as np, tensorflow as tf
from keras import layers as kl, ops
"""
LAYER = """
class Scale(kl.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        {init}
    def call(self, x):
        return {body}
def build():
    return keras.Sequential([keras.Input((4,)), kl.Dense(3), Scale()])
"""


def execute(source: str) -> Any:
    """Run a model's source as a module of its own and return the model."""
    module = types.ModuleType("users_module")
    sys.modules[module.__name__] = module  # dataclasses look there
    exec(compile(PRELUDE + textwrap.dedent(source), f"/home/{id(module)}.py", "exec"), module.__dict__)  # noqa: S102
    return module.build()


@pytest.fixture(autouse=True)
def _forget_users_modules() -> Any:
    yield
    for name in [name for name in sys.modules if name.startswith(("users_module", "m_one", "keras_trt_installed"))]:
        del sys.modules[name]


def custom(body: str = "x", init: str = "pass", before: str = "") -> str:
    return textwrap.dedent(before) + LAYER.format(body=body, init=init)


def sequential(*layers: str, shape: str = "(4,)", before: str = "") -> str:
    return f"{before}\ndef build():\n    return keras.Sequential([keras.Input({shape}), {', '.join(layers)}])\n"


def functional(*lines: str, before: str = "") -> str:
    body = "\n    ".join(lines)
    return f"{before}\ndef build():\n    i = keras.Input((4,))\n    {body}\n    return keras.Model(i, o)\n"


FACTORY = "def factory(k):\n    def helper(x):\n        return x * k\n    return helper\nhelper = factory({})\n"
MODULE = "import sys, types\nm = sys.modules['m_one'] = types.ModuleType('m')\nm.g = lambda x: x * {}\n"
IMPORT = MODULE + "def f(x):\n    import m_one\n    return m_one.g(x)\n"
IMPORT_FROM = MODULE + "def f(x):\n    from m_one import g\n    return g(x)\n"
RECURSION = "def f(x, n=2): return g(x, n) if n else x\ndef g(x, n): return f(x, n - 1) * 2"
SHARED = "d, e = kl.Dense(4), kl.Dense(4)"
ENUM = "class Mode(enum.Enum):\n    A = {}\nMODE = Mode.A\n"
DATACLASS = "@dataclasses.dataclass\nclass Options:\n    scale: float = 1.0\nOPTIONS = Options({})\n"
METHODS = """
class Base(kl.Layer):
    scale = {}
    @property
    def shift(self):
        return {}
    @staticmethod
    def double(x):
        return x * {}
    @classmethod
    def offset(cls):
        return {}
class Scale(Base):
    def call(self, x):
        return self.double(x) * self.scale + self.shift + self.offset()
def build():
    return keras.Sequential([keras.Input((4,)), Scale()])
"""
NORMALIZED = "kl.Normalization(mean=[0., 0., 0., {}], variance=[1., 1., 1., 1.])"
SUBCLASS = """
class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [kl.Dense(3), kl.Dense(3)]
        self.norm = kl.BatchNormalization()
        {init}
    def call(self, x, training=False):
        for block in self.blocks:
            x = block(x)
        return {body}
    {more}
def build():
    model = Net()
    model(np.zeros(({batch}, {width}), "float32"))
    {after}
    return model
"""


def subclass(**parts: Any) -> str:
    defaults = {"init": "pass", "body": "self.norm(x)", "more": "pass", "batch": 2, "width": 4, "after": "pass"}
    return SUBCLASS.format(**(defaults | parts))


BASE = """
class Base(kl.Layer):
    def fit(self, x): return x * {}
"""
SUMMARY = """
class Other(kl.Layer):
    def summary(self, x): return x * {}
a = Other()
a.built = True
"""
DIFFERS: dict[str, tuple[str, str]] = {
    "call": (custom("x * 2.0"), custom("x + 2.0")),
    "constant of call": (custom("x * 2.0"), custom("x * 3.0")),
    "int and float": (custom("x * 2"), custom("x * 2.0")),
    "zero and minus zero": (custom("x * 0.0"), custom("x * -0.0")),
    "closure": (custom("helper(x)", before=FACTORY.format(2.0)), custom("helper(x)", before=FACTORY.format(3.0))),
    "global constant": (custom("x * K", before="K = 2.0"), custom("x * K", before="K = 3.0")),
    "global array": (custom("x * K", before="K = np.ones(3)"), custom("x * K", before="K = np.zeros(3)")),
    "global array type": (
        custom("x * K", before="K = np.ones(3, 'f4')"),
        custom("x * K", before="K = np.ones(3, 'f8')"),
    ),
    "byte order": (custom("x * K", before="K = np.ones(3, '<f4')"), custom("x * K", before="K = np.ones(3, '>f4')")),
    "global tensor": (custom("x * K", before="K = tf.constant(2.)"), custom("x * K", before="K = tf.constant(3.)")),
    "untracked variable": (
        custom("x * K", before="K = tf.Variable(2.)"),
        custom("x * K", before="K = tf.Variable(3.)"),
    ),
    "global dict": (custom("x * K['k']", before="K = {'k': 2}"), custom("x * K['k']", before="K = {'k': 3}")),
    "global list, tuple": (custom("x * K[0]", before="K = [2.]"), custom("x * K[0]", before="K = (2.,)")),
    "global missing": (custom("K if 1 > 2 else x", before=""), custom("K if 1 > 2 else x", before="K = 1")),
    "helper": (
        custom("helper(x)", before="def helper(x): return x * 2"),
        custom("helper(x)", before="def helper(x): return x + 2"),
    ),
    "helper of helper": (
        custom("f(x)", before="def f(x): return g(x)\ndef g(x): return x * 2"),
        custom("f(x)", before="def f(x): return g(x)\ndef g(x): return x * 3"),
    ),
    "recursion": (
        custom("f(x, 2)", before="def f(x, n): return x if n == 0 else g(x, n)\ndef g(x, n): return f(x, n - 1) * 2"),
        custom("f(x, 2)", before="def f(x, n): return x if n == 0 else g(x, n)\ndef g(x, n): return f(x, n - 1) * 3"),
    ),
    "default argument": (
        custom("f(x)", before="def f(x, k=2): return x * k"),
        custom("f(x)", before="def f(x, k=3): return x * k"),
    ),
    "keyword default": (
        custom("f(x)", before="def f(x, *, k=2): return x * k"),
        custom("f(x)", before="def f(x, *, k=3): return x * k"),
    ),
    "nested lambda": (custom("(lambda y: y * 2)(x)"), custom("(lambda y: y * 3)(x)")),
    "nested comprehension": (custom("sum([x * i for i in (1, 2)])"), custom("sum([x * i for i in (1, 3)])")),
    "global of a nested lambda": (
        custom("(lambda y: y * K)(x)", before="K = 2"),
        custom("(lambda y: y * K)(x)", before="K = 3"),
    ),
    "set constant": (custom("x if 2 in {1, 2} else -x"), custom("x if 2 in {1, 3} else -x")),
    "partial": (
        custom("f(x)", before="f = functools.partial(ops.multiply, 2.)"),
        custom("f(x)", before="f = functools.partial(ops.multiply, 3.)"),
    ),
    "lru_cache": (
        custom("f() * x", before="@functools.lru_cache\ndef f(): return 2"),
        custom("f() * x", before="@functools.lru_cache\ndef f(): return 3"),
    ),
    "wraps": (
        custom("f(x)", before="@functools.wraps(ops.relu)\ndef f(x): return x * 2"),
        custom("f(x)", before="@functools.wraps(ops.relu)\ndef f(x): return x * 3"),
    ),
    "library's decorator": (
        custom("x * next(f().gen)", before="import contextlib\n@contextlib.contextmanager\ndef f(): yield 2"),
        custom("x * next(f().gen)", before="import contextlib\n@contextlib.contextmanager\ndef f(): yield 3"),
    ),
    "imported in a function": (custom("f(x)", before=IMPORT.format(2)), custom("f(x)", before=IMPORT.format(3))),
    "imported name in a function": (
        custom("f(x)", before=IMPORT_FROM.format(2)),
        custom("f(x)", before=IMPORT_FROM.format(3)),
    ),
    "function of a user's module": (
        custom("m.g(x)", before=MODULE.format(2)),
        custom("m.g(x)", before=MODULE.format(3)),
    ),
    "tf.function": (
        custom("f(x)", before="@tf.function\ndef f(x): return x * 2"),
        custom("f(x)", before="@tf.function\ndef f(x): return x * 3"),
    ),
    "custom_gradient": (
        custom("f(x)", before="@tf.custom_gradient\ndef f(x): return x * 2, lambda g: g"),
        custom("f(x)", before="@tf.custom_gradient\ndef f(x): return x * 3, lambda g: g"),
    ),
    "bound method": (
        custom("f(x)", before="class H:\n    k = 2\n    def f(self, x): return x * self.k\nf = H().f"),
        custom("f(x)", before="class H:\n    k = 3\n    def f(self, x): return x * self.k\nf = H().f"),
    ),
    "function attribute": (
        custom("f(x)", before="def f(x): return x * f.k\nf.k = 2"),
        custom("f(x)", before="def f(x): return x * f.k\nf.k = 3"),
    ),
    "library function": (custom("ops.relu(x)"), custom("ops.gelu(x)")),
    "imported library function": (
        custom("f(x)", before="from keras.ops import relu as f"),
        custom("f(x)", before="from keras.ops import gelu as f"),
    ),
    "numpy function": (custom("x * f(2.)", before="f = np.sin"), custom("x * f(2.)", before="f = np.cos")),
    "builtin": (custom("x * f(2.5)", before="f = math.floor"), custom("x * f(2.5)", before="f = math.ceil")),
    "enum": (custom("x * MODE.value", before=ENUM.format(2)), custom("x * MODE.value", before=ENUM.format(3))),
    "dataclass": (
        custom("x * OPTIONS.scale", before=DATACLASS.format(2)),
        custom("x * OPTIONS.scale", before=DATACLASS.format(3)),
    ),
    "slots": (
        custom("x * S.k", before="class H:\n    __slots__ = ('k',)\nS = H()\nS.k = 2"),
        custom("x * S.k", before="class H:\n    __slots__ = ('k',)\nS = H()\nS.k = 3"),
    ),
    "class attribute": (METHODS.format(1, 0, 2, 0), METHODS.format(5, 0, 2, 0)),
    "property": (METHODS.format(1, 0, 2, 0), METHODS.format(1, 5, 2, 0)),
    "static method": (METHODS.format(1, 0, 2, 0), METHODS.format(1, 0, 5, 0)),
    "class method": (METHODS.format(1, 0, 2, 0), METHODS.format(1, 0, 2, 5)),
    "attribute": (custom("x * self.k", init="self.k = 2."), custom("x * self.k", init="self.k = 3.")),
    "attribute array": (
        custom("x * self.k", before="def f(): return np.ones(3)\n", init="self.k = f()"),
        custom("x * self.k", before="def f(): return np.ones(4)[:3] * 2\n", init="self.k = f()"),
    ),
    "attribute of the name activation": (
        custom("self.activation(x)", init="self.activation = ops.relu"),
        custom("self.activation(x)", init="self.activation = ops.tanh"),
    ),
    "autocast": (sequential("kl.Dense(3, autocast=True)"), sequential("kl.Dense(3, autocast=False)")),
    "units": (sequential("kl.Dense(3)"), sequential("kl.Dense(4)")),
    "activation": (sequential("kl.Dense(3, activation='relu')"), sequential("kl.Dense(3, activation='tanh')")),
    "custom activation": (
        sequential("kl.Dense(3, activation=f)", before="def f(x): return x * 2"),
        sequential("kl.Dense(3, activation=f)", before="def f(x): return x * 3"),
    ),
    "lambda activation": (
        sequential("kl.Dense(3, activation=lambda x: x * 2)"),
        sequential("kl.Dense(3, activation=lambda x: x * 3)"),
    ),
    "Lambda": (sequential("kl.Lambda(lambda x: x * 2)"), sequential("kl.Lambda(lambda x: x * 3)")),
    "Lambda arguments": (
        sequential("kl.Lambda(f, arguments={'i': [0, 1]})", before="def f(x, i): return x[i[0]]"),
        sequential("kl.Lambda(f, arguments={'i': (0, 1)})", before="def f(x, i): return x[i[0]]"),
    ),
    "Lambda closure": (
        sequential("kl.Lambda(helper)", before=FACTORY.format(2.0)),
        sequential("kl.Lambda(helper)", before=FACTORY.format(3.0)),
    ),
    "order": (sequential("kl.ReLU(), kl.Softmax()"), sequential("kl.Softmax(), kl.ReLU()")),
    "wiring": (
        functional("a, b = kl.Dense(4)(i), kl.Dense(4)(i)", "o = kl.Subtract()([a, b])"),
        functional("a, b = kl.Dense(4)(i), kl.Dense(4)(i)", "o = kl.Subtract()([a, a])"),
    ),
    "sharing": (functional(SHARED, "o = d(d(i))"), functional(SHARED, "o = e(d(i))")),
    "output order": (
        functional(SHARED, "o = [d(i), e(d(i))]"),
        functional(SHARED, "o = [e(d(i)), d(i)][::1]"),
    ),
    "output keys": (functional("o = {'a': kl.Dense(1)(i)}"), functional("o = {'b': kl.Dense(1)(i)}")),
    "operation": (functional("o = i + 2."), functional("o = i * 2.")),
    "constant of an operation": (functional("o = i + 2."), functional("o = i + 3.")),
    "array of an operation": (functional("o = i + np.ones(4)"), functional("o = i + np.zeros(4)")),
    "axis of an operation": (functional("o = keras.ops.sum(i, axis=0)"), functional("o = keras.ops.sum(i, axis=1)")),
    "slice": (functional("o = i[:, 1:]"), functional("o = i[:, 2:]")),
    "nested layer": (
        functional("o = keras.Sequential([kl.Dense(4, activation='relu')])(i)"),
        functional("o = keras.Sequential([kl.Dense(4, activation='tanh')])(i)"),
    ),
    "wrapped layer": (
        sequential("kl.TimeDistributed(kl.Dense(3, use_bias=True))", shape="(5, 4)"),
        sequential("kl.TimeDistributed(kl.Dense(3, use_bias=False))", shape="(5, 4)"),
    ),
    "recurrent cell": (
        sequential("kl.RNN(kl.LSTMCell(3))", shape="(5, 4)"),
        sequential("kl.RNN(kl.LSTMCell(3, activation='relu'))", shape="(5, 4)"),
    ),
    "input shape": (sequential("kl.ReLU()", shape="(4,)"), sequential("kl.ReLU()", shape="(5,)")),
    "input type": (
        sequential("kl.ReLU()", shape="(4,), dtype='float32'"),
        sequential("kl.ReLU()", shape="(4,), dtype='int32'"),
    ),
    "fixed batch": (sequential("kl.ReLU()"), sequential("kl.ReLU()", shape="(4,), batch_size=3")),
    "policy": (sequential("kl.Dense(3)"), sequential("kl.Dense(3, dtype='mixed_float16')")),
    "epsilon": (sequential("kl.LayerNormalization()"), sequential("kl.LayerNormalization(epsilon=1e-5)")),
    "vocabulary": (
        sequential("kl.StringLookup(vocabulary=['a', 'b'])", shape="(1,), dtype='string'"),
        sequential("kl.StringLookup(vocabulary=['b', 'a'])", shape="(1,), dtype='string'"),
    ),
    "given mean": (sequential(NORMALIZED.format("1.")), sequential(NORMALIZED.format("2."))),
    "subclassed call": (subclass(), subclass(body="self.norm(x) * 2.")),
    "subclassed width": (subclass(), subclass(width=5)),
    "subclassed attribute": (subclass(after="model.scale = 2."), subclass(after="model.scale = 3.")),
    "replaced method": (
        subclass(after="model.blocks[0].call = lambda x: x * 2."),
        subclass(after="model.blocks[0].call = lambda x: x * 3."),
    ),
    "replaced activation": (
        subclass(after="model.blocks[0].activation = keras.activations.relu"),
        subclass(after="model.blocks[0].activation = keras.activations.tanh"),
    ),
    "trainable, where code reads it": (
        subclass(body="self.norm(x) * (2.0 if self.trainable else 3.0)"),
        subclass(body="self.norm(x) * (2.0 if self.trainable else 3.0)", after="model.trainable = False"),
    ),
    "helper that trains, where call uses it": (
        subclass(body="self.compute_loss(self.norm(x))", more="def compute_loss(self, x): return x * 2."),
        subclass(body="self.compute_loss(self.norm(x))", more="def compute_loss(self, x): return x * 3."),
    ),
    "helper that trains, of a base class": (
        custom("super().fit(x)", before=BASE.format(2)).replace("Scale(kl.Layer)", "Scale(Base)"),
        custom("super().fit(x)", before=BASE.format(3)).replace("Scale(kl.Layer)", "Scale(Base)"),
    ),
    "helper that trains, of an object that is met before": (
        custom("(a, a.summary(x))[1]", before=SUMMARY.format(2)),
        custom("(a, a.summary(x))[1]", before=SUMMARY.format(3)),
    ),
    "helper that trains, by its name in a string": (
        custom("getattr(a, 'summary')(x)", before=SUMMARY.format(2)),
        custom("getattr(a, 'summary')(x)", before=SUMMARY.format(3)),
    ),
    "scalar of numpy": (
        custom("x * self.k", init="self.k = np.sqrt(2.)"),
        custom("x * self.k", init="self.k = np.sqrt(3.)"),
    ),
    "type of a scalar": (custom("x * K", before="K = np.float64(2)"), custom("x * K", before="K = 2.")),
    "masked array": (
        custom("x * K.sum()", before="K = np.ma.array([1., 2.], mask=[True, False])"),
        custom("x * K.sum()", before="K = np.ma.array([1., 2.], mask=[False, True])"),
    ),
}


@pytest.mark.parametrize(("one", "other"), DIFFERS.values(), ids=DIFFERS)
def test_differs_on(one: str, other: str) -> None:
    if one == other:
        pytest.fail("the two sources are the same")
    keys = [structure_key(execute(source)) for source in (one, other)]
    assert keys[0] != keys[1]


SAME: dict[str, tuple[str, str]] = {
    "names that Keras makes up": (sequential("kl.Dense(3), kl.ReLU()"), sequential("kl.Dense(3), kl.ReLU()")),
    "names of nested models": (
        functional("o = keras.Sequential([kl.Bidirectional(kl.LSTM(2))])(kl.Reshape((2, 2))(i))"),
        functional("o = keras.Sequential([kl.Bidirectional(kl.LSTM(2))])(kl.Reshape((2, 2))(i))"),
    ),
    "the name of the model": (
        functional("o = i * 2."),
        functional("o = i * 2.").replace("(i, o)", "(i, o, name='net')"),
    ),
    "lines and comments": (custom("x * 2"), "# a comment\n\n" + custom("(x   *\n   2)  # two")),
    "closures": (custom("helper(x)", before=FACTORY.format(2.0)), custom("helper(x)", before=FACTORY.format(2.0))),
    "recursion": (custom("f(x)", before=RECURSION), custom("f(x)", before=RECURSION)),
    "unused globals": (custom("x * 2", before="K = 2"), custom("x * 2", before="K = 3")),
    "seeds": (sequential("kl.Dropout(.5, seed=1)"), sequential("kl.Dropout(.5, seed=2)")),
    "drawn seeds": (
        sequential("kl.RandomCrop(2, 2)", shape="(4, 4, 3)"),
        sequential("kl.RandomCrop(2, 2)", shape="(4, 4, 3)"),
    ),
    "seed generators": (
        subclass(init="self.g = keras.random.SeedGenerator()"),
        subclass(init="self.g = keras.random.SeedGenerator()"),
    ),
    "trainable": (subclass(), subclass(after="model.norm.trainable = False")),
    "first batch": (subclass(batch=2), subclass(batch=7)),
    "first batch of nested models": (
        subclass(batch=2, init="self.inner = keras.Sequential([kl.Dense(2)])", body="self.inner(x)").replace(
            "kl.BatchNormalization()", "kl.ReLU()"
        ),
        subclass(batch=7, init="self.inner = keras.Sequential([kl.Dense(2)])", body="self.inner(x)").replace(
            "kl.BatchNormalization()", "kl.ReLU()"
        ),
    ),
    "training code": (
        subclass(more="def train_step(self, data): return {'a': 1}"),
        subclass(more="def train_step(self, data): return {'a': 2}"),
    ),
    "trackers": (
        subclass(init="self.tracker = keras.metrics.Mean()", more="metrics = property(lambda self: [self.tracker])"),
        subclass(
            init="self.tracker = keras.metrics.Mean()",
            more="metrics = property(lambda self: [self.tracker])",
            after="model.tracker.update_state(3.)",
        ),
    ),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_same_on(one: str, other: str) -> None:
    assert structure_key(execute(one)) == structure_key(execute(other))


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
    model = _registered_model()
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


def test_names_of_users_enter() -> None:
    keys = {structure_key(keras.Sequential([keras.Input((4,)), kl.Dense(2, name=name)])) for name in ("a", "b", None)}
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("image_data_format", "channels_first"),
        ("floatx", "float16"),
        ("epsilon", 1e-3),
        ("dtype_policy", "mixed_float16"),
    ],
)
def test_settings_of_keras_enter(setting: str, value: Any) -> None:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(2)])
    before, old = structure_key(model), getattr(keras.config, setting)()
    change = getattr(keras.config, f"set_{setting}")
    change(value)
    try:
        assert structure_key(model) != before
    finally:
        change(old)
    assert structure_key(model) == before


@keras.saving.register_keras_serializable(package="keras_trt_tests")
class Registered(kl.Layer):
    def __init__(self, scale: float = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale = scale
        self.inner = kl.Dense(3)

    def build(self, shape: Any) -> None:
        self.inner.build(shape)
        self.shift = self.add_weight(shape=(3,))

    def call(self, x: Any) -> Any:
        return self.inner(x) * self.scale + self.shift

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable(package="keras_trt_tests")
class RegisteredModel(keras.Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.first, self.second = kl.Dense(3), Registered()

    def call(self, x: Any) -> Any:
        return self.second(self.first(x))


@keras.saving.register_keras_serializable(package="keras_trt_tests")
def registered_activation(x: Any) -> Any:
    return x * 2.0


def _registered_model() -> Any:
    model = RegisteredModel()
    model(np.zeros((2, 4), "float32"))
    return model


def _stock(shape: tuple[int, ...], *make: Callable[[], Any], dtype: str | None = None) -> Callable[[], Any]:
    return lambda: keras.Sequential([keras.Input(shape, dtype=dtype), *(one() for one in make)])


def _branches() -> Any:
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    shared = kl.Dense(3)
    x = keras.ops.reshape(kl.Concatenate()([shared(a), shared(b)]), (-1, 2, 3))
    y = x[:, 0] * 2.0 + keras.ops.mean(x, axis=(1,))
    return keras.Model({"a": a, "b": b}, {"o": kl.Dense(2)(y), "p": y})


def _attention() -> Any:
    i = keras.Input((5, 8))
    x = kl.Add()([kl.MultiHeadAttention(2, 4)(i, i), kl.GroupQueryAttention(4, 2, 2)(i, i)])
    return keras.Model(i, [kl.Dense(3, activation="gelu")(kl.LayerNormalization()(x)), kl.Attention()([x, i])])


def _recurrent() -> Any:
    i = keras.Input((5,), dtype="int32")
    x = kl.Bidirectional(kl.LSTM(3, return_sequences=True))(kl.Embedding(10, 4, mask_zero=True)(i))
    return keras.Model(i, kl.GRU(3)(kl.TimeDistributed(kl.Dense(2))(x)))


def _nested() -> Any:
    i, k = keras.Input((4,)), keras.Input((3,))
    inner = keras.Sequential([kl.Dense(3), kl.ReLU()])
    return keras.Model(i, keras.Model(k, kl.Dense(2)(k))(inner(i)))


def _text() -> Any:
    vectors = kl.TextVectorization(output_sequence_length=4)
    vectors.adapt(["a b c", "d e"])
    return keras.Sequential([keras.Input((1,), dtype="string"), vectors, kl.Embedding(10, 3)])


STOCK: dict[str, Callable[[], Any]] = {
    "convolutions": _stock(
        (8, 8, 3),
        lambda: kl.Conv2D(4, 3, padding="same"),
        kl.BatchNormalization,
        lambda: kl.Activation("relu"),
        kl.MaxPooling2D,
        lambda: kl.SeparableConv2D(4, 3),
        lambda: kl.Conv2DTranspose(3, 2),
        lambda: kl.DepthwiseConv2D(2),
        kl.UpSampling2D,
        kl.ZeroPadding2D,
        kl.GlobalAveragePooling2D,
        lambda: kl.Dropout(0.5),
        lambda: kl.Dense(3, activation="softmax"),
    ),
    "one dimension": _stock(
        (8, 3),
        lambda: kl.Conv1D(4, 3),
        lambda: kl.GroupNormalization(2),
        kl.PReLU,
        lambda: kl.SpatialDropout1D(0.1),
        lambda: kl.Permute((2, 1)),
        lambda: kl.Reshape((-1,)),
        kl.UnitNormalization,
        lambda: kl.RepeatVector(2),
        lambda: kl.GaussianNoise(0.1),
        kl.Flatten,
    ),
    "three dimensions": _stock((4, 4, 4, 2), lambda: kl.Conv3D(2, 2), kl.GlobalMaxPooling3D),
    "images": _stock(
        (16, 16, 3),
        kl.RandomFlip,
        lambda: kl.RandomRotation(0.1),
        lambda: kl.RandomCrop(8, 8),
        lambda: kl.Rescaling(1 / 255),
        lambda: kl.Resizing(8, 8),
        lambda: kl.CenterCrop(4, 4),
    ),
    "cells": _stock((5, 8), lambda: kl.RNN(kl.StackedRNNCells([kl.LSTMCell(2), kl.GRUCell(3)]))),
    "recurrent convolution": _stock((3, 8, 8, 2), lambda: kl.ConvLSTM2D(2, 2)),
    "masking": _stock((4, 2), lambda: kl.Masking(0.0), lambda: kl.LSTM(2)),
    "einsum": _stock((5, 8), lambda: kl.EinsumDense("abc,cd->abd", output_shape=(None, 7), bias_axes="d")),
    "spectral": _stock((4,), lambda: kl.SpectralNormalization(kl.Dense(3))),
    "mixed precision": _stock((4,), lambda: kl.Dense(3, dtype="mixed_float16"), lambda: kl.Dense(3, dtype="float32")),
    "given statistics": _stock((3,), lambda: kl.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 1.0, 4.0])),
    "strings": _stock((1,), lambda: kl.StringLookup(vocabulary=["a", "b"]), dtype="string"),
    "hashing": _stock((1,), lambda: kl.Hashing(5), dtype="int32"),
    "buckets": _stock((1,), lambda: kl.Discretization([0.0, 1.0]), lambda: kl.CategoryEncoding(3)),
    "user's layer": _stock((4,), lambda: Registered(3.0)),
    "user's activation": _stock((4,), lambda: kl.Dense(3, activation=registered_activation)),
    "user's model": _registered_model,
    "branches": _branches,
    "attention": _attention,
    "recurrent": _recurrent,
    "nested": _nested,
}


@pytest.mark.parametrize("build", STOCK.values(), ids=STOCK)
def test_same_model_again_loaded_and_cloned(build: Callable[[], Any], tmp_path: Any) -> None:
    model = build()
    structure, weights = structure_key(model), weights_key(model)
    assert structure_key(build()) == structure
    assert structure_key(keras.models.clone_model(model)) == structure
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (structure_key(loaded), weights_key(loaded)) == (structure, weights)


def test_models_differ_from_each_other() -> None:
    keys = [structure_key(build()) for build in STOCK.values()]
    assert len(set(keys)) == len(keys)


def test_lambda_loaded_from_a_file(tmp_path: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = keras.Sequential([keras.Input((4,)), kl.Lambda(lambda x: x * 2.0)])
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=False)
    assert structure_key(loaded) == structure_key(model)


@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0"])
def test_applications_have_keys(name: str) -> None:
    model = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=3)
    assert structure_key(model) == structure_key(keras.models.clone_model(model))


def test_graphs_deeper_than_the_stack() -> None:
    i = o = keras.Input((4,))
    for _ in range(100):
        o = o + 1.0
    limit = sys.getrecursionlimit()
    model = keras.Model(i, o)
    depth = len(__import__("inspect").stack())
    sys.setrecursionlimit(depth + 120)
    try:
        assert len(structure_key(model)) == 64
    finally:
        sys.setrecursionlimit(limit)


def test_training_changes_only_the_weights() -> None:
    model = execute(subclass())
    x, y = np.random.default_rng(0).normal(size=(8, 4)).astype("float32"), np.zeros((8, 3), "float32")
    structure, weights = structure_key(model), weights_key(model)
    model.compile(optimizer="adam", loss="mse", metrics=["mae"])
    model.predict(x, verbose=0)
    assert (structure_key(model), weights_key(model)) == (structure, weights)
    model.fit(x, y, epochs=1, verbose=0)
    assert structure_key(model) == structure
    assert weights_key(model) != weights
    trained = weights_key(model)
    model.evaluate(x, y, verbose=0)
    model.optimizer.learning_rate = 0.5
    assert (structure_key(model), weights_key(model)) == (structure, trained)


def test_training_a_functional_model_changes_only_the_weights() -> None:
    model = keras.Sequential([keras.Input((4,)), Registered(), kl.Dropout(0.5), kl.BatchNormalization()])
    x, y = np.random.default_rng(0).normal(size=(8, 4)).astype("float32"), np.zeros((8, 3), "float32")
    structure, weights = structure_key(model), weights_key(model)
    model.compile(optimizer="sgd", loss="mse")
    model.fit(x, y, verbose=0)
    assert structure_key(model) == structure
    assert weights_key(model) != weights


def test_seeds_are_no_weights() -> None:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(2), kl.Dropout(0.5)])
    key = weights_key(model)
    model(np.zeros((2, 4), "float32"), training=True)
    assert weights_key(model) == key


def test_adapted_statistics_are_constants_of_the_graph() -> None:
    # Keras computes with tensors that adapt() derives, not with the variables: they end in the exported graph.
    layer = kl.Normalization()
    layer.adapt(np.arange(12.0).reshape(4, 3))
    model = keras.Sequential([keras.Input((3,)), layer])
    structure, weights = structure_key(model), weights_key(model)
    layer.adapt(np.arange(12.0).reshape(4, 3) * 2)
    assert structure_key(model) != structure
    assert weights_key(model) != weights


def test_adapted_vocabulary_enters(tmp_path: Any) -> None:
    model = _text()
    key = structure_key(model)
    model.save(tmp_path / "model.keras")
    assert structure_key(keras.models.load_model(tmp_path / "model.keras")) == key
    model.layers[0].adapt(["a b c", "d f"])
    assert structure_key(model) != key


def test_two_models_of_a_class_by_attributes_set_later() -> None:
    one, other = _registered_model(), _registered_model()
    one.scale, other.scale = 2.0, 3.0
    assert structure_key(one) != structure_key(other)
    other.scale = 2.0
    assert structure_key(one) == structure_key(other)


def test_models_of_this_process_are_left_alone() -> None:
    model = _registered_model()
    before = {name: id(value) for name, value in vars(model).items()}
    threads = [threading.Thread(target=structure_key, args=(model,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: id(value) for name, value in vars(model).items()} == before
    assert structure_key(model) == structure_key(model)


@pytest.mark.parametrize("changed", ["keras_trt_installed", "keras_trt_installed/__init__", "keras_trt_installed/ops"])
def test_code_of_installed_packages_enters(changed: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whichever file of a package it is: some are installed again without a new version."""
    file = tmp_path / "site-packages" / f"{changed}.py"
    file.parent.mkdir(parents=True)
    if changed.endswith("/ops"):
        (file.parent / "__init__.py").write_text("from . import ops\ndef scale(x):\n    return ops.scale(x)\n")
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    keys = []
    for factor in ("2", "30"):
        file.write_text(f"def scale(x):\n    return x * {factor}\n")
        for name in [name for name in sys.modules if name.startswith("keras_trt_installed")]:
            del sys.modules[name]
        source = custom("scale(x)", before="from keras_trt_installed import scale")
        keys.append(structure_key(execute(source)))
    assert keys[0] != keys[1]


def test_methods_of_keras_that_a_user_replaced_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    model = keras.Sequential([keras.Input((4,)), kl.ReLU()])
    keys = [structure_key(model)]
    for factor in (2.0, 3.0):
        monkeypatch.setattr(kl.ReLU, "call", lambda _, x, factor=factor: x * factor)
        keys.append(structure_key(model))
    assert len(set(keys)) == 3


def test_what_this_library_adds_to_a_model_is_left_out() -> None:
    model = _registered_model()
    key = structure_key(model)
    model._keras_trt_state = threading.Lock()
    model.predict = lambda x: x
    assert structure_key(model) == key


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import keras
from keras import layers as kl
from keras_trt.fingerprint import structure_key, weights_key
class Pick(kl.Layer):
    names = {{"a", "b", "c"}}
    def call(self, x):
        for name in ("a", "b"):
            if name in {{"a", "b", "c", "d"}} and name in self.names:
                x = x * 2.0
        return x
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((4,)), kl.Dense(3), Pick(), kl.Dropout(0.5)])
print(structure_key(model), weights_key(model))
"""


def test_same_in_every_process() -> None:
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(root=root)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in ("0", "1234")
    ]
    results = [process.communicate(timeout=300) for process in running]
    keys = {out.split()[-2:][0] + out.split()[-1] for out, _ in results if out.split()}
    assert [process.returncode for process in running] == [0, 0], results[0][1][-2000:]
    assert len(keys) == 1


def test_import_is_light() -> None:
    code = (
        "import sys, keras_trt.fingerprint.code_digest; print([m for m in ('keras', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


class Holder:
    """As much of a model as `weights_key` looks at."""

    def __init__(self, *arrays: Any) -> None:
        self.weights = [
            keras.Variable(array, dtype=keras.backend.standardize_dtype(array.dtype), name=f"v{i}")
            for i, array in enumerate(arrays)
        ]


def f4(*values: float) -> Any:
    return np.array(values, "float32")


WEIGHTS_DIFFER: dict[str, tuple[list[Any], list[Any]]] = {
    "value": ([f4(1, 2)], [f4(1, 3)]),
    "last bit": ([f4(1, 2)], [np.nextafter(f4(1, 2), f4(9, 2))]),
    "order": ([f4(1), f4(2)], [f4(2), f4(1)]),
    "shape": ([f4(1, 2).reshape(1, 2)], [f4(1, 2).reshape(2, 1)]),
    "rank": ([f4(1)], [f4(1).reshape(())]),
    "split": ([f4(1, 2), f4(3)], [f4(1), f4(2, 3)]),
    "number": ([f4(1)], [f4(1), np.zeros((0,), "float32")]),
    "type of equal bytes": ([np.zeros(2, "float32")], [np.zeros(2, "int32")]),
    "type of equal values": ([f4(1)], [np.array([1.0], "float64")]),
    "half types": ([np.zeros(2, "float16")], [keras.ops.zeros(2, "bfloat16")]),
    "sign of zero": ([f4(0.0)], [f4(-0.0)]),
}


@pytest.mark.parametrize(("one", "other"), WEIGHTS_DIFFER.values(), ids=WEIGHTS_DIFFER)
def test_weights_differ_on(one: list[Any], other: list[Any]) -> None:
    assert weights_key(Holder(*one)) != weights_key(Holder(*other))
    assert weights_key(Holder(*one)) == weights_key(Holder(*one))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=6),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=6),
)
def test_weights_keys_are_equal_exactly_if_the_bytes_are(one: list[float], other: list[float]) -> None:
    a, b = f4(*one), f4(*other)
    same = a.shape == b.shape and a.tobytes() == b.tobytes()
    assert (weights_key(Holder(a)) == weights_key(Holder(b))) == same


_CONSTANTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.0, -0.0, 1.0, 2.5])
    | st.sampled_from(["", "a", "1"])
    | st.sampled_from([b"", b"a"]),
    lambda children: (
        st.lists(children, max_size=3)
        | st.lists(children, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from("ab"), children, max_size=2)
        | st.frozensets(st.integers(0, 3), max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_CONSTANTS, _CONSTANTS)
def test_constants_hash_alike_exactly_if_they_are_written_alike(one: Any, other: Any) -> None:
    from keras_trt.fingerprint.code_digest import Digester

    def key(value: Any) -> bytes:
        digester = Digester()
        digester.value(value)
        return digester.digest()

    assert (key(one) == key(other)) == (repr(one) == repr(other))


def test_weights_of_strings_are_refused() -> None:
    holder = types.SimpleNamespace(weights=[tf.Variable(["a", "b"])])
    with pytest.raises(Unhashable, match="numbers"):
        weights_key(holder)


def test_keras_may_be_installed_in_any_folder(tmp_path: Any) -> None:
    """As by `pip install --target`: Keras's own code is told by its release there too."""
    import importlib.metadata
    import shutil
    from pathlib import Path

    metadata = next(
        Path(str(file.locate())).parent
        for file in importlib.metadata.files("keras") or ()
        if file.name == "METADATA" and str(file).count("/") == 1
    )
    for folder in (Path(keras.__file__).parent, metadata):
        shutil.copytree(folder, tmp_path / folder.name)
    code = (
        "import keras\nfrom keras_trt.fingerprint import structure_key\n"
        "model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation='tanh')])\n"
        "print(keras.__file__)\nprint(structure_key(model))\n"
    )
    keys = set()
    for path in ([], [str(tmp_path)]):
        search = os.pathsep.join([*path, str(Path.cwd())])
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": search, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        where, key = done.stdout.splitlines()[-2:]
        assert where.startswith(str(tmp_path)) == bool(path)
        keys.add(key)
    assert len(keys) == 1
