"""While a model is exported Python's garbage collector rests; then it is as it was."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

import keras_trt
from keras_trt._garbage import collector_at_rest


@pytest.fixture(params=[True, False])
def was_on(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if before else gc.disable)()


def test_it_is_as_it_was(was_on: bool) -> None:
    @collector_at_rest()
    def fails() -> None:
        with collector_at_rest():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert gc.isenabled() == was_on


def test_blocks_of_two_threads_that_end_in_any_order(was_on: bool) -> None:
    first, second = threading.Event(), threading.Event()

    def work() -> None:
        with collector_at_rest():
            first.set()
            assert second.wait(20)

    thread = threading.Thread(target=work)
    with collector_at_rest():
        thread.start()
        assert first.wait(20)
    assert not gc.isenabled()
    second.set()
    thread.join(20)
    assert gc.isenabled() == was_on


@pytest.mark.usefixtures("was_on")
@pytest.mark.parametrize("way", [keras_trt.export_onnx, keras_trt.doctor])
def test_a_model_is_traced_without_it(way: object, tmp_path: object) -> None:
    import keras

    seen: list[bool] = []

    class Looks(keras.layers.Layer):
        def call(self, x: object) -> object:
            seen.append(gc.isenabled())
            return x * 2  # type: ignore[operator]

    model = keras.Sequential([keras.Input((3,)), Looks()])
    del seen[:]
    keras_trt.export_onnx(model, f"{tmp_path}/model.onnx") if way is keras_trt.export_onnx else keras_trt.doctor(model)
    assert False in seen
