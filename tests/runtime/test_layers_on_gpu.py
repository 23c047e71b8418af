"""The times of an engine's layers (over host memory: see `host_cuda`; the profiler is TensorRT-RTX's)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from keras_trt.backends.tensorrt.flavor import flavor
from keras_trt.backends.tensorrt.layers import timed_layers
from keras_trt.errors import CudaError

from .host_cuda import HostCuda
from .host_engine import HostEngineOnDevice
from .host_parts import Status
from .runners import feeds


class Inspected(HostEngineOnDevice):
    """An engine whose one layer takes 2 ms."""

    def inspect(self) -> str:
        return json.dumps({"Layers": [{"Name": "multiply", "Metadata": "[ONNX Layer: Mul]", "Inputs": "Float"}]})

    def create_context(self, stream: int) -> Any:
        context: Any = super().create_context(stream)
        infer = context._infer

        def report_to(profiler: Any) -> None:
            def reported(*arguments: Any) -> None:
                infer(*arguments)
                profiler.report_layer_time("multiply", 2.0)

            context._infer = reported

        context.report_to = report_to
        return context


def test_the_mean_time_of_a_layer(host_cuda: HostCuda) -> None:
    (layer,) = timed_layers(flavor("tensorrt_rtx"), Inspected(host_cuda), feeds(3), 4)  # type: ignore[arg-type]
    assert (layer.name, layer.nodes, layer.microseconds, layer.types) == ("multiply", ("Mul",), 2000.0, ("Float",))


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaHostAlloc", "cudaMemcpyAsync"])
@pytest.mark.parametrize("passed", range(2))
def test_nothing_is_left_after_an_error(host_cuda: HostCuda, function: str, passed: int) -> None:
    host_cuda.fail(function, *[Status.cudaSuccess] * passed, Status.cudaErrorMemoryAllocation)
    with pytest.raises(CudaError):
        timed_layers(flavor("tensorrt_rtx"), Inspected(host_cuda), feeds(3), 4)  # type: ignore[arg-type]
