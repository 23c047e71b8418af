"""Models for the tests of the keys: by their source code, and of classes that Keras knows by name."""

from __future__ import annotations

import sys
import textwrap
import types
from typing import Any

import numpy as np

from ..models import keras, kl

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


def custom(body: str = "x", init: str = "pass", before: str = "") -> str:
    return textwrap.dedent(before) + LAYER.format(body=body, init=init)


def sequential(*layers: str, shape: str = "(4,)", before: str = "") -> str:
    return f"{before}\ndef build():\n    return keras.Sequential([keras.Input({shape}), {', '.join(layers)}])\n"


def functional(*lines: str, before: str = "") -> str:
    body = "\n    ".join(lines)
    return f"{before}\ndef build():\n    i = keras.Input((4,))\n    {body}\n    return keras.Model(i, o)\n"


FACTORY = "def factory(k):\n    def helper(x):\n        return x * k\n    return helper\nhelper = factory({})\n"

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


def registered_model() -> Any:
    model = RegisteredModel()
    model(np.zeros((2, 4), "float32"))
    return model
