"""What an engine runs, and how long: TensorRT's profiler and inspector."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from ... import cuda
from ...errors import EngineLoadError
from ..base import Array, EngineLayer
from .engine import TensorRTEngine
from .flavor import Flavor
from .types import strings_of

_TYPE = re.compile(r"\b(FP32|FP16|BF16|FP8|INT8|Int8|INT32|Int32|INT64|Int64|Float|Half|BFloat16|Bool)\b")


def timed_layers(flavor: Flavor, loaded: TensorRTEngine, feeds: Mapping[str, Array], calls: int) -> list[EngineLayer]:
    """Return the layers of an engine with the mean time of some calls.

    Args:
        flavor: the TensorRT that has loaded the engine.
        loaded: the engine; its device must be current.
        feeds: one batch.
        calls: how many are measured, after one that is not.

    Raises:
        EngineLoadError: if the engine cannot be run or inspected.
    """
    described = described_layers(loaded.inspect())
    times: dict[str, float] = {}
    with ExitStack() as held:
        stream = cuda.Stream()
        held.callback(stream.close)
        one = loaded.create_context(stream.address)
        held.callback(one.close)
        used = {name: np.ascontiguousarray(feeds[name].astype(loaded.dtype(name))) for name in loaded.input_names}
        outputs = one.set_shapes({name: array.shape for name, array in used.items()})
        cuda.wait_for_default_stream()  # where TensorRT may have set the context up
        memory: dict[str, cuda.DeviceMemory] = {}
        pinned: dict[str, cuda.PinnedMemory] = {}
        for name, shape in (*((name, array.shape) for name, array in used.items()), *outputs.items()):
            memory[name] = cuda.DeviceMemory(0 if shape is None else math.prod(shape) * loaded.dtype(name).itemsize)
            held.callback(memory[name].close)
            if shape is None:
                one.set_allocator(name, memory[name].grow)
            else:
                one.set_address(name, memory[name].address)
        for name, array in used.items():
            pinned[name] = cuda.PinnedMemory(array.nbytes)
            held.callback(pinned[name].close)
            pinned[name].array[: array.nbytes] = array.reshape(-1).view(np.uint8)
        held.callback(stream.synchronize)  # also after an error: nothing may run when memory is freed
        for name, array in used.items():
            cuda.copy_to_device(memory[name], pinned[name], array.nbytes, stream)
        one.enqueue(stream.address)
        stream.synchronize()
        one.report_to(_make_profiler(flavor.trt, times))
        for _ in range(calls):
            one.enqueue(stream.address)
            stream.synchronize()
    if not times:
        raise EngineLoadError(f"{flavor.title} measured no layer.")
    return [
        EngineLayer(name, nodes, milliseconds * 1e3 / calls, types)
        for name, milliseconds in times.items()
        for nodes, types in (described.get(name, ((), ())),)
    ]


def _make_profiler(trt: Any, times: dict[str, float]) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, milliseconds: float) -> None:
            times[layer_name] = times.get(layer_name, 0.0) + milliseconds

    return Profiler()


def described_layers(report: str) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the ONNX nodes and the types of each layer in the inspector's JSON, by its name.

    Its keys differ between versions, and 8.6 writes raw control characters (TensorRT#2779).
    """
    found = {}
    for entry in json.loads(report, strict=False).get("Layers", []):
        if isinstance(entry, dict) and "Name" in entry:
            nodes = re.findall(r"\[ONNX Layer: ([^\]]+)\]", str(entry.get("Metadata", "")))
            # Without metadata the name is that of all nodes, joined.
            parts = nodes or [re.sub(r"^PWN\((.*)\)$", r"\1", part) for part in entry["Name"].split(" + ")]
            types = sorted({kind for text in strings_of(entry) for kind in _TYPE.findall(text)})
            found[entry["Name"]] = (tuple(parts), tuple(types))
    return found
