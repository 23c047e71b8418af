"""CUDA, which nothing else of keras_trt touches: devices, streams, memory, graphs, arrays that others hold.

Built on the runtime API of cuda-python's `cuda.bindings`, whose names used here are the same in 12.9 and 13.
"""

from __future__ import annotations

from .arrays import DeviceArray, is_on_gpu, wait_for_owner
from .graph import Graph, capture
from .host import HostArray, in_pinned_memory
from .memory import DeviceMemory, PinnedMemory, copy_to_device, copy_to_host
from .runtime import (
    DeviceInfo,
    Stream,
    current_device,
    device_count,
    device_info,
    forget_error,
    free_memory,
    wait_for_default_stream,
)

__all__ = [
    "DeviceArray",
    "DeviceInfo",
    "DeviceMemory",
    "Graph",
    "HostArray",
    "PinnedMemory",
    "Stream",
    "capture",
    "copy_to_device",
    "copy_to_host",
    "current_device",
    "device_count",
    "device_info",
    "forget_error",
    "free_memory",
    "in_pinned_memory",
    "is_on_gpu",
    "wait_for_default_stream",
    "wait_for_owner",
]
