"""Layers that stay in float32, by a user's plan and by bisection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import keras_trt
from keras_trt.building.bisection import needed
from keras_trt.building.ladder import nodes_by_layer, planned
from keras_trt.cache import EngineCache
from keras_trt.errors import BuildError, VerificationError
from keras_trt.export import export
from keras_trt.precision import tensor_types, typed
from keras_trt.verification.verify import LIMITS

from .. import zoo
from ..models import accelerate, cancelling, floats, keras, kl, recorded


def deep() -> Any:
    """Two of its eight layers cannot be rounded to float16: their difference is all that counts of them."""
    inputs = keras.Input((6,))
    x = kl.Dense(8, activation="tanh", name="first")(inputs)
    x = kl.Dense(8, activation="tanh", name="second")(x)
    inner = keras.Sequential([keras.Input((8,)), kl.Dense(4, name="one")], name="inner")
    one, other = inner(x), kl.Dense(4, name="other")(x)
    x = kl.Rescaling(1e3, name="scaled")(kl.Subtract(name="difference")([one, other]))
    x = kl.Dense(8, activation="tanh", name="third")(x)
    model = keras.Model(inputs, kl.Dense(3, name="last")(x), name="deep")
    kernel = inner.layers[0].kernel
    model.get_layer("other").kernel.assign(kernel + 5e-4 * np.random.default_rng(3).standard_normal(kernel.shape))
    return model


@given(st.integers(1, 40), st.data())
def test_bisection_finds_what_is_needed_and_no_more(count: int, data: st.DataObject) -> None:
    names = [str(i) for i in range(count)]
    wanted = data.draw(st.sets(st.sampled_from(names), min_size=1))
    asked = []

    def works(kept: Sequence[str]) -> bool:
        asked.append(kept)
        return wanted <= set(kept)

    assert needed(names, works) == [name for name in names if name in wanted]
    assert len(asked) <= len(wanted) * (count.bit_length() + 1)


def test_no_plan_is_found_on_rows_that_the_model_answers_with_nan() -> None:
    inputs = keras.Input((6,))
    model = keras.Model(inputs, kl.Dense(3)(keras.ops.log(inputs)))
    with pytest.raises(VerificationError, match="nothing but NaN"):
        keras_trt.find_precision_plan(model, backend="onnxruntime", verbose=0)
    assert keras_trt.find_precision_plan(model, backend="onnxruntime", verbose=0, sample=np.exp(floats(6)(4))) == {}


def test_the_layers_that_break_half_precision_are_found_and_kept(cache: EngineCache) -> None:
    model, options = deep(), {"backend": "onnxruntime", "batch_sizes": (1, 8, 32), "verbose": 0}
    plan = keras_trt.find_precision_plan(model, **options)
    assert plan == {"inner/one": "float32", "other": "float32"}
    fast = keras_trt.accelerate(model, precision="fp16", precision_plan=plan, cache=cache, **options)
    assert (fast.precision, fast.report().fell_back) == ("fp16", ())
    assert fast.report().kept_float32 == ("inner/one", "other")
    x = floats(6)(9)
    assert 0 < zoo.relative_l2(model.predict(x, verbose=0), fast.predict(x, verbose=0)) < LIMITS["fp16"]
    again = keras_trt.accelerate(model, precision="fp16", precision_plan=plan, cache=cache, **options)
    assert (again.report().origin, again.report().kept_float32) == ("cache", ("inner/one", "other"))
    with recorded():
        other = keras_trt.accelerate(model, precision="fp16", cache=cache, **options)
    assert other.precision == "fp32", "without the plan it is another engine"


def test_a_model_that_is_right_in_half_needs_no_plan() -> None:
    assert keras_trt.find_precision_plan(zoo.make("mlp"), backend="onnxruntime") == {}


def test_the_search_starts_from_a_plan() -> None:
    plan = keras_trt.find_precision_plan(
        deep(), backend="onnxruntime", batch_sizes=(1, 8, 32), precision_plan={"o*": "float32"}
    )
    assert plan == {"o*": "float32"}, "it fits `one` and `other`"


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        ("other", {"other"}),
        ("inner", {"inner/one"}),
        ("inner/*", {"inner/one"}),
        ("one", {"inner/one"}),
        ("*d", {"second", "third", "scaled"}),
    ],
)
def test_patterns(pattern: str, layers: set[str]) -> None:
    model = deep()
    exported = export(model)
    by_layer = nodes_by_layer(model, exported)
    keep = planned({pattern: "float32"}, model, exported)
    assert keep == {name for layer in layers for name in by_layer[layer]}
    kinds = tensor_types(typed(exported.onnx, "fp16", keep))
    free = {name for layer in set(by_layer) - layers for name in by_layer[layer]}
    assert free
    assert "float16" in kinds.values()


def test_a_pattern_that_fits_nothing_lists_the_layers() -> None:
    with pytest.raises(ValueError, match=r"no layer of the graph fits 'dens'. Its layers: .*'first'"):
        accelerate(deep(), precision="fp16", precision_plan={"dens": "float32"})


def test_where_all_is_float32_no_layer_is_told_apart() -> None:
    fast = accelerate(deep(), precision="fp32", precision_plan={"other": "float32"})
    assert (fast.precision, fast.report().kept_float32) == ("fp32", ())
    with recorded():  # ONNX Runtime has no tf32
        fast = accelerate(deep(), precision="tf32", precision_plan={"other": "float32"})
    assert (fast.precision, fast.report().kept_float32) == ("fp32", ())
    assert "but for" not in str(fast.report())


@pytest.mark.parametrize("plan", [{"a": "fp16"}, ["a"], {1: "float32"}])
def test_plans_that_are_none(plan: Any) -> None:
    with pytest.raises(ValueError, match="precision_plan"):
        keras_trt.BuildOptions(precision_plan=plan)


def test_the_search_builds_as_it_is_told_and_keeps_no_engine(cache: EngineCache) -> None:
    model = zoo.make("mlp")
    assert keras_trt.find_precision_plan(model, backend="onnxruntime", cache=cache, verbose=0) == {}
    assert list(cache.items()) == []
    options = {"backend": "onnxruntime", "build": "process", "build_timeout": 1e-3, "cache": None}
    with pytest.raises(BuildError, match="took longer than"):
        keras_trt.find_precision_plan(model, **options)


def test_what_no_plan_can_mend_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, "fp16", -1.0)  # type: ignore[call-overload]
    with pytest.raises(VerificationError, match="in float32 too"):
        keras_trt.find_precision_plan(cancelling(), backend="onnxruntime")
