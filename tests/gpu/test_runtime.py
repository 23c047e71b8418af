"""Data on the GPU, many batches at once, futures, memory: on a real GPU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt import cuda
from keras_trt.runtime import SLOTS
from keras_trt.runtime.plan import BatchPlan
from keras_trt.runtime.slots import AHEAD, AT_ONCE, ONE_THREADS
from keras_trt.runtime.steady import Steady
from keras_trt.specs import Cost, Measured

from ..runtime.helpers import in_threads
from ..runtime.joined import noted
from . import models

pytestmark = pytest.mark.gpu


class OnGpu:
    """An array on the GPU as CuPy or PyTorch show theirs: read by cuda-core through `__cuda_array_interface__`."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._memory, self._stream = cuda.DeviceMemory(array.nbytes), cuda.Stream()
        self._pinned = cuda.PinnedMemory(array.nbytes)
        self._pinned.array[: array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        # Not waited for: whoever reads it must.
        cuda.copy_to_device(self._memory, self._pinned, array.nbytes, self._stream)
        self.shape, self.dtype = array.shape, array.dtype

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._memory.address, False),
            "strides": None,
            "stream": self._stream.address,
            "version": 3,
        }

    def close(self) -> None:
        for one in (self._stream, self._memory, self._pinned):
            one.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    model = models.cnn()
    options: dict[str, Any] = {"backend": "tensorrt", "optimization_level": 0, "precision": "fp32", "verbose": 0}
    cache: Path = tmp_path_factory.mktemp("engines") / "cache"
    with keras_trt.accelerate(model, cache=cache, batch_sizes=(1, 16, 32), fallback="raise", **options) as fast:
        rows = models.random_rows(model, 700, seed=5)
        yield fast, rows, np.asarray(model.predict(rows, verbose=0))


def assert_right(got: Any, wanted: Any) -> None:
    assert models.relative(wanted, np.roll(wanted, 1, axis=0)) > 1e-2
    assert models.relative(np.asarray(got), wanted) < 1e-4


def test_inputs_and_outputs_on_the_gpu(made: Any) -> None:
    fast, rows, wanted = made
    for start, count in ((0, 32), (32, 32), (64, 7), (71, 7), (100, 600), (0, 32)):
        given, out = OnGpu(rows[start : start + count]), OnGpu(np.full((count, *wanted.shape[1:]), np.nan, "float32"))
        assert_right(fast.predict_on_batch(given), wanted[start : start + count])
        assert fast.predict_on_batch(given, out=out) is out
        assert_right(cuda.DeviceArray(out), wanted[start : start + count])
        host = np.full((count, *wanted.shape[1:]), np.nan, "float32")
        fast.predict_on_batch(rows[start : start + count], out=host)
        assert_right(host, wanted[start : start + count])
        given.close()
        out.close()


def test_batches_are_pipelined(made: Any) -> None:
    fast, rows, wanted = made
    for _ in range(3):
        assert_right(fast.predict(rows, batch_size=32, verbose=0), wanted)
    (use,) = fast.memory()
    assert use.slots == SLOTS
    assert use.context_bytes > 0
    assert use.buffer_bytes >= rows[:32].nbytes


def test_rows_in_page_locked_memory_are_read_where_they_lie(made: Any) -> None:
    fast, rows, wanted = made
    memory = cuda.PinnedMemory(rows.nbytes)
    given = memory.array[: rows.nbytes].view(rows.dtype).reshape(rows.shape)
    given[...] = rows
    own = [slot._buffers[fast._session._names[0]].pinned.array for slot in fast._session._runner._pool._idle]
    for array in own:
        array[:] = 0xFF
    for _ in range(3):
        assert_right(fast.predict(given, batch_size=32, verbose=0), wanted)
    assert own
    assert all((array == 0xFF).all() for array in own)
    memory.close()


def test_large_rows_are_sent_ahead(tmp_path: Path) -> None:
    model = models.cnn(96)
    rows = models.random_rows(model, 500, seed=9)
    assert rows[:32].nbytes >= AHEAD
    wanted = np.asarray(model.predict(rows, verbose=0))
    options: dict[str, Any] = {"backend": "tensorrt", "optimization_level": 0, "precision": "fp32", "verbose": 0}
    for _ in range(2):  # built, and from the cache, which keeps what was measured
        with keras_trt.accelerate(model, cache=tmp_path, batch_sizes=(1, 32, 32), fallback="raise", **options) as fast:
            measured = fast._session.measured  # type: ignore[union-attr]
            for start in (0, 32, 64, 0):  # single batches have another graph
                assert_right(fast.predict(rows[start:], batch_size=32, verbose=0), wanted[start:])
                assert_right(fast.predict_on_batch(rows[start : start + 32]), wanted[start : start + 32])
            assert AT_ONCE < rows[:8].nbytes <= ONE_THREADS  # such rows CUDA copies from where they lie
            for start in range(0, 400, 8):
                assert_right(fast.predict_on_batch(rows[start : start + 8]), wanted[start : start + 8])
            out = OnGpu(np.full(wanted.shape, np.nan, "float32"))
            fast.predict_on_batch(rows, out=out)
            assert_right(cuda.DeviceArray(out), wanted)
            out.close()
            assert Measured.from_json(measured.to_json()) == measured


def test_a_call_of_one_large_batch_is_sent_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While others are still copied: one that is sent too soon would have rows of the call before."""
    model = models.cnn(96)
    rows = models.random_rows(model, 600, seed=10)
    wanted = np.asarray(model.predict(rows, verbose=0))
    copy, starts = cuda.copy_to_device, list[int]()

    def noted_copy(*arguments: Any, start: int = 0) -> None:
        starts.append(start)
        copy(*arguments, start=start)

    monkeypatch.setattr(cuda, "copy_to_device", noted_copy)
    options: dict[str, Any] = {"backend": "tensorrt", "optimization_level": 0, "precision": "fp32", "verbose": 0}
    with keras_trt.accelerate(model, cache=tmp_path, batch_sizes=(1, 128, 128), fallback="raise", **options) as fast:
        in_pieces = 0
        for first in range(0, 450, 9):
            for count in (128, 101):
                starts.clear()
                assert_right(fast.predict_on_batch(rows[first : first + count]), wanted[first : first + count])
                in_pieces += count == 128 and any(starts)
    assert in_pieces > 25  # of 50; of some, all may be there before the first is looked for


def test_calls_like_the_one_before(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, rows, wanted = made
    run, taken = Steady.run, list[bool]()

    def watched(steady: Steady, inputs: Any) -> Any:
        outputs = run(steady, inputs)
        taken.append(outputs is not None)
        return outputs

    monkeypatch.setattr(Steady, "run", watched)
    # By measured costs, which tests beside it disturb, two rows may be better run one after the other.
    monkeypatch.setattr(fast._session, "_plan", BatchPlan(1, 32))
    for count in (2, 8, 2, 32):
        for start in range(0, 640, 32):
            assert_right(fast.predict_on_batch(rows[start : start + count]), wanted[start : start + count])
    assert all(taken)
    assert len(taken) == 4 * 18  # all but the first two of each


def test_costs_are_measured_and_kept(made: Any) -> None:
    fast, _, _ = made
    costs = fast._session.measured.costs
    assert set(costs) == {1, 8, 32}
    assert all(cost.further > 0 and 0 < cost.alone < 1 for cost in costs.values())


def test_futures(made: Any) -> None:
    fast, rows, wanted = made
    starts = np.random.default_rng(0).integers(0, 650, 200)
    futures = [(start, fast.submit(rows[start : start + 1 + start % 40])) for start in starts]
    for start, future in futures:
        answer = future.result()
        assert models.relative(answer, wanted[start : start + len(answer)]) < 1e-4


def test_calls_of_many_threads_are_one_batch(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, rows, wanted = made
    # As of a model whose calls are long, and gain by it: those of this one are short, and take turns.
    costs = {size: Cost(1e-3 + 1e-5 * size, 1e-3 + 1e-5 * size) for size in (1, 8, 32)}
    monkeypatch.setattr(fast._session, "_plan", BatchPlan(1, 32, costs))
    ran = noted(fast._session, monkeypatch)

    def work(thread: int) -> None:
        for call in range(50):
            start = (37 * thread + call) % 690
            count = 1 + call % 3
            got = fast.predict_on_batch(rows[start : start + count])
            assert models.relative(got, wanted[start : start + count]) < 1e-4

    assert min(models.relative(wanted, np.roll(wanted, by, axis=0)) for by in range(1, 16)) > 1e-2
    in_threads([partial(work, thread) for thread in range(16)], 100)
    assert max(batch.stop for batch in ran) > 3


@pytest.mark.parametrize("devices", [[0, 1], [1, 0], [1]])
def test_several_gpus(devices: list[int], tmp_path: Path) -> None:
    if cuda.device_count() < 2:
        pytest.skip("one GPU")
    model = models.cnn()
    options: dict[str, Any] = {"backend": "tensorrt", "optimization_level": 0, "precision": "fp32", "verbose": 0}
    rows = models.random_rows(model, 3000, seed=6)
    wanted = np.asarray(model.predict(rows, verbose=0))
    with keras_trt.accelerate(
        model, device=devices, cache=tmp_path, batch_sizes=(1, 16, 32), fallback="raise", **options
    ) as fast:
        for _ in range(3):
            assert_right(fast.predict(rows, batch_size=32, verbose=0), wanted)
        futures = [(start, fast.submit(rows[start : start + 33])) for start in range(0, 2900, 29)]
        for start, future in futures:
            assert models.relative(future.result(), wanted[start : start + 33]) < 1e-4
        used = fast.memory()
        assert [use.device for use in used] == [f"cuda:{device}" for device in devices]
        assert all(use.slots > 1 and use.buffer_bytes > 0 for use in used)


# Outputs whose shape depends on the data.


def assert_same(got: Any, wanted: Any) -> None:
    assert got.keys() == wanted.keys()
    for name, one in wanted.items():
        assert (got[name].shape, got[name].dtype) == (one.shape, one.dtype), name
        np.testing.assert_allclose(got[name], one, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", ["some_rows", "boxes"])
def test_shapes_that_depend_on_the_data(name: str, tmp_path: Path) -> None:
    model = getattr(models, name)()
    options: dict[str, Any] = {"backend": "tensorrt", "optimization_level": 0, "precision": "fp32", "verbose": 0}
    shapes = set()
    for origin in ("built", "cache"):
        with keras_trt.accelerate(
            model, cache=tmp_path / "cache", batch_sizes=(1, 16, 32), fallback="raise", **options
        ) as fast:
            assert (fast.backend, fast.report().origin) == ("tensorrt", origin)
            assert not fast.report().rows_independent
            for seed, rows in enumerate((1, 7, 32, 1, 32, 5, 32)):
                x = models.random_rows(model, rows, seed)
                wanted = model.predict_on_batch(x)
                shapes |= {(one, wanted[one].shape) for one in wanted}
                assert_same(fast.predict_on_batch(x), wanted)
                given = OnGpu(x)
                assert_same(fast.predict_on_batch(given), wanted)
                given.close()
            (used,) = fast.memory()
            # Nothing is above 0, so nothing passes.
            x = np.zeros_like(x)
            assert 0 in {len(one) for one in model.predict_on_batch(x).values()}
            assert_same(fast.predict_on_batch(x), model.predict_on_batch(x))
            x = np.concatenate([models.random_rows(model, 40), x, models.random_rows(model, 25, 1)])
            for size in (7, 32):
                wanted = model.predict(x, batch_size=size, verbose=0)
                assert_same(fast.predict(x, batch_size=size, verbose=0), wanted)
            assert not any(any(slot._graphs.values()) for slot in fast._session._runner._pool._idle)
            assert fast.memory()[0].buffer_bytes >= used.buffer_bytes > 0
    assert len(shapes) > 6


def test_rows_that_random_ones_do_not_show_to_depend() -> None:
    import keras
    import tensorflow as tf

    class Near(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return tf.boolean_mask(2 * x, x[:, 0] < 50.0)

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    inputs = keras.Input((20,))
    model = keras.Model(inputs, Near()(inputs))
    with keras_trt.accelerate(
        model, backend="tensorrt", optimization_level=0, precision="fp32", verbose=0, cache=None, fallback="raise"
    ) as fast:
        x = models.random_rows(model, 300)
        x[::7] = 99
        for _ in range(2):
            np.testing.assert_allclose(fast.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5)
