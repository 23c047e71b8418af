from __future__ import annotations

from .host_cuda import host_cuda

__all__ = ["host_cuda"]
