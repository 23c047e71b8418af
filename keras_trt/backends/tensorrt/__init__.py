"""TensorRT 8.6, 10, 11 and TensorRT-RTX: which one (`flavor`), typed networks (`types`), plans, engines."""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from ... import cuda
from ...errors import BuildError, EngineLoadError, PlanError
from ...options import Precision
from .. import memory
from ..base import Array, BuildSpec, EngineLayer, Finding, Report, Timings
from .builder import PlanBuilder
from .engine import TensorRTEngine
from .flavor import FlavorName, flavor
from .layers import timed_layers
from .refit import refitted

__all__ = ["TensorRTBackend"]

_logger = logging.getLogger("keras_trt")


class TensorRTBackend:
    """See `Backend`.

    Args:
        name: `"tensorrt"` or `"tensorrt_rtx"`.
        devices: indices of the GPUs that run it; the first builds.

    Raises:
        MissingDependencyError: if TensorRT or cuda-python is not installed.
        EngineLoadError: if there is no such GPU, or TensorRT does not support it.
    """

    default_precision: Precision = PlanBuilder.default_precision
    refit_costs = True

    def __init__(self, name: FlavorName, devices: Sequence[int]) -> None:
        self.name = name
        self._flavor = flavor(name)
        self.title = self._flavor.title
        count = cuda.device_count()
        if max(devices) >= count:
            hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
            raise EngineLoadError(
                f"{self.title} needs a GPU, and CUDA shows {count or 'none'}. Received: device={max(devices)}"
                f"{'' if hidden is None else f', CUDA_VISIBLE_DEVICES={hidden!r}'}. "
                "Check `nvidia-smi`, or use backend='onnxruntime'."
            )
        self._devices = list(devices)
        self._device = self._devices[0]  # this one builds
        self._info = cuda.device_info(self._device)
        self.device = f"cuda:{','.join(map(str, devices))}"
        self.device_name = self._info.name
        for other in self._devices[1:]:
            if (info := cuda.device_info(other)) != self._info:
                raise EngineLoadError(
                    f"Replicas of an engine need GPUs of one kind. Received: device={self._devices}, of which "
                    f"{self._device} is {self._info} and {other} is {info}."
                )
        capability = self._info.compute_capability
        lacking = {name for name, least in (("bf16", (8, 0)), ("fp8", (8, 9))) if capability < least}
        self.precisions: tuple[Precision, ...] = tuple(one for one in self._flavor.precisions if one not in lacking)
        trt = self._flavor.trt
        if hasattr(trt, "ComputeCapability"):
            # TensorRT-RTX lists the GPUs that it supports, and no data-centre GPU is among them.
            wanted = "SM{}{}".format(*self._info.compute_capability)
            if wanted not in trt.ComputeCapability.__members__:
                raise EngineLoadError(f"{self.title} does not support {self.device_name} ({wanted}).")
        self.beside_8_bits = self._flavor.beside_8_bits
        self._builder: PlanBuilder | None = None
        self._said = False  # what there is to say of its memory

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
            # The major version of its CUDA: within one, newer ones run what older ones do.
            "driver": info.driver // 1000,
        }

    def preflight(self, size_bytes: int) -> None:
        """Say in the log, once, where TensorFlow leaves too little memory on a GPU."""
        for device in self._devices:
            if not self._said and (why := memory.shortage(device, size_bytes, beside_tensorflow=True)):
                self._said = True
                _logger.warning(why)

    def supports(self, onnx: bytes) -> list[Finding]:
        """Return the nodes of a typed graph that the parser refuses."""
        with cuda.current_device(self._device):
            return self._plan_builder().supports(onnx)

    def build(
        self, onnx: bytes, spec: BuildSpec, timings: Timings | None = None, *, report: Report | None = None
    ) -> bytes:
        """Build a plan for this GPU.

        Raises:
            BuildError: with TensorRT's log.
        """
        with cuda.current_device(self._device):
            try:
                return self._plan_builder().build(onnx, spec, timings, for_this_gpu=True, report=report)
            except BuildError as error:
                if (why := memory.shortage(self._device, len(onnx))) is not None:
                    error.add_note(why)
                raise

    def profile(self, plan: bytes, feeds: Mapping[str, Array], calls: int) -> list[EngineLayer]:
        """Return the layers of an engine with the mean time of some calls.

        Raises:
            EngineLoadError: if the plan cannot be loaded, run or inspected.
        """
        loaded = self._load_on(self._device, plan)
        try:
            with cuda.current_device(self._device):
                return timed_layers(self._flavor, loaded, feeds, calls)
        finally:
            loaded.close()

    def refit(self, plan: bytes, onnx: bytes, names: Collection[str]) -> bytes:
        """Return a plan with other weights.

        Raises:
            BuildError: if TensorRT cannot change them all.
            PlanError: if the plan cannot be loaded.
        """
        with cuda.current_device(self._device):
            return refitted(self._flavor, plan, onnx, names)

    def load(self, plan: bytes) -> list[TensorRTEngine]:
        """Load a plan on each GPU.

        Raises:
            PlanError: if it is damaged, or of another TensorRT or GPU.
            EngineLoadError: if there is no memory for it, or it has inputs or outputs that are not supported.
        """
        with ExitStack() as undo:
            engines = []
            for device in self._devices:
                engines.append(self._load_on(device, plan))
                undo.callback(engines[-1].close)
            undo.pop_all()
        return engines

    def _load_on(self, device: int, plan: bytes) -> TensorRTEngine:
        with cuda.current_device(device):
            try:
                return TensorRTEngine(self._flavor, plan, device)
            except PlanError as error:
                why = memory.shortage(device, len(plan))
                if why is None:
                    raise
                # TensorRT says the same of a bad plan and of no room for a good one, which must stay in the cache.
                raise EngineLoadError(f"{error}\n{why}") from error

    def _plan_builder(self) -> PlanBuilder:
        # Made late: a warm start builds nothing, and a builder takes memory on the GPU.
        if self._builder is None:
            self._builder = PlanBuilder(self._flavor)
        return self._builder
