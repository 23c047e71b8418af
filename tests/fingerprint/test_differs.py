"""What must change the structure key of a model."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from keras_trt.fingerprint import structure_key, weights_key

from ..models import keras, kl
from .helpers import FACTORY, custom, execute, functional, registered_model, sequential, subclass

# Keras 3 itself, when it saves a model with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MODULE = "import sys, types\nm = sys.modules['m_one'] = types.ModuleType('m')\nm.g = lambda x: x * {}\n"
IMPORT = MODULE + "def f(x):\n    import m_one\n    return m_one.g(x)\n"
IMPORT_FROM = MODULE + "def f(x):\n    from m_one import g\n    return g(x)\n"
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


def test_adapted_statistics_are_constants_of_the_graph() -> None:
    # Keras computes with tensors that adapt() derives, not with the variables: they end in the exported graph.
    layer = kl.Normalization()
    layer.adapt(np.arange(12.0).reshape(4, 3))
    model = keras.Sequential([keras.Input((3,)), layer])
    structure, weights = structure_key(model), weights_key(model)
    layer.adapt(np.arange(12.0).reshape(4, 3) * 2)
    assert structure_key(model) != structure
    assert weights_key(model) != weights


def _text() -> Any:
    vectors = kl.TextVectorization(output_sequence_length=4)
    vectors.adapt(["a b c", "d e"])
    return keras.Sequential([keras.Input((1,), dtype="string"), vectors, kl.Embedding(10, 3)])


def test_adapted_vocabulary_enters(tmp_path: Any) -> None:
    model = _text()
    key = structure_key(model)
    model.save(tmp_path / "model.keras")
    assert structure_key(keras.models.load_model(tmp_path / "model.keras")) == key
    model.layers[0].adapt(["a b c", "d f"])
    assert structure_key(model) != key


def test_two_models_of_a_class_by_attributes_set_later() -> None:
    one, other = registered_model(), registered_model()
    one.scale, other.scale = 2.0, 3.0
    assert structure_key(one) != structure_key(other)
    other.scale = 2.0
    assert structure_key(one) == structure_key(other)


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
