"""`BuildOptions`: what is allowed, what is refused, and which fields change the engine."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt import BuildOptions, OptimizationProfile, ShapeRange
from keras_trt.options import ENGINE_OPTIONS, OTHER_OPTIONS, shapes_for
from keras_trt.specs import TensorSpec

FIELDS = {field.name for field in dataclasses.fields(BuildOptions)}


def test_each_option_either_changes_the_engine_or_not() -> None:
    assert FIELDS == ENGINE_OPTIONS | OTHER_OPTIONS
    assert not ENGINE_OPTIONS & OTHER_OPTIONS


def test_each_option_is_documented() -> None:
    described = inspect.getdoc(BuildOptions) or ""
    for name in FIELDS:
        assert f"\n    {name}: " in described
        assert f"`{name}`" in (keras_trt.accelerate.__doc__ or "")


def test_defaults() -> None:
    assert BuildOptions() == BuildOptions(
        precision=None,
        backend="auto",
        batch_sizes=(1, 32, 128),
        profiles=None,
        sample=None,
        optimization_level=None,
        refittable=False,
        verify=True,
        fallback="keras",
        cache=True,
        device=0,
        verbose="auto",
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("precision", "fp32"),
        ("precision", "tf32"),
        ("precision", "fp16"),
        ("backend", "tensorrt"),
        ("backend", "tensorrt_rtx"),
        ("backend", "onnxruntime"),
        ("batch_sizes", (1, 1, 1)),
        ("batch_sizes", (3, 5, 7)),
        ("optimization_level", 0),
        ("optimization_level", 5),
        ("refittable", True),
        ("verify", False),
        ("fallback", "raise"),
        ("cache", None),
        ("cache", "folder"),
        ("cache", Path("folder")),
        ("device", 7),
        ("verbose", 1),
    ],
)
def test_good_values(option: str, value: Any) -> None:
    assert getattr(BuildOptions(**{option: value}), option) == value
    assert getattr(BuildOptions.of(None, {option: value}), option) == value


BAD = [
    ("precision", "int4"),
    ("precision", "FP16"),
    ("precision", "float16"),
    ("precision", np.float16),
    ("precision", 16),
    ("precision", True),
    ("backend", "trt"),
    ("backend", None),
    ("backend", ["tensorrt"]),
    ("batch_sizes", ()),
    ("batch_sizes", (1, 8)),
    ("batch_sizes", (1, 8, 32, 64)),
    ("batch_sizes", (0, 8, 32)),
    ("batch_sizes", (-1, 8, 32)),
    ("batch_sizes", (8, 1, 32)),
    ("batch_sizes", (1, 64, 32)),
    ("batch_sizes", (1.0, 8.0, 32.0)),
    ("batch_sizes", (True, 8, 32)),
    ("batch_sizes", ("1", "8", "32")),
    ("batch_sizes", "abc"),
    ("batch_sizes", 32),
    ("batch_sizes", None),
    ("batch_sizes", (1, None, 32)),
    ("profiles", {"x": ((1, 2), (4, 2), (8, 2))}),
    ("profiles", "x"),
    ("profiles", 3),
    ("optimization_level", -1),
    ("optimization_level", 6),
    ("optimization_level", 2.0),
    ("optimization_level", True),
    ("optimization_level", "3"),
    ("refittable", None),
    ("refittable", 1),
    ("verify", None),
    ("verify", 1),
    ("verify", "yes"),
    ("fallback", "tensorflow"),
    ("fallback", None),
    ("fallback", True),
    ("device", -1),
    ("device", "cuda:0"),
    ("device", 0.0),
    ("device", None),
    ("device", True),
    ("device", []),
    ("device", [0, 0]),
    ("device", [-1]),
    ("verbose", 2),
    ("verbose", -1),
    ("verbose", None),
    ("verbose", True),
    ("verbose", "yes"),
    ("cache", 3),
    ("cache", 1.5),
    ("cache", ""),
    ("cache", ["folder"]),
]


@pytest.mark.parametrize(("option", "value"), BAD, ids=[f"{option}={value!r}" for option, value in BAD])
def test_bad_values(option: str, value: Any) -> None:
    """Each is refused with its name and what was received, before anything is done."""
    with pytest.raises(ValueError, match=f"`{option}`") as caught:
        BuildOptions(**{option: value})
    assert f"Received: {option}=" in str(caught.value)
    assert not isinstance(caught.value, keras_trt.KerasTRTError)  # a wrong argument is Python's own error
    with pytest.raises(ValueError, match=f"`{option}`"):
        BuildOptions.of(BuildOptions(), {option: value})


def test_unknown_options() -> None:
    with pytest.raises(TypeError, match=r"Unknown option batchsize\. Known are .*batch_sizes"):
        BuildOptions.of(None, {"batchsize": 3})
    with pytest.raises(TypeError, match="Unknown options a, b"):
        BuildOptions.of(None, {"b": 3, "a": 4, "precision": "fp32"})
    with pytest.raises(TypeError):
        BuildOptions("fp32")  # type: ignore[misc]


def test_keywords_go_over_options() -> None:
    base = BuildOptions(precision="fp32", device=1)
    found = BuildOptions.of(base, {"device": 2, "batch_sizes": [1, 2, 3]})
    assert found == BuildOptions(precision="fp32", device=2, batch_sizes=(1, 2, 3))
    assert base.device == 1
    assert BuildOptions.of(base, {}) == base


def test_options_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BuildOptions().precision = "fp32"  # type: ignore[misc]


# What they say of the shapes to build for.

IMAGE, WORDS = TensorSpec("image", (None, 8, 8, 3), "float32"), TensorSpec("words", (None, None), "int32")


def test_batch_sizes_are_the_shapes() -> None:
    assert shapes_for([IMAGE], BuildOptions(batch_sizes=(1, 4, 9)), None) == (
        ShapeRange((1, 8, 8, 3), (4, 8, 8, 3), (9, 8, 8, 3)),
    )


def test_a_batch_size_that_the_model_fixes_counts() -> None:
    fixed = TensorSpec("image", (5, 3), "float32")
    assert shapes_for([fixed], BuildOptions(batch_sizes=(1, 4, 9)), None) == (ShapeRange((5, 3), (5, 3), (5, 3)),)


def test_a_sample_gives_open_axes() -> None:
    sample = [np.zeros((2, 8, 8, 3)), np.zeros((2, 11))]
    assert shapes_for([IMAGE, WORDS], BuildOptions(batch_sizes=(1, 4, 9)), sample)[1] == ShapeRange(
        (1, 11), (4, 11), (9, 11)
    )


def test_an_open_axis_needs_a_sample_or_profiles() -> None:
    with pytest.raises(ValueError, match=r"Axis 1 of input 'words' has no fixed size: shape \(None, None\).*profiles="):
        shapes_for([IMAGE, WORDS], BuildOptions(), None)


def test_profiles_say_all() -> None:
    ranges = {"image": ShapeRange(*[(n, 8, 8, 3) for n in (1, 2, 3)]), "words": ShapeRange((1, 5), (2, 6), (3, 7))}
    options = BuildOptions(profiles=OptimizationProfile(ranges))
    assert shapes_for([WORDS, IMAGE], options, None) == (ranges["words"], ranges["image"])


@pytest.mark.parametrize(
    ("name", "shapes", "words"),
    [
        ("picture", ShapeRange(*[(1, 8, 8, 3)] * 3), "misses the input 'image'"),
        ("image", ShapeRange(*[(1, 8, 8)] * 3), "'image' has the shape"),
        ("image", ShapeRange(*[(1, 8, 8, 4)] * 3), "'image' has the shape"),
        ("image", ShapeRange((1, 8, 8, 3), (1, 8, 8, 3), (1, 8, 9, 3)), "'image' has the shape"),
    ],
)
def test_profiles_must_fit(name: str, shapes: ShapeRange, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        shapes_for([IMAGE], BuildOptions(profiles=OptimizationProfile({name: shapes})), None)
    assert "Received" in str(caught.value)
