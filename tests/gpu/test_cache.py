"""Artifacts, refits and timing caches on a real GPU with TensorRT: `python -m pytest -m gpu tests/gpu -rP`."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt.artifact import Artifact
from keras_trt.cache import EngineCache
from keras_trt.errors import FallbackWarning
from keras_trt.verification.verify import LIMITS

from ..test_quickstart import child_environment
from . import models

pytestmark = pytest.mark.gpu


def say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")


def accelerate(model: Any, cache: Any, precision: str = "fp16", **options: Any) -> keras_trt.TRTModel:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        return keras_trt.accelerate(
            model, backend="tensorrt", precision=precision, optimization_level=0, cache=cache, fallback="raise",
            verbose=0, **options,
        )  # fmt: skip


def assert_right(model: Any, fast: keras_trt.TRTModel, precision: str = "fp16") -> None:
    limit = LIMITS[precision]  # type: ignore[index]
    rows = models.random_rows(model, 50, seed=77)
    reference = np.asarray(model.predict(rows, verbose=0))
    models.assert_lively(reference, limit)
    assert models.relative(fast.predict(rows, verbose=0), reference) < limit


# Artifacts.


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_plan_is_loaded_from_its_file(precision: str, tmp_path: Path) -> None:
    model = models.cnn()
    path = tmp_path / "model.ktrt"
    for cache in (tmp_path / "cache", tmp_path / "cache", None):  # built, from the cache, and never stored
        with accelerate(model, cache, precision) as fast:
            fast.save(path)
        file = Artifact(path)
        assert len(file.identities) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error", FallbackWarning)
            loaded = keras_trt.load(path, cache=None, verbose=0)
        with loaded:
            report = loaded.report()
            assert (report.backend, report.origin, report.precision) == ("tensorrt", "artifact", precision)
            assert all(difference.within for difference in report.differences)
            assert "build" not in report.seconds
            assert_right(model, loaded, precision)


def test_a_plan_of_another_machine_is_built_anew(tmp_path: Path) -> None:
    from dataclasses import replace

    from keras_trt import artifact

    model = models.cnn()
    with accelerate(model, None) as fast:
        assert fast._contents is not None
        contents = fast._contents()
    (plan,) = contents.plans
    other = artifact.Plan({**plan.identity, "gpu": "another GPU"}, b"code for another GPU")
    artifact.write(tmp_path / "model.ktrt", replace(contents, plans=[other]))
    with keras_trt.load(tmp_path / "model.ktrt", cache=tmp_path / "cache", verbose=0) as loaded:
        assert loaded.report().origin == "built"
        assert_right(model, loaded)
        loaded.save(tmp_path / "both.ktrt")
    assert [identity["gpu"] for identity in Artifact(tmp_path / "both.ktrt").identities] == [
        "another GPU", plan.identity["gpu"],
    ]  # fmt: skip
    with keras_trt.load(tmp_path / "model.ktrt", cache=tmp_path / "cache", verbose=0) as loaded:
        assert loaded.report().origin == "cache"
    with keras_trt.load(tmp_path / "both.ktrt", cache=None, verbose=0) as loaded:
        assert loaded.report().origin == "artifact"


def test_a_plan_that_is_none_is_built_anew(tmp_path: Path) -> None:
    from dataclasses import replace

    from keras_trt import artifact

    model = models.cnn()
    with accelerate(model, None) as fast:
        assert fast._contents is not None
        contents = fast._contents()
    artifact.write(
        tmp_path / "model.ktrt", replace(contents, plans=[replace(contents.plans[0], data=b"damaged" * 1000)])
    )
    with pytest.warns(FallbackWarning, match="of no use"):
        loaded = keras_trt.load(tmp_path / "model.ktrt", cache=None, verbose=0)
    with loaded:
        assert loaded.backend == "tensorrt"
        assert_right(model, loaded)


def test_in_a_process_without_tensorflow(tmp_path: Path) -> None:
    model = models.cnn()
    rows = models.random_rows(model, 40)
    with accelerate(model, None) as fast:
        fast.save(tmp_path / "model.ktrt")
    np.save(tmp_path / "x.npy", rows)
    code = (
        "import sys, numpy as np, keras_trt\n"
        "fast = keras_trt.load('model.ktrt', cache=None, verbose=0)\n"
        "np.save('y.npy', fast.predict(np.load('x.npy')))\n"
        "assert fast.backend == 'tensorrt' and not {'tensorflow', 'keras'} & set(sys.modules)\n"
        "print(dict(fast.report().seconds))\n"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=child_environment(), capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    say(load_to_first_prediction_whole_process_s=seconds, steps=done.stdout)
    assert models.relative(np.load(tmp_path / "y.npy"), model.predict(rows, verbose=0)) < LIMITS["fp16"]


# Refits.


def other_weights(model: Any, seed: int = 5) -> None:
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        value = np.asarray(variable)
        if value.dtype == np.float32:
            variable.assign(value * generator.uniform(0.7, 1.3, value.shape) + (0.01 if value.ndim == 1 else 0))


@pytest.mark.parametrize("precision", ["fp16", "tf32", "fp32"])
@pytest.mark.parametrize("name", ["cnn", "lstm", "attention", "mlp"])
def test_other_weights_never_give_the_old_answer(
    name: str, precision: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = getattr(models, name)()
    with accelerate(model, tmp_path, precision, refittable=True) as first:
        assert first.report().origin == "built"
        assert_right(model, first, precision)
        other_weights(model)
        with (
            caplog.at_level(logging.WARNING, "keras_trt"),
            accelerate(model, tmp_path, precision, refittable=True) as fast,
        ):
            report = fast.report()
            why = [line for line in caplog.messages if "could not be refitted" in line]
            say(model=model.name, precision=precision, origin=report.origin, seconds=dict(report.seconds), why=why)
            assert "export" not in report.seconds
            assert report.origin == ("built" if why else "refitted")
            assert_right(model, fast, precision)
    with accelerate(model, tmp_path, precision, refittable=True) as again:
        assert again.report().origin == "cache"
        assert_right(model, again, precision)


def test_engines_that_cannot_be_refitted_are_others(tmp_path: Path) -> None:
    model = models.cnn()
    with accelerate(model, tmp_path) as first, accelerate(model, tmp_path, refittable=True) as second:
        assert [first.report().origin, second.report().origin] == ["built", "built"]
    other_weights(model)
    with accelerate(model, tmp_path) as fast:
        assert fast.report().origin == "built"
        assert_right(model, fast)


# Timing caches.


def test_builds_share_what_was_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, cache = models.cnn(), EngineCache(tmp_path)
    sizes, seconds = [], []
    for _ in range(2):
        with caplog.at_level(logging.INFO, "keras_trt.tensorrt"), accelerate(model, cache) as fast:
            seconds.append(fast.report().seconds["build"])
            assert_right(model, fast)
        stored = [item for item in cache.items() if "timings_of" in item.manifest]
        assert len(stored) == 1
        sizes.append(stored[0].size_bytes)
        for item in cache.items():
            if "timings_of" not in item.manifest:
                cache.discard(item.key)
    refused = [line for line in caplog.messages if "cannot read a timing cache" in line]
    say(build_seconds=seconds, timing_cache_bytes=sizes, refused=refused)
    assert sizes[1] >= sizes[0] or refused


def test_the_search_for_a_plan_keeps_what_was_measured_alone(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    plan = keras_trt.find_precision_plan(
        models.cnn(), backend="tensorrt", optimization_level=0, cache=cache, verbose=0
    )  # fmt: skip
    say(plan=plan)
    assert ["timings_of" in item.manifest for item in cache.items()] == [True]
