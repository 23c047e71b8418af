"""Other weights of the same model: no export, and a refitted engine instead of a build. Never an old answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from keras_trt.artifact import Artifact
from keras_trt.backends.onnxruntime import OnnxRuntimeBackend
from keras_trt.building.wanted import skeleton
from keras_trt.cache import EngineCache
from keras_trt.export import export
from keras_trt.export.stored import pack, unpack
from keras_trt.precision import lowered, typed

from . import zoo
from .models import CASES, accelerate, floats, keras, kl, other_weights, rows_differ, same

REPOSITORY = Path(__file__).parents[1]


def steps(fast: Any) -> set[str]:
    return set(fast.report().seconds)


@pytest.mark.parametrize("name", list(zoo.ZOO))
def test_a_stored_export_with_other_weights_is_a_fresh_export(name: str) -> None:
    model = zoo.make(name)
    before = export(model)
    data, about = pack(before, values_of(model))
    assert len(data) < 60_000
    other_weights(model)
    again = unpack(data, json.loads(json.dumps(about)), values_of(model))
    if again is None:
        assert not before.recipe.covers(range(len(model.variables)))
        return
    fresh = export(model)
    assert again.onnx == fresh.onnx
    assert again.onnx != before.onnx
    assert again.signature == fresh.signature
    for precision in ("fp32", "fp16", "bf16"):
        graphs = [typed(one.onnx, precision) for one in (before, again)]  # type: ignore[arg-type]
        assert len({skeleton(graph, lowered(again.recipe.names)) for graph in graphs}) == 1
        assert graphs[0] != graphs[1]


def values_of(model: Any) -> list[Any]:
    return [np.asarray(variable) for variable in model.variables]


def test_a_skeleton_tells_constants_apart() -> None:
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3), kl.Rescaling(2.0)])
    exported = export(model)
    proto = onnx.load_from_string(exported.onnx)
    constants = [tensor for tensor in proto.graph.initializer if tensor.name not in exported.recipe.names]
    assert constants
    constants[0].raw_data = bytes(len(constants[0].raw_data))
    names = exported.recipe.names
    assert skeleton(proto.SerializeToString(), names) != skeleton(exported.onnx, names)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["image", "batch normalization", "masked int32", "subclassed", "dict inputs"])
def test_other_weights_are_refitted(name: str, precision: str, cache: EngineCache) -> None:
    model, x = CASES[name].build(), CASES[name].data(10)
    first = accelerate(model, cache=cache, precision=precision)
    assert first.report().origin == "built"
    old = model.predict(x, verbose=0)
    other_weights(model)
    second = accelerate(model, cache=cache, precision=precision)
    assert second.report().origin == "refitted"
    assert {"weights", "refit"} <= steps(second)
    assert not {"export", "build"} & steps(second)
    expected = model.predict(x, verbose=0)
    rows_differ(expected)
    flat = [np.asarray(leaf) for leaf in keras.tree.flatten(expected)]
    assert any(np.abs(a - b).max() > 0.05 for a, b in zip(flat, keras.tree.flatten(old), strict=True))
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    same(expected, second.predict(x, verbose=0), tolerance)
    same(old, first.predict(x, verbose=0), tolerance)  # the first is a snapshot
    third = accelerate(model, cache=cache, precision=precision)
    assert third.report().origin == "cache"  # the refitted engine is an entry of its own
    same(expected, third.predict(x, verbose=0), tolerance)


def test_another_precision_needs_no_export(cache: EngineCache) -> None:
    model = CASES["image"].build()
    accelerate(model, cache=cache)
    half = accelerate(model, cache=cache, precision="fp16")
    assert half.report().origin == "built"
    assert "export" not in steps(half)


def test_a_flipped_bit_is_another_engine(cache: EngineCache, tmp_path: Path) -> None:
    model = CASES["sequential"].build()
    accelerate(model, cache=cache)
    variable = model.variables[-1]
    value = np.asarray(variable).copy()
    for bit in (0, 7, 22, 23, 30, 31):
        flipped = value.view(np.uint32).copy()
        flipped[0] ^= np.uint32(1 << bit)
        wanted = flipped.view(np.float32)
        if not np.isfinite(wanted).all():
            continue
        variable.assign(wanted)
        fast = accelerate(model, cache=cache)
        assert fast.report().origin == "refitted", bit
        fast.save(tmp_path / "model.ktrt")
        graph = onnx.load_from_string(Artifact(tmp_path / "model.ktrt").graph()).graph
        arrays = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
        assert any(array.shape == wanted.shape and array.tobytes() == wanted.tobytes() for array in arrays), bit
    variable.assign(value)
    assert accelerate(model, cache=cache).report().origin == "cache"


def test_in_a_new_process_nothing_is_traced(tmp_path: Path) -> None:
    code = """
import json, sys
from tests.models import CASES, accelerate, same
from tests.models import other_weights
import keras
keras.utils.set_random_seed(3)
model = CASES["image"].build()
if sys.argv[2] == "other":
    other_weights(model)
fast = accelerate(model, cache=sys.argv[1])
x = CASES["image"].data(10)
same(model.predict(x, verbose=0), fast.predict(x, verbose=0))
print(json.dumps([fast.report().origin, "tf2onnx" in sys.modules, float(fast.predict(x, verbose=0).sum())]))
"""
    found = []
    for weights in ("first", "other", "other"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), weights],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert [origin for origin, _, _ in found] == ["built", "refitted", "cache"]
    assert [traced for _, traced, _ in found] == [True, False, False]
    sums = [total for _, _, total in found]
    assert sums[0] != sums[1] == sums[2]


# Where a refit is not enough.


def test_a_layer_that_keeps_a_copy_of_its_weights(cache: EngineCache) -> None:
    """`Normalization` makes tensors of its mean and variance: a recipe does not know them."""
    layer = kl.Normalization()
    layer.adapt(floats(4)(50))
    model = keras.Sequential([keras.Input((4,)), layer, kl.Dense(3)])
    accelerate(model, cache=cache)
    layer.adapt(floats(4)(50) * 3 + 7)
    fast = accelerate(model, cache=cache)
    assert "export" in steps(fast)
    x = floats(4)(6)
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))
    model.layers[-1].set_weights([weight * 2 for weight in model.layers[-1].get_weights()])
    fast = accelerate(model, cache=cache)
    assert fast.report().origin == "refitted"
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))


def test_a_refit_that_answers_wrongly_is_built(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = CASES["image"].build(), CASES["image"].data(10)
    accelerate(model, cache=cache)
    other_weights(model)
    monkeypatch.setattr(OnnxRuntimeBackend, "refit", lambda _self, plan, _onnx, _names: plan)  # the old weights
    fast = accelerate(model, cache=cache)
    assert fast.report().origin == "built"
    assert {"refit", "build"} <= steps(fast)
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))


def test_a_lost_or_damaged_base_is_built(cache: EngineCache) -> None:
    model, x = CASES["image"].build(), CASES["image"].data(10)
    accelerate(model, cache=cache)
    for item in cache.items():
        if item.kind == "entry" and "fields" in item.manifest and item.payload is not None:
            item.payload.write_bytes(b"damaged")
    other_weights(model)
    fast = accelerate(model, cache=cache)
    assert fast.report().origin == "built"
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))


def test_other_shapes_are_another_family(cache: EngineCache) -> None:
    model = CASES["image"].build()
    accelerate(model, cache=cache)
    other_weights(model)
    assert accelerate(model, cache=cache, batch_sizes=(1, 4, 16)).report().origin == "built"
    assert accelerate(model, cache=cache).report().origin == "refitted"


def test_a_model_without_a_structure_key_is_refitted_too(cache: EngineCache) -> None:
    generator = np.random.default_rng(0)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, kl.Lambda(lambda x: x + float(generator is None))(kl.Dense(3)(inputs)))
    accelerate(model, cache=cache)
    other_weights(model)
    fast = accelerate(model, cache=cache)
    assert fast.report().origin == "refitted"
    assert "export" in steps(fast)
    x = floats(4)(6)
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))


def test_a_compiled_model_is_refitted_at_the_next_call(cache: EngineCache) -> None:
    model, x = CASES["image"].build(), CASES["image"].data(10)
    fast = model.compile_trt(backend="onnxruntime", cache=cache, batch_sizes=(1, 8, 32), verbose=0)
    assert fast.report().origin == "built"
    other_weights(model)
    answer = model.predict(x, verbose=0)
    assert fast.report().origin == "refitted"
    assert "export" not in steps(fast)
    model.uncompile_trt()
    same(model.predict(x, verbose=0), answer)
