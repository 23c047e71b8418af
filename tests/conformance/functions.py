"""A case for each function of `keras.activations`, and for each of `keras.ops` that Keras's layers are written with."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from .check import Case, Input

X, IMAGE = Input((6, 4)), Input((8, 8, 4))

#: In `keras.ops` or beside it, and nothing that a graph is made of.
# fmt: off
NO_COMPUTATION = frozenset((
    "Operation", "_backend", "arange", "cond", "convert_to_numpy", "core", "custom_gradient", "image", "ndim", "numpy",
    "operation_utils", "random",
))
# fmt: on


class Function(layers.Layer):
    """A function of a tensor as a layer."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self._function = function

    def call(self, x: Any) -> Any:
        return self._function(x)


def activations() -> dict[str, Case]:
    """Return a case for each activation."""
    found = {
        name: one
        for name, one in vars(keras.activations).items()
        if inspect.isfunction(one) and name not in ("get", "serialize", "deserialize")
    }
    needed: dict[str, Callable[[Any], Any]] = {"threshold": lambda x: keras.activations.threshold(x, 0.1, -1.0)}
    return {name: _case(needed.get(name, one)) for name, one in found.items()}


def used_by_layers() -> set[str]:
    """Return each name `ops.…` in the source of Keras's layers and activations."""
    root = Path(keras.__file__).parent / "src"
    files = [path for folder in ("layers", "activations") for path in (root / folder).rglob("*.py")]
    trees = [ast.parse(path.read_text()) for path in files if not path.name.endswith("_test.py")]
    return {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ops"
    }


def _case(function: Callable[[Any], Any], given: Input = X, *, lively: bool = True) -> Case:
    return Case([given], lambda x: Function(function)(x), lively)


def _plain(name: str) -> Case:
    """A function of one tensor, on positive numbers where it needs them."""
    function = getattr(ops, name)
    positive = name in ("log", "rsqrt", "sqrt")
    return _case(lambda x: function(ops.abs(x) + 0.1 if positive else x))


def _with(name: str, use: Callable[[Any, Any], Any], *, lively: bool = True) -> Case:
    """A function of `keras.ops` as `use` calls it."""
    function = getattr(ops, name)
    return _case(lambda x: use(x, function), lively=lively)


def operations() -> dict[str, Case]:
    """Return a case for each function of `keras.ops` in use."""
    plain = (
        "abs arctan celu copy elu exp gelu glu hard_shrink hard_sigmoid hard_silu hard_tanh leaky_relu log log_sigmoid "
        "log_softmax max mean normalize prod relu relu6 rms_normalization rsqrt selu sigmoid silu soft_shrink softmax "
        "softplus softsign sparse_plus sparse_sigmoid sparsemax sqrt square squareplus stop_gradient sum tanh "
        "tanh_shrink transpose var"
    )
    along = {"max", "mean", "prod", "sum", "var"}
    cases = {name: _plain(name) for name in plain.split() if name not in along | {"transpose", "rms_normalization"}}
    for name in along:
        cases[name] = _with(name, lambda x, f: f(x, axis=-1, keepdims=True))
    for name in ("add", "arctan2", "divide", "divide_no_nan", "maximum", "minimum", "multiply", "subtract"):
        cases[name] = _with(name, lambda x, f: f(x, ops.flip(x, 1) + 0.3))
    for name in ("equal", "greater_equal", "less", "not_equal"):
        cases[name] = _with(name, lambda x, f: f(ops.round(x), ops.round(ops.flip(x, 1))), lively=False)
    for name in ("logical_and", "logical_or"):
        cases[name] = _with(name, lambda x, f: f(x > 0, ops.flip(x, 1) > 0), lively=False)
    kernel = np.random.default_rng(0).standard_normal((3, 3, 4, 5)).astype("float32") / 6
    pointwise = np.random.default_rng(1).standard_normal((1, 1, 20, 3)).astype("float32") / 4
    vector = np.linspace(0.5, 2, 4, dtype="float32")
    return cases | {
        "adaptive_average_pool": _case(lambda x: ops.adaptive_average_pool(x, 3), IMAGE),
        "adaptive_max_pool": _case(lambda x: ops.adaptive_max_pool(x, 3), IMAGE),
        "all": _case(lambda x: ops.all(x > -1, axis=-1), lively=False),
        "any": _case(lambda x: ops.any(x > 1, axis=-1), lively=False),
        "average_pool": _case(lambda x: ops.average_pool(x, 2), IMAGE),
        "batch_normalization": _case(lambda x: ops.batch_normalization(x, vector, vector, -1), IMAGE),
        "broadcast_to": _case(lambda x: ops.broadcast_to(x[:, None], (ops.shape(x)[0], 3, 6, 4))),
        "cast": _case(lambda x: ops.cast(10 * x, "int32"), lively=False),
        "clip": _case(lambda x: ops.clip(x, -0.5, 0.7)),
        "concatenate": _case(lambda x: ops.concatenate([x, 2 * x], axis=1)),
        "conv": _case(lambda x: ops.conv(x, kernel), IMAGE),
        "conv_transpose": _case(lambda x: ops.conv_transpose(x, kernel.transpose(0, 1, 3, 2), 2), IMAGE),
        "convert_to_tensor": _case(lambda x: ops.convert_to_tensor(x) + ops.convert_to_tensor(vector)),
        "cumsum": _case(lambda x: ops.cumsum(x, axis=1)),
        "depthwise_conv": _case(lambda x: ops.depthwise_conv(x, kernel), IMAGE),
        "dot_product_attention": _case(lambda x: ops.dot_product_attention(x, x, x), Input((6, 2, 4))),
        "einsum": _case(lambda x: ops.einsum("abc,adc->abd", x, 0.5 * x)),
        "expand_dims": _case(lambda x: ops.expand_dims(x, 2)),
        "flip": _case(lambda x: ops.flip(x, 1)),
        "floor_divide": _case(lambda x: ops.floor_divide(x, 0.3)),
        "layer_normalization": _case(lambda x: ops.layer_normalization(x, vector, vector)),
        "logical_not": _case(lambda x: ops.logical_not(x > 0), lively=False),
        "matmul": _case(lambda x: ops.matmul(x, ops.swapaxes(x, 1, 2))),
        "max_pool": _case(lambda x: ops.max_pool(x, 2), IMAGE),
        "moments": _case(lambda x: ops.moments(x, axes=[1])[1]),
        "ones": _case(lambda x: x + ops.ones((6, 4))),
        "ones_like": _case(lambda x: x + ops.ones_like(x)),
        "pad": _case(lambda x: ops.pad(x, [[0, 0], [1, 2], [0, 1]], mode="reflect")),
        "power": _case(lambda x: ops.power(ops.abs(x) + 0.1, 1.7)),
        "repeat": _case(lambda x: ops.repeat(x, 2, axis=1)),
        "reshape": _case(lambda x: ops.reshape(x, (-1, 8, 3))),
        "rms_normalization": _case(lambda x: ops.rms_normalization(x, vector)),
        "separable_conv": _case(lambda x: ops.separable_conv(x, kernel, pointwise), IMAGE),
        "shape": _case(lambda x: x * ops.cast(ops.shape(x)[1], "float32"), Input((None, 4))),
        "split": _case(lambda x: ops.split(x, 2, axis=1)[1]),
        "squeeze": _case(lambda x: ops.squeeze(x[:, :1], 1)),
        "stack": _case(lambda x: ops.stack([x, -x], axis=2)),
        "swapaxes": _case(lambda x: ops.swapaxes(x, 1, 2)),
        "take": _case(lambda x: ops.take(x, [3, 0, 1], axis=1)),
        "threshold": _case(lambda x: ops.threshold(x, 0.1, -1.0)),
        "transpose": _case(lambda x: ops.transpose(x, (0, 2, 1))),
        "where": _case(lambda x: ops.where(x > 0, x, 0.1 * x)),
        "zeros": _case(lambda x: ops.concatenate([x, ops.zeros((ops.shape(x)[0], 2, 4))], axis=1)),
        "zeros_like": _case(lambda x: ops.maximum(x, ops.zeros_like(x))),
    }
