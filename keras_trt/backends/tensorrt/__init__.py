"""TensorRT 8.6, 10, 11 and TensorRT-RTX: which one (`flavor`), typed networks (`types`), plans, engines."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

from ... import cuda
from ...errors import BuildError, EngineLoadError, PlanError
from ...options import Precision
from ..base import BuildSpec, Finding, Report
from .builder import PlanBuilder
from .engine import TensorRTEngine
from .flavor import FlavorName, flavor

__all__ = ["TensorRTBackend"]


class TensorRTBackend:
    """See `Backend`.

    Args:
        name: `"tensorrt"` or `"tensorrt_rtx"`.
        device: index of the GPU.

    Raises:
        MissingDependencyError: if TensorRT or cuda-python is not installed.
        EngineLoadError: if there is no such GPU, or TensorRT does not support it.
    """

    default_precision: Precision = PlanBuilder.default_precision
    precisions: tuple[Precision, ...] = PlanBuilder.precisions

    def __init__(self, name: FlavorName, device: int) -> None:
        self.name = name
        self._flavor = flavor(name)
        self.title = self._flavor.title
        count = cuda.device_count()
        if device >= count:
            hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
            raise EngineLoadError(
                f"{self.title} needs a GPU, and CUDA shows {count or 'none'}. Received: device={device}"
                f"{'' if hidden is None else f', CUDA_VISIBLE_DEVICES={hidden!r}'}. "
                "Check `nvidia-smi`, or use backend='onnxruntime'."
            )
        self._device = device
        self._info = cuda.device_info(device)
        self.device = f"cuda:{device}"
        self.device_name = self._info.name
        trt = self._flavor.trt
        if hasattr(trt, "ComputeCapability"):
            # TensorRT-RTX lists the GPUs that it supports, and no data-centre GPU is among them.
            wanted = "SM{}{}".format(*self._info.compute_capability)
            if wanted not in trt.ComputeCapability.__members__:
                raise EngineLoadError(f"{self.title} does not support {self.device_name} ({wanted}).")
        self._builder: PlanBuilder | None = None

    def identity(self) -> dict[str, Any]:
        """Return all that a plan depends on: it runs on one kind of GPU, system and TensorRT alone."""
        info = self._info
        return {
            "backend": self.name,
            "TensorRT" if self.name == "tensorrt" else "TensorRT-RTX": str(self._flavor.trt.__version__),
            "system": f"{sys.platform}-{platform.machine()}",
            "gpu": info.name,
            "compute_capability": list(info.compute_capability),
            "multiprocessors": info.multiprocessors,
            "memory_bytes": info.memory_bytes,
            "driver": info.driver,
        }

    def supports(self, onnx: bytes) -> list[Finding]:
        """Return the nodes of a typed graph that the parser refuses."""
        with cuda.current_device(self._device):
            return self._plan_builder().supports(onnx)

    def build(self, onnx: bytes, spec: BuildSpec, *, report: Report | None = None) -> bytes:
        """Build a plan for this GPU.

        Raises:
            BuildError: with TensorRT's log.
        """
        with cuda.current_device(self._device):
            try:
                return self._plan_builder().build(onnx, spec, for_this_gpu=True, report=report)
            except BuildError as error:
                if (hint := self._memory_hint()) is not None:
                    error.add_note(hint)
                raise

    def load(self, plan: bytes) -> TensorRTEngine:
        """Load a plan.

        Raises:
            PlanError: if it is damaged, or of another TensorRT or GPU.
            EngineLoadError: if there is no memory for it, or it has inputs or outputs that are not supported.
        """
        with cuda.current_device(self._device):
            try:
                return TensorRTEngine(self._flavor, plan, self._device)
            except PlanError as error:
                hint = self._memory_hint()
                if hint is None:
                    raise
                # TensorRT says the same of a bad plan and of no room for a good one, which must stay in the cache.
                raise EngineLoadError(f"{error}\n{hint}") from error

    def _memory_hint(self) -> str | None:
        """Return what to do where a failure may come from a GPU that others have filled, or `None`."""
        free, total = cuda.free_memory(self._device)
        if free >= total // 10:
            return None
        return (
            f"The GPU has {free >> 20} of {total >> 20} MiB free. If TensorFlow holds the rest, let it take only "
            "what it needs: tf.config.experimental.set_memory_growth(gpu, True) before its first use."
        )

    def _plan_builder(self) -> PlanBuilder:
        # Made late: a warm start builds nothing, and a builder takes memory on the GPU.
        if self._builder is None:
            self._builder = PlanBuilder(self._flavor)
        return self._builder
