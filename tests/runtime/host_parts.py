"""The types of the stand-in for the CUDA runtime (see `host_cuda`)."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Work = Callable[[], None]


class Status(enum.IntEnum):
    cudaSuccess = 0  # noqa: N815 (CUDA's names)
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815
    cudaErrorInvalidDevice = 101  # noqa: N815
    cudaErrorIllegalState = 401  # noqa: N815
    cudaErrorNotReady = 600  # noqa: N815
    cudaErrorIllegalAddress = 700  # noqa: N815
    cudaErrorStreamCaptureUnsupported = 900  # noqa: N815
    cudaErrorStreamCaptureInvalidated = 901  # noqa: N815


class Capture(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0  # noqa: N815
    cudaStreamCaptureModeThreadLocal = 1  # noqa: N815
    cudaStreamCaptureModeRelaxed = 2  # noqa: N815


class Copy(enum.IntEnum):
    cudaMemcpyHostToDevice = 1  # noqa: N815
    cudaMemcpyDeviceToHost = 2  # noqa: N815
    cudaMemcpyDefault = 4  # noqa: N815


class Kind(enum.IntEnum):
    cudaMemoryTypeUnregistered = 0  # noqa: N815
    cudaMemoryTypeHost = 1  # noqa: N815
    cudaMemoryTypeDevice = 2  # noqa: N815


@dataclass
class Attributes:
    type: Kind


@dataclass
class Memory:
    kind: str
    device: int
    size: int
    raw: Any
    freed: bool = False


@dataclass
class StreamHandle:
    address: int
    device: int
    pending: list[tuple[Work, Any]] = field(default_factory=list)
    captured: list[Work] | None = None
    mode: int = 0
    captured_by: int = 0
    invalid: bool = False
    destroyed: bool = False
    asked: int = 0  # how often whether it is idle
    busy: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class GraphHandle:
    work: list[Work]
    destroyed: bool = False


class IllegalAccessError(Exception):
    """Work touched memory that it must not touch."""
