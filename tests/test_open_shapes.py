"""Outputs whose shape depends on the data: on an engine as Keras gives them, in the user's batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt import VerificationError

from .forms import FORMS
from .models import accelerate, cancelling, floats, keras, kl, ops, recorded, same, tf, warns_once


class Own(kl.Layer):
    """A function of TensorFlow's whose shapes Keras cannot work out."""

    def __init__(self, function: Callable[[Any], Any], shapes: Any) -> None:
        super().__init__()
        self.function, self.shapes = function, lambda: shapes  # Keras would track containers

    def call(self, x: Any) -> Any:
        return self.function(x)

    def compute_output_shape(self, _: Any) -> Any:
        return self.shapes()


def boxes(x: Any) -> Any:
    """The boxes and scores that are left of those of all rows."""
    x = tf.reshape(x, (-1, 5))
    corners = tf.concat([x[:, :2], x[:, :2] + tf.abs(x[:, 2:4])], axis=1)
    kept = tf.image.non_max_suppression(corners, x[:, 4], 50, 0.3, 0.5)
    return tf.gather(corners, kept), tf.gather(x[:, 4], kept)


#: The function, the shapes that it says of itself, and the shape of a row.
FUNCTIONS: dict[str, tuple[Callable[[Any], Any], Any, tuple[int, ...]]] = {
    "some rows": (lambda x: tf.boolean_mask(x, x[:, 0] > 0.5), (None, 4), (4,)),
    "places": (lambda x: tf.where(x > 1.0), (None, 2), (4,)),
    "places by axis": (lambda x: ops.nonzero(ops.relu(x - 1.0)), [(None,), (None,)], (4,)),
    "rows and places": (
        lambda x: {"all": 2 * x, "some": tf.where(x > 1.0)}, {"all": (None, 4), "some": (None, 2)}, (4,)
    ),
    "values": (lambda x: tf.unique(tf.reshape(tf.cast(x, "int32"), [-1]))[0], (None,), (4,)),
    "boxes": (boxes, ((None, 4), (None,)), (6, 5)),
    "as long as the longest": (
        lambda x: x[:, : tf.reduce_max(tf.reduce_sum(tf.cast(x > 0.8, "int32"), axis=1))], (None, None), (4,)
    ),
}  # fmt: skip


@cache
def pair(name: str) -> tuple[Any, keras_trt.TRTModel]:
    keras.utils.set_random_seed(7)
    function, shapes, row = FUNCTIONS[name]
    inputs = keras.Input(row)
    x = kl.Dense(row[-1], kernel_initializer="orthogonal")(inputs) if name != "boxes" else inputs
    model = keras.Model(inputs, Own(function, shapes)(x))
    return model, accelerate(model)


def alike(expected: Any, got: Any) -> None:
    """Assert equal results; also ragged ones."""
    if isinstance(expected, tf.RaggedTensor):
        assert isinstance(got, tf.RaggedTensor)
        assert expected.shape == got.shape
        expected, got = expected.to_tensor(-9).numpy(), got.to_tensor(-9).numpy()
    same(expected, got)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_users_batches_are_run(name: str) -> None:
    model, fast = pair(name)
    assert fast.backend == "onnxruntime"
    assert not fast.report().rows_independent
    shapes = set()
    for rows in (1, 2, 5, 31, 32):
        x = floats(*FUNCTIONS[name][2])(rows)
        expected = model.predict_on_batch(x)
        shapes.add(str(keras.tree.map_structure(np.shape, expected)))
        alike(expected, fast.predict_on_batch(x))
        alike(keras.tree.map_structure(np.asarray, model(x)), fast(x))
        alike(expected, fast.submit(x).result())
    assert len(shapes) > 2
    x = floats(*FUNCTIONS[name][2])(61)
    for size in (7, 31, None):
        alike(model.predict(x, batch_size=size, verbose=0), fast.predict(x, batch_size=size, verbose=0))
    alike(
        model.predict(FORMS["dataset of x, y"](x, 9), verbose=0),
        fast.predict(FORMS["dataset of x, y"](x, 9), verbose=0),
    )


@pytest.mark.parametrize("name", ["some rows", "places", "rows and places"])
def test_a_batch_that_leaves_nothing(name: str) -> None:
    model, fast = pair(name)
    x = floats(4)(12)
    x[3:9] = np.linalg.solve(pair(name)[0].layers[1].kernel.numpy().T, np.full((4, 6), -1.0)).T
    assert 0 in {len(leaf) for leaf in keras.tree.flatten(model.predict_on_batch(x[3:6]))}
    same(model.predict_on_batch(x[3:6]), fast.predict_on_batch(x[3:6]))
    same(model.predict(x, batch_size=3, verbose=0), fast.predict(x, batch_size=3, verbose=0))


def seldom() -> Any:
    """A model that leaves a row out where one is far off, which no random row is."""
    inputs = keras.Input((4,))
    return keras.Model(inputs, Own(lambda x: tf.boolean_mask(2 * x, x[:, 0] < 50.0), (None, 4))(inputs))


@pytest.mark.parametrize("verbose", [0, 1])
@pytest.mark.parametrize("rows", [33, 64, 100])
def test_what_random_rows_do_not_show_is_seen_at_once(rows: int, verbose: int) -> None:
    model = seldom()
    x = floats(4)(rows)
    fast = accelerate(model)
    assert fast.report().rows_independent
    same(model.predict(x, verbose=0), fast.predict(x, verbose=verbose))
    x[rows - 1] = x[5] = 99
    for _ in range(2):
        same(model.predict(x, verbose=0), fast.predict(x, verbose=verbose))
        for size in (1, 6, 32):
            same(model.predict_on_batch(x[:size]), fast.predict_on_batch(x[:size]))
    with recorded() as records:
        same(model.predict_on_batch(x), fast.predict_on_batch(x))
    warns_once(records, "batch_sizes")


def test_a_single_batch_shows_it_too() -> None:
    model = seldom()
    fast = accelerate(model, batch_sizes=(4, 8, 8))
    x = floats(4)(8)
    x[2] = 99
    same(model.predict_on_batch(x), fast.predict_on_batch(x))
    same(model.predict(x, batch_size=4, verbose=0), fast.predict(x, batch_size=4, verbose=0))


def test_answers_that_are_nothing_prove_nothing() -> None:
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Own(lambda x: tf.boolean_mask(x, x[:, 0] > 50.0), (None, 4))(inputs))
    with recorded() as records:
        assert accelerate(model).backend == "keras"
    warns_once(records, "random rows with nothing", "`sample=`")
    sample = floats(4)(8)
    with pytest.raises(VerificationError, match="the sample with nothing in 'own"):
        accelerate(model, sample=sample, fallback="raise")
    assert accelerate(model, verify=False).backend == "onnxruntime"
    sample[::2] = 99
    fast = accelerate(model, sample=sample)
    assert fast.backend == "onnxruntime"
    same(model.predict(sample, verbose=0), fast.predict(sample, verbose=0))


def test_another_shape_is_a_difference() -> None:
    """Half precision lets other rows through: that engine is not trusted."""
    inner = cancelling()
    model = keras.Model(inner.input, Own(lambda x: tf.boolean_mask(x, x[:, 0] > 0.1), (None, 3))(inner.output))
    with recorded() as records:
        fast = accelerate(model, precision="fp16", sample=floats(4)(64))
    warns_once(records, "differs from Keras")
    assert (fast.backend, fast.precision) == ("onnxruntime", "fp32")
    x = floats(4)(32)
    same(model.predict_on_batch(x), fast.predict_on_batch(x))


def test_out_takes_what_fits() -> None:
    model, fast = pair("some rows")
    x = floats(4)(6)
    expected = model.predict_on_batch(x)
    assert 0 < len(expected) < 6
    with pytest.raises(keras_trt.InputError, match=r"of shape \(\d, 4\). Received: `out` of shape \(6, 4\)"):
        fast.predict_on_batch(x, out=np.empty((6, 4), "float32"))
    alone = [i for i in range(6) if len(model.predict_on_batch(x[i : i + 1]))]
    all_rows = x[np.resize(alone, 6)]
    out = np.empty((6, 4), "float32")
    same(model.predict_on_batch(all_rows), fast.predict_on_batch(all_rows, out=out))
    same(model.predict_on_batch(all_rows), out)


def test_a_file(tmp_path: Path) -> None:
    model, fast = pair("boxes")
    fast.save(tmp_path / "boxes.ktrt")
    loaded = keras_trt.load(tmp_path / "boxes.ktrt", backend="onnxruntime", verbose=0)
    x = floats(6, 5)(40)
    same(model.predict(x, batch_size=7, verbose=0), loaded.predict(x, batch_size=7, verbose=0))


def test_a_second_start(cache: Any) -> None:
    model, _ = pair("places")
    x = floats(4)(40)
    for origin in ("built", "cache"):
        fast = accelerate(model, cache=cache)
        assert fast.report().origin == origin
        same(model.predict(x, batch_size=7, verbose=0), fast.predict(x, batch_size=7, verbose=0))
