"""What is said before a build or a load where TensorFlow has taken the GPU's memory; figures are given."""

from __future__ import annotations

import logging
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from keras_trt import cuda
from keras_trt.backends import memory
from keras_trt.backends.onnxruntime import OnnxRuntimeBackend
from keras_trt.backends.tensorrt import TensorRTBackend
from keras_trt.building.provision import provision
from keras_trt.options import BuildOptions

from ..models import CASES

MIB = 1 << 20


def tensorflow(
    *, visible: list[int], parts: dict[int, int], current: dict[str, int], initialized: bool = True
) -> dict[str, Any]:
    """TensorFlow's modules where there are GPUs: some are hidden from it, some are several logical ones."""
    import tensorflow as real

    gpus = [SimpleNamespace(name=f"/physical_device:GPU:{number}") for number in visible]

    def asked() -> None:
        assert initialized, "this would initialize TensorFlow"

    def logical(kind: str) -> list[Any]:
        asked()
        assert kind == "GPU"
        return [SimpleNamespace(name=f"/device:GPU:{i}") for i in range(sum(parts.get(one, 1) for one in visible))]

    def information(name: str) -> dict[str, int]:
        asked()
        if name not in current:
            raise ValueError("Allocator stats not available")
        return {"current": current[name], "peak": 99 * current[name]}

    config = SimpleNamespace(
        get_visible_devices=lambda _: gpus,
        get_logical_device_configuration=lambda gpu: [None] * parts.get(int(gpu.name[-1]), 0) or None,
        list_logical_devices=logical,
        experimental=SimpleNamespace(get_memory_info=information),
    )
    eager = SimpleNamespace(context_safe=lambda: SimpleNamespace(_initialized=initialized))
    return {"tensorflow": SimpleNamespace(config=config, errors=real.errors), "tensorflow.python.eager.context": eager}


def put(monkeypatch: pytest.MonkeyPatch, modules: dict[str, Any]) -> None:
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def free(monkeypatch: pytest.MonkeyPatch, mebibytes: int) -> None:
    monkeypatch.setattr(cuda, "free_memory", lambda _: (mebibytes * MIB, 16384 * MIB))


def test_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, tensorflow(visible=[0], parts={}, current={"GPU:0": 1200 * MIB}))
    free(monkeypatch, 900)
    said = memory.shortage(0, 100 * MIB)
    assert said is not None
    for part in (
        "GPU 0 has 900 of 16384 MiB free", "2148 MiB may be needed", "1200 MiB", "set_memory_growth",
        "TF_FORCE_GPU_ALLOW_GROWTH=true", "LogicalDeviceConfiguration(memory_limit=",
    ):  # fmt: skip
        assert part in said
    assert memory.shortage(0, 100 * MIB, beside_tensorflow=True) == said


def test_enough_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 2148)
    assert memory.shortage(0, 100 * MIB) is None
    assert memory.shortage(0, 101 * MIB) is not None


def test_others_have_taken_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow is here and has no GPU."""
    free(monkeypatch, 900)
    assert memory.shortage(0, 0, beside_tensorflow=True) is None
    said = memory.shortage(0, 0)
    assert said is not None
    assert "does not use it" in said
    assert "set_memory_growth" not in said


def test_what_tensorflow_says_is_found_by_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, tensorflow(visible=[1, 2], parts={1: 2}, current={"GPU:0": 1, "GPU:1": 10, "GPU:2": 100}))
    assert [memory.tensorflow_uses(device) for device in range(4)] == [None, 11, 100, None]


def test_an_allocator_that_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, tensorflow(visible=[0], parts={}, current={}))
    assert memory.tensorflow_uses(0) is None


def test_a_tensorflow_that_has_done_nothing_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, tensorflow(visible=[0], parts={}, current={"GPU:0": 5}, initialized=False))
    assert memory.tensorflow_uses(0) is None


def test_nothing_is_imported_or_initialized() -> None:
    code = """
import sys
from keras_trt.backends import memory
assert memory.tensorflow_uses(0) is None
assert "tensorflow" not in sys.modules
import tensorflow as tf
from tensorflow.python.eager import context
for _ in range(2):
    assert memory.tensorflow_uses(0) is None
    assert not context.context()._initialized
    tf.config.list_physical_devices()
tf.constant(1)
assert context.context()._initialized  # else this name says nothing any more
assert memory.tensorflow_uses(0) is None
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_it_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    put(monkeypatch, tensorflow(visible=[0, 1], parts={}, current={"GPU:0": 5, "GPU:1": 5}))
    free(monkeypatch, 900)
    backend = object.__new__(TensorRTBackend)  # one is only made where there is a GPU
    backend._devices, backend._said = [0, 1], False
    with caplog.at_level(logging.INFO, "keras_trt"):
        for _ in range(2):
            backend.preflight(MIB)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "GPU 0" in caplog.text


def test_it_comes_before_the_build_and_the_load() -> None:
    done: list[tuple[str, int]] = []

    class Watched(OnnxRuntimeBackend):
        def preflight(self, size_bytes: int) -> None:
            done.append(("preflight", size_bytes))

        def build(self, onnx: bytes, *rest: Any, **keywords: Any) -> bytes:
            done.append(("build", len(onnx)))
            return super().build(onnx, *rest, **keywords)

        def load(self, plan: bytes) -> Any:
            done.append(("load", len(plan)))
            return super().load(plan)

    ready = provision(CASES["sequential"].build(), Watched(), BuildOptions(cache=None, verbose=0), None)
    ready.session.close()
    assert [what for what, _ in done] == ["preflight", "build", "preflight", "load"]
    assert len({size for _, size in done}) == 1
