"""Small Keras models, data for them, and the comparison of a drop-in with the model that it stands for.

Every model has seeded random weights that keep its outputs at unit scale, so that rows differ: see `rows_differ`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt.specs import flatten

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the libraries' own imports
    import keras
    import tensorflow as tf  # noqa: F401 (others take it from here)

from keras import layers as kl
from keras import ops

#: Largest difference, beside numbers at unit scale, that two float32 implementations of one small network may show.
TOLERANCE = 1e-5
BATCH_SIZES = (1, 8, 32)


def accelerate(model: Any, **options: Any) -> keras_trt.TRTModel:
    """`keras_trt.accelerate` as most tests want it: ONNX Runtime, no cache, small batches, silent."""
    return keras_trt.accelerate(
        model, **{"backend": "onnxruntime", "cache": None, "batch_sizes": BATCH_SIZES, "verbose": 0, **options}
    )


def kept(x: Any, rows: slice) -> Any:
    """Some rows of nested arrays."""
    return keras.tree.map_structure(lambda array: array[rows], x)


def rows_of(x: Any) -> int:
    return len(flatten(x)[0])


def same(expected: Any, actual: Any, tolerance: float = TOLERANCE, path: str = "output") -> None:
    """Assert the same nesting, kinds, types, shapes and, within the tolerance, numbers."""
    assert type(actual) is type(expected), f"{path}: {type(actual)} is not {type(expected)}"
    if isinstance(expected, dict):
        assert list(actual) == list(expected), path
        for key, child in expected.items():
            same(child, actual[key], tolerance, f"{path}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), path
        for i, (child, got) in enumerate(zip(expected, actual, strict=True)):
            same(child, got, tolerance, f"{path}[{i}]")
    else:
        assert actual.dtype == expected.dtype, path
        assert actual.shape == expected.shape, path
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance, err_msg=path)


def rows_differ(outputs: Any, tolerance: float = TOLERANCE) -> None:
    """Assert that neighbouring rows are told apart by far more than the tolerance: else equality proves nothing."""
    for output in map(np.asarray, flatten(outputs)):
        distance = np.abs(np.diff(output.astype(np.float64), axis=0)).reshape(len(output) - 1, -1).max(axis=1)
        assert np.median(distance) >= 100 * tolerance


def other_weights(model: Any, seed: int = 5) -> None:
    """Give a model's weights other values; statistics stay positive."""
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        value = np.asarray(variable)
        if value.dtype == np.float32:
            variable.assign(np.abs(value) * 0.5 + generator.uniform(0.1, 0.6, value.shape) * np.sign(value + 0.1))


def floats(*shape: int) -> Callable[[int], np.ndarray]:
    return lambda rows: np.random.default_rng(1).standard_normal((rows, *shape)).astype(np.float32)


def integers(below: int, *shape: int, dtype: str = "int32") -> Callable[[int], np.ndarray]:
    return lambda rows: np.random.default_rng(2).integers(0, below, (rows, *shape)).astype(dtype)


def cancelling() -> Any:
    """A model that half precision cannot run, though its numbers are small: a difference of nearly equal products."""
    inputs = keras.Input((4,))
    one, other = kl.Dense(3, name="one"), kl.Dense(3, name="other")
    model = keras.Model(inputs, kl.Rescaling(1e3)(kl.Subtract()([one(inputs), other(inputs)])))
    other.kernel.assign(one.kernel + 1e-3 * np.random.default_rng(3).standard_normal((4, 3)))
    return model


# Models that need a class.


@keras.saving.register_keras_serializable("keras_trt_tests")
class Subclassed(keras.Model):
    """Two branches and a dict, written as a class."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.one = kl.Dense(5, activation="tanh")
        self.two = kl.Dense(3)

    def call(self, x: Any) -> dict[str, Any]:
        hidden = self.one(x)
        return {"result": self.two(hidden), "hidden": hidden}


@keras.saving.register_keras_serializable("keras_trt_tests")
class Ids(keras.Model):
    """Looks integers below 11 up, which it does not say."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.table, self.dense = kl.Embedding(11, 4, embeddings_initializer="normal"), kl.Dense(3)

    def call(self, x: Any) -> Any:
        return self.dense(ops.mean(self.table(x), axis=1))


@keras.saving.register_keras_serializable("keras_trt_tests")
class SubclassedPair(keras.Model):
    """Takes two tensors in a list."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.one, self.two = kl.Dense(4), kl.Dense(4)

    def call(self, x: Any) -> Any:
        return self.one(x[0]) * self.two(x[1])


@keras.saving.register_keras_serializable("keras_trt_tests")
class AcrossRows(kl.Layer):
    """Mixes the rows of a batch in one of several ways."""

    def __init__(self, way: str, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.way = way

    def call(self, x: Any) -> Any:
        match self.way:
            case "minus mean":
                return x - ops.mean(x, axis=0, keepdims=True)
            case "over max":
                return x / (ops.max(ops.abs(x), axis=0, keepdims=True) + 0.1)
            case "times size":
                return x * ops.cast(ops.shape(x)[0], x.dtype)
            case "sorted":
                return -ops.top_k(-ops.transpose(x), k=1)[0][0, 0] + x
            case "batch statistics":
                mean, variance = ops.moments(x, axes=[0])
                return (x - mean) / ops.sqrt(variance + 1e-3)
            case "running sum":
                return ops.cumsum(x, axis=0)
            case "first row":
                return x + x[:1]
            case "reversed":
                return ops.flip(x, axis=0)
            case "reduced":
                return ops.mean(x, axis=0, keepdims=True)
        raise ValueError(self.way)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "way": self.way}


def dependent(way: str) -> Any:
    inputs = keras.Input((4,))
    return keras.Model(inputs, AcrossRows(way)(kl.Dense(3)(inputs)))


# Structures.


@dataclass(frozen=True)
class Case:
    """A model, and data in the nesting that it takes."""

    build: Callable[[], Any]
    data: Callable[[int], Any]


def _sequential() -> Any:
    return keras.Sequential([keras.Input((4,)), kl.Dense(5, activation="tanh"), kl.Dense(3)])


def _image() -> Any:
    image = keras.Input((8, 8, 3), name="image")
    x = kl.Conv2D(4, 3, padding="same", activation="tanh")(image)
    return keras.Model(image, kl.Dense(3)(kl.Flatten()(kl.AveragePooling2D(2)(x))))


def _list_inputs() -> Any:
    first, second = keras.Input((4,), name="first"), keras.Input((2,), name="second")
    return keras.Model([first, second], kl.Dense(3)(kl.Concatenate()([first, second])))


def _tuple_inputs() -> Any:
    first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
    return keras.Model((first, second), kl.Dense(3)(first) - second[:, :3])


def _dict_inputs() -> Any:
    # Made in the other order than their names have.
    tall, broad = keras.Input((4,), name="tall"), keras.Input((2,), name="broad")
    return keras.Model({"tall": tall, "broad": broad}, kl.Dense(3)(kl.Concatenate()([tall, broad])))


def _nested_inputs() -> Any:
    a, b, c = keras.Input((2,), name="a"), keras.Input((3,), name="b"), keras.Input((4,), name="one")
    return keras.Model({"pair": [a, b], "one": c}, kl.Dense(3)(kl.Concatenate()([a, b, c])))


def _dict_outputs() -> Any:
    inputs = keras.Input((4,))
    hidden = kl.Dense(5, activation="tanh")(inputs)
    return keras.Model(inputs, {"wide": kl.Dense(6)(hidden), "narrow": kl.Dense(1)(hidden)})


def _list_outputs() -> Any:
    inputs = keras.Input((4,))
    return keras.Model(inputs, [kl.Dense(2)(inputs), kl.Dense(2)(inputs)])


def _tuple_outputs() -> Any:
    inputs = keras.Input((4,))
    return keras.Model(inputs, (kl.Dense(2)(inputs), kl.Dense(3)(inputs)))


def _list_of_one_output() -> Any:
    inputs = keras.Input((4,))
    return keras.Model([inputs], [kl.Dense(2)(inputs)])


def _nested_outputs() -> Any:
    inputs = keras.Input((4,))
    return keras.Model(
        inputs,
        {"deep": [kl.Dense(2)(inputs), (kl.Dense(1)(inputs), kl.Dense(3)(inputs))], "flat": kl.Dense(4)(inputs)},
    )


def _nested_model() -> Any:
    inner = keras.Sequential([keras.Input((4,)), kl.Dense(4, activation="tanh")], name="inner")
    outer = keras.Input((4,))
    return keras.Model(outer, kl.Dense(2)(inner(inner(outer))))


def _shared_layer() -> Any:
    shared = kl.Dense(3)
    first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
    return keras.Model([first, second], shared(first) * shared(second))


def _one_tensor_twice() -> Any:
    inputs = keras.Input((4,))
    result = kl.Dense(3)(inputs)
    return keras.Model(inputs, [result, result])


def _output_that_is_an_input() -> Any:
    inputs = keras.Input((4,), name="inputs")
    return keras.Model(inputs, {"inputs": inputs, "result": kl.Dense(3)(inputs)})


def _tokens() -> Any:
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    return keras.Model(tokens, kl.Dense(3)(kl.Flatten()(kl.Embedding(11, 4, embeddings_initializer="normal")(tokens))))


def _masked_tokens() -> Any:
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    embedded = kl.Embedding(11, 4, mask_zero=True, embeddings_initializer="normal")(tokens)
    return keras.Model(tokens, kl.GlobalAveragePooling1D()(embedded))


def _bytes() -> Any:
    image = keras.Input((4, 4, 1), dtype="uint8", name="image")
    return keras.Model(image, kl.Dense(3)(kl.Flatten()(kl.Rescaling(1 / 128, -1)(image))))


def _flags() -> Any:
    flags, numbers = keras.Input((4,), dtype="bool", name="flags"), keras.Input((4,), name="numbers")
    return keras.Model([flags, numbers], kl.Dense(3)(ops.where(flags, numbers, -1.0)))


def _integer_and_boolean_outputs() -> Any:
    inputs = keras.Input((4,))
    result = kl.Dense(3)(inputs)
    return keras.Model(inputs, {"positive": result > 0, "rounded": ops.cast(result * 10, "int32"), "result": result})


def _scalar_rows() -> Any:
    inputs = keras.Input((), name="number")
    return keras.Model(inputs, ops.sin(inputs) * 2)


def _subclassed() -> Any:
    model = Subclassed()
    model(np.zeros((1, 4), np.float32))
    return model


def _subclassed_pair() -> Any:
    model = SubclassedPair()
    model([np.zeros((1, 4), np.float32), np.zeros((1, 2), np.float32)])
    return model


def _batch_normalization() -> Any:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(4), kl.BatchNormalization(), kl.Dropout(0.5)])
    model.layers[1].set_weights([np.float32([1, 2, 3, 4]), np.float32([0, 1, 0, -1])] + 2 * [np.float32([1, 2, 3, 4])])
    return model


def _fixed_batch() -> Any:
    inputs = keras.Input(batch_shape=(4, 3))
    return keras.Model(inputs, kl.Dense(2)(inputs))


def _pair(*shapes: tuple[int, ...]) -> Callable[[int], list[Any]]:
    return lambda rows: [floats(*shape)(rows) * (i + 1) for i, shape in enumerate(shapes)]


CASES: dict[str, Case] = {
    "sequential": Case(_sequential, floats(4)),
    "image": Case(_image, floats(8, 8, 3)),
    "list inputs": Case(_list_inputs, _pair((4,), (2,))),
    "tuple inputs": Case(_tuple_inputs, lambda rows: tuple(_pair((4,), (4,))(rows))),
    "dict inputs": Case(_dict_inputs, lambda rows: {"tall": floats(4)(rows), "broad": floats(2)(rows)}),
    "nested inputs": Case(
        _nested_inputs, lambda rows: {"pair": [floats(2)(rows), floats(3)(rows)], "one": floats(4)(rows)}
    ),
    "dict outputs": Case(_dict_outputs, floats(4)),
    "list outputs": Case(_list_outputs, floats(4)),
    "tuple outputs": Case(_tuple_outputs, floats(4)),
    "list of one output": Case(_list_of_one_output, floats(4)),
    "nested outputs": Case(_nested_outputs, floats(4)),
    "nested model": Case(_nested_model, floats(4)),
    "shared layer": Case(_shared_layer, _pair((4,), (4,))),
    "one tensor twice": Case(_one_tensor_twice, floats(4)),
    "an output that is an input": Case(_output_that_is_an_input, floats(4)),
    "int32": Case(_tokens, integers(11, 6)),
    "masked int32": Case(_masked_tokens, integers(11, 6)),
    "uint8": Case(_bytes, integers(256, 4, 4, 1, dtype="uint8")),
    "bool": Case(_flags, lambda rows: [integers(2, 4, dtype="bool")(rows), floats(4)(rows)]),
    "integer and boolean outputs": Case(_integer_and_boolean_outputs, floats(4)),
    "scalar rows": Case(_scalar_rows, floats()),
    "subclassed": Case(_subclassed, floats(4)),
    "subclassed with two inputs": Case(_subclassed_pair, _pair((4,), (2,))),
    "batch normalization": Case(_batch_normalization, floats(4)),
    "fixed batch": Case(_fixed_batch, floats(3)),
    **{way: Case(partial(dependent, way), floats(4)) for way in (
        "minus mean", "over max", "times size", "sorted", "batch statistics", "running sum", "first row", "reversed",
        "reduced",
    )},
}  # fmt: skip
DEPENDENT = list(CASES)[-9:]
INDEPENDENT = list(CASES)[:-9]


@cache
def pair(name: str) -> tuple[Any, keras_trt.TRTModel]:
    """A model of `CASES` and its drop-in, made once: tests must not change them."""
    keras.utils.set_random_seed(7)
    model = CASES[name].build()
    return model, accelerate(model)


def warns_once(records: Any, *words: str) -> None:
    """Assert that exactly one `FallbackWarning` was recorded, which says `words`."""
    found = [str(record.message) for record in records if record.category is keras_trt.FallbackWarning]
    assert len(found) == 1, found
    for word in words:
        assert word in found[0]


recorded = partial(pytest.warns, keras_trt.FallbackWarning)
