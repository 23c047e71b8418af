"""keras_trt on a real GPU with TensorRT: `python -m pytest -m gpu tests`.

With the environment variable KERAS_TRT_GPU_REPORT, what was measured is written as JSON into the file that it names.
"""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt import cuda
from keras_trt.runtime import SLOTS
from keras_trt.runtime.plan import USUAL_SIZES, BatchPlan
from keras_trt.verification.verify import LIMITS

from ..runtime.helpers import in_threads
from ..test_quickstart import REPOSITORY, assert_agrees, child_environment, run_quickstart
from . import models
from .accelerated import Accelerated, accelerate, engine_layers, runner_of
from .summary import SUMMARY, note, where

pytestmark = pytest.mark.gpu

MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Iterator[cuda.DeviceInfo]:
    """GPU 0; writes the summary at the end."""
    info = cuda.device_info(0)
    started = time.perf_counter()
    yield info
    SUMMARY["seconds"] = time.perf_counter() - started
    summary = {**where(info), **SUMMARY}
    text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    sys.stdout.write(text)
    if path := os.environ.get("KERAS_TRT_GPU_REPORT"):
        Path(path).write_text(text)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines") / "cache"


@pytest.fixture(scope="module")
def accelerated(cache: Path) -> Iterator[Callable[[str, str], Accelerated]]:
    """Gives the engine of a model in a precision; each is built once."""
    made: dict[tuple[str, str], Accelerated] = {}

    def get(name: str, precision: str) -> Accelerated:
        if (name, precision) not in made:
            made[name, precision] = Accelerated(getattr(models, name), cache, precision)
        return made[name, precision]

    yield get
    for one in made.values():
        one.fast.close()


# Precision.


@pytest.mark.parametrize("precision", ["fp16", "tf32", "fp32"])
@pytest.mark.parametrize("name", ["cnn", "lstm", "attention"])
def test_precision(accelerated: Any, name: str, precision: str) -> None:
    one = accelerated(name, precision)
    models.assert_lively(one.reference, one.limit)
    answers = one.fast.predict(one.rows, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", keras_trt.FallbackWarning)
        on_cpu = keras_trt.accelerate(one.model, backend="onnxruntime", precision="fp32", cache=None, verbose=0)
    other = on_cpu.predict(one.rows, verbose=0)
    to_keras, to_onnxruntime = models.relative(answers, one.reference), models.relative(answers, other)
    note("differences", f"{name} {precision}", {"keras": to_keras, "onnxruntime": to_onnxruntime})
    assert to_keras < one.limit
    assert to_onnxruntime < one.limit
    one.assert_right(0, 300, answers)
    layers = engine_layers(one.fast)
    half = [layer for layer in layers if "FP16" in str(layer) or "Half" in str(layer)]
    assert precision == "fp16" or not half, half[:5]
    # The inspector does not show the inside of Myelin's layers; the answers carry the rounding of fp16, 2^-11.
    assert precision != "fp16" or half or (any("Myelin" in str(layer) for layer in layers) and to_onnxruntime > 5e-5)
    assert precision != "fp32" or to_onnxruntime < 1e-5


@pytest.mark.parametrize(("precision", "limit"), [("fp16", 1e-2), ("tf32", 2e-3)])
def test_resnet50(cache: Path, precision: str, limit: float) -> None:
    model = models.resnet50()
    rows = models.images(8)
    reference = np.asarray(model.predict(rows, verbose=0))
    models.assert_lively(reference, limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error", keras_trt.FallbackWarning)
        fast = accelerate(
            model, cache, precision=precision, optimization_level=1, batch_sizes=(1, 8, 32), fallback="raise"
        )
    with fast:
        assert fast.precision == precision
        difference = models.relative(fast.predict(rows, verbose=0), reference)
        note("differences", f"resnet50 {precision}", {"keras": difference})
        note("build_seconds", f"resnet50 {precision}", round(fast.report().seconds["build"], 1))
        assert difference < limit
    again = accelerate(model, cache, precision=precision, optimization_level=1, batch_sizes=(1, 8, 32))
    with again:
        assert again.report().origin == "cache"
        note("second_start_seconds", f"resnet50 {precision}", dict(again.report().seconds))
        assert models.relative(again.predict(rows, verbose=0), reference) < limit


@pytest.mark.parametrize(("precision", "digits"), [(None, 1), ("fp32", 0)], ids=["default", "fp32"])
def test_quickstart(gpu: cuda.DeviceInfo, precision: str | None, digits: int) -> None:
    table = run_quickstart(*(["--precision", precision] if precision else []))
    assert re.match(r"TensorRT \d", table["backend"])
    assert table["device"] == gpu.name
    assert table["precision"] == (precision or "fp16")
    assert_agrees(table, digits)
    note("quickstart", precision or "default", table)


# Batches.


@pytest.mark.parametrize("rows", [1, 7, 128, 129, 300])
def test_partial_batches(accelerated: Any, rows: int) -> None:
    one = accelerated("cnn", "fp16")
    poison = np.full_like(one.rows, np.nan)
    for before in (300, rows):
        one.fast.predict(poison[:before], verbose=0)  # what a wrong copy or missing padding would show
    one.assert_right(0, rows)
    one.assert_right(300 - rows, 300)


def test_calls_of_one_row(accelerated: Any) -> None:
    one = accelerated("mlp", "fp16")
    for row in range(20):
        answer = one.fast(one.rows[row : row + 1])
        assert isinstance(answer, np.ndarray)
        one.assert_right(row, row + 1, answer)
        one.assert_right(row, row + 1, one.fast.predict_on_batch(one.rows[row : row + 1]))


def test_cuda_graphs_are_used(accelerated: Any) -> None:
    one = accelerated("cnn", "fp16")
    plan = one.fast._session._plan  # of measured costs: a size that is best run as it is, and has no slot yet
    size = next(rows for rows in range(11, 128) if plan.is_whole(rows) and rows not in USUAL_SIZES)
    one.fast.predict_on_batch(one.rows[:size])  # padded or split; from now on the size has slots of its own
    for call in range(3):
        one.fast.predict_on_batch(one.rows[:size])
        (slot,) = (
            slot for slot in runner_of(one.fast)._pool._idle if slot.shapes is not None and slot.shapes[0][1][0] == size
        )
        assert call == 0 or any(graph is not None for graph in slot._graphs.values())
    one.assert_right(100, 100 + size)


@pytest.mark.parametrize("count", [2, 8])
def test_threads(accelerated: Any, count: int) -> None:
    one = accelerated("cnn", "fp16")

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(60):
            start = int(generator.integers(0, 299))
            one.assert_right(start, int(generator.integers(start + 1, min(start + 140, 301))))

    in_threads([partial(work, seed) for seed in range(count)], 200)
    assert runner_of(one.fast)._pool._made <= SLOTS


def test_integers_that_the_engine_does_not_have(accelerated: Any) -> None:
    one = accelerated("lookup", "fp32")
    one.assert_right(0, 40)
    if runner_of(one.fast)._engine.dtype("ids") == np.int64:
        pytest.skip("this TensorRT takes 64-bit integers")
    for value in (2**31, 2**40, -(2**31) - 1):
        wrong = one.rows[:5].copy()
        wrong[2, 3] = value
        with pytest.raises(keras_trt.InputError, match="integers") as caught:
            one.fast.predict(wrong, verbose=0)
        assert caught.value.input_name == "ids"
    one.assert_right(0, 40)


# Processes.


@pytest.fixture(scope="module")
def second_process(accelerated: Any, cache: Path) -> dict[str, Any]:
    accelerated("mlp", "fp16")
    return run_child("second_start", cache)


def run_child(*arguments: object) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-m", "tests.gpu.children", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=REPOSITORY,
        env=child_environment(),
    )
    # A crash at exit, as of memory that is freed after CUDA is gone, is a negative status.
    assert result.returncode == 0, f"{result.returncode}\n{result.stdout}\n{result.stderr[-6000:]}"
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def test_second_process_finds_the_engine(second_process: dict[str, Any]) -> None:
    assert second_process["origin"] == "cache"
    assert second_process["precision"] == "fp16"
    assert not {"export", "build", "verify"} & set(second_process["seconds"])
    assert not second_process["tf2onnx"]
    assert second_process["difference"] < LIMITS["fp16"]
    note("second_start_seconds", "mlp fp16", second_process["seconds"])


def test_use_after_fork(second_process: dict[str, Any]) -> None:
    assert "forked" in second_process["in_fork"]


def test_tensorflow_holds_most_of_the_memory(accelerated: Any, cache: Path) -> None:
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        pytest.skip("this TensorFlow does not use the GPU")
    accelerated("cnn", "fp16")  # which the other process finds
    said = run_child("beside_tensorflow", cache)
    assert said["backend"] == "tensorrt"
    assert said["free_beside"] < 0.2
    assert said["tensors_before"] is None
    assert 0 < said["tensors"] < 1 << 30
    assert said["enough"] is None
    assert f"TensorFlow's tensors take {said['tensors'] >> 20} MiB" in said["too_little"]
    assert said["difference"] < LIMITS["fp16"]
    assert said["again"] < 1e-6
    note("beside_tensorflow", "cnn fp16", said)


# Memory.


class Ballast:
    """Takes all of the GPU's memory but some."""

    def __init__(self, left_bytes: int) -> None:
        gc.collect()
        self._parts: list[cuda.DeviceMemory] = []
        self._left_bytes = left_bytes
        self.fill()

    def fill(self) -> None:
        """Take what was freed since."""
        step = cuda.free_memory(0)[0]
        # In several parts: the largest single piece may be smaller than what is free.
        while step >= MIB:
            room = cuda.free_memory(0)[0] - self._left_bytes
            if room < MIB:
                break
            try:
                self._parts.append(cuda.DeviceMemory(min(step, room)))
            except keras_trt.CudaError:
                step //= 2

    def __enter__(self) -> Ballast:
        return self

    def __exit__(self, *_: object) -> None:
        for part in self._parts:
            part.close()


def wide(units: int) -> Any:
    """Return a model whose float32 weights take 46 MiB and more, so that no engine of it fits beside a `Ballast`."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(units)
    return keras.Sequential(
        [keras.Input((4096,), name="features"), layers.Dense(units, activation="tanh"), layers.Dense(4)],
        name=f"wide_{units}",
    )


def accelerate_wide(model: Any, cache: Any, **options: Any) -> tuple[keras_trt.TRTModel, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fast = accelerate(model, cache, precision="fp32", optimization_level=0, batch_sizes=(1, 4, 8), **options)
    kinds = [warning for warning in caught if issubclass(warning.category, keras_trt.FallbackWarning)]
    return fast, [str(warning.message) for warning in kinds]


def assert_wide_right(model: Any, fast: keras_trt.TRTModel) -> None:
    rows = models.random_rows(model, 11)
    reference = model.predict(rows, verbose=0)
    models.assert_lively(reference, LIMITS["fp32"])
    assert models.relative(fast.predict(rows, verbose=0), reference) < LIMITS["fp32"]


def test_out_of_memory_while_building(accelerated: Any, cache: Path) -> None:
    one = accelerated("mlp", "fp16")  # CUDA and TensorRT hold what they need for themselves
    model = wide(3000)
    with Ballast(24 * MIB) as ballast:
        model.predict(models.random_rows(model, 128), verbose=0)
        ballast.fill()  # TensorFlow gives back what is idle of its own when it needs more, where it is let grow
        free = cuda.free_memory(0)[0]
        fast, said = accelerate_wide(model, cache)
        assert fast.backend == "keras"
        assert len(said) == 1, said
        assert "without TensorRT" in said[0]
        assert re.search(r"MiB free|memory", said[0], re.IGNORECASE), said[0]
        note("out_of_memory", "warning", {"free_mib": free >> 20, "message": said[0][:2000]})
        assert_wide_right(model, fast)
        with pytest.raises(keras_trt.KerasTRTError):
            accelerate_wide(model, cache, fallback="raise")
        one.assert_right(0, 5)  # an engine that is there goes on
    fast, said = accelerate_wide(model, cache, fallback="raise")
    with fast:
        assert (fast.backend, said) == ("tensorrt", [])
        assert_wide_right(model, fast)


def test_out_of_memory_does_not_lose_the_engine(accelerated: Any, cache: Path) -> None:
    accelerated("mlp", "fp16")
    model = wide(3100)
    fast, _ = accelerate_wide(model, cache, fallback="raise")
    assert fast.report().origin == "built"
    fast.close()
    with Ballast(24 * MIB):
        fast, said = accelerate_wide(model, cache)
        assert fast.backend == "keras"
        assert len(said) == 1, said
        assert_wide_right(model, fast)
    fast, said = accelerate_wide(model, cache, fallback="raise")
    with fast:
        assert said == []
        assert fast.report().origin == "cache"
        assert_wide_right(model, fast)


def test_batches_are_halved_when_memory_runs_out(cache: Path) -> None:
    import keras
    from keras import layers

    keras.utils.set_random_seed(11)
    steps = keras.Input((4096, 256), name="steps")  # 4 MiB a row, of which hardly anything is computed
    model = keras.Model(steps, layers.Dense(3)(layers.GlobalAveragePooling1D()(steps)), name="long")
    rows = models.random_rows(model, 64, seed=3)
    reference = np.asarray(model.predict(rows, verbose=0))
    with accelerate(model, cache, precision="fp32", batch_sizes=(1, 32, 64), fallback="raise") as fast:
        fast._session._plan = BatchPlan(1, 64)  # as large as can be, whatever was measured
        assert models.relative(fast.predict(rows, batch_size=64, verbose=0), reference) < LIMITS["fp32"]
        pool = runner_of(fast)._pool
        with cuda.current_device(0):
            pool.resize(0)  # what is reserved is given back, as another process might have it then
            pool.resize(1)
        fast.predict(rows[:1], verbose=0)  # TensorRT has a context, whose memory is that of the largest batch
        with (
            Ballast(192 * MIB),
            pytest.warns(keras_trt.FallbackWarning, match="does not suffice for 64 rows: running 32"),
        ):
            got = fast.predict(rows, batch_size=64, verbose=0)
        assert models.relative(got, reference) < LIMITS["fp32"]
        assert models.relative(fast.predict(rows, batch_size=64, verbose=0), reference) < LIMITS["fp32"]


def test_close_frees_the_memory(accelerated: Any, cache: Path) -> None:
    one = accelerated("cnn", "fp16")

    def use_and_close() -> int:
        fast = accelerate(one.model, cache, precision="fp16")
        assert fast.report().origin == "cache"
        for rows in (1, 7, 128, 200):
            fast.predict(one.rows[:rows], verbose=0)
            fast.predict(one.rows[:rows], verbose=0)
        used = cuda.free_memory(0)[0]
        fast.close()
        gc.collect()
        with pytest.raises(RuntimeError, match="closed"):
            fast.predict(one.rows[:1], verbose=0)
        return used

    use_and_close()  # what CUDA keeps for itself is taken now
    before = cuda.free_memory(0)[0]
    used = [use_and_close() for _ in range(5)]
    after = cuda.free_memory(0)[0]
    note("memory_mib", "cnn fp16", {"in_use": (before - min(used)) >> 20, "left_after_close": (before - after) / MIB})
    assert before - after < 64 * MIB
    one.assert_right(0, 300)
