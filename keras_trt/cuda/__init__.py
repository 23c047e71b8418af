"""CUDA, and nothing else of keras_trt touches it: devices and streams, device and pinned memory, graphs.

Built on the runtime API of cuda-python's `cuda.bindings`, whose names used here are the same in 12.9 and 13.
"""

from __future__ import annotations

from .graph import Graph, capture
from .memory import DeviceMemory, PinnedMemory, copy_to_device, copy_to_host
from .runtime import DeviceInfo, Stream, current_device, device_count, device_info, free_memory, wait_for_default_stream

__all__ = [
    "DeviceInfo",
    "DeviceMemory",
    "Graph",
    "PinnedMemory",
    "Stream",
    "capture",
    "copy_to_device",
    "copy_to_host",
    "current_device",
    "device_count",
    "device_info",
    "free_memory",
    "wait_for_default_stream",
]
