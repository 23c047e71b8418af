"""Plan → engine → execution contexts. Needs a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..._interrupts import deferred
from ...errors import EngineLoadError, InputError, KerasTRTError, PlanError
from .flavor import Flavor
from .outputs import output_allocator
from .types import numpy_dtype


class TensorRTEngine:
    """See `DeviceEngine`.

    Args:
        flavor: the TensorRT that built the plan.
        plan: the plan. It is executable code: it must come from the cache, which has checked it.
        device: the GPU; it must be current.

    Raises:
        PlanError: if the plan cannot be loaded.
        EngineLoadError: if the engine has inputs or outputs that are not supported.
    """

    def __init__(self, flavor: Flavor, plan: bytes, device: int) -> None:
        self._flavor = flavor
        self.device = device
        self.plan_bytes = len(plan)
        trt = flavor.trt
        with _translated(flavor, "could not load the plan", PlanError):
            # The runtime must outlive the engine.
            self._runtime = runtime = trt.Runtime(flavor.logger)
            engine = runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise RuntimeError("no engine")
        self._engine = engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.input_names = tuple(inputs)
        self.output_names = tuple(name for name in names if name not in inputs)
        self._dtypes = {name: numpy_dtype(engine.get_tensor_dtype(name)) for name in names}
        for name in names:
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise EngineLoadError(f"'{name}' of the engine lies in host memory: shapes as data are not supported.")

    @property
    def context_bytes(self) -> int:
        """What each context takes on the GPU for activations, of the largest batch."""
        engine = self._engine
        if hasattr(engine, "device_memory_size_v2"):  # from 10.1 on; 11 has no other
            return int(engine.device_memory_size_v2)
        if hasattr(engine, "device_memory_size"):
            return int(engine.device_memory_size)
        raise EngineLoadError(f"{self._flavor.title} does not tell what a context takes.")

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the type of an input or output as the engine has it, which need not be the graph's."""
        return self._dtypes[name]

    def create_context(self, stream: int) -> TensorRTContext:
        """Return a new execution context.

        Args:
            stream: the CUDA stream that its profile is set on.

        Raises:
            EngineLoadError: if there is no memory for it.
        """
        engine, trt = self._engine, self._flavor.trt
        with _translated(self._flavor, "made no execution context, mostly for want of GPU memory"):
            context = engine.create_execution_context()
            if context is None:
                raise RuntimeError("no context")
            # Only the first context of an engine has a profile from the start.
            if context.active_optimization_profile < 0 and not context.set_optimization_profile_async(0, stream):
                raise RuntimeError("it refused the profile for a further context")
            context.nvtx_verbosity = trt.ProfilingVerbosity.NONE  # the engine's own is detailed, and costs time
        return TensorRTContext(self._flavor, context, self.output_names)

    def inspect(self) -> str:
        """Return what the engine's inspector says of its layers, as JSON.

        Raises:
            EngineLoadError: if it says nothing.
        """
        engine, trt = self._engine, self._flavor.trt
        with _translated(self._flavor, "could not inspect the engine"):
            inspector = engine.create_engine_inspector()
            if inspector is None:
                raise RuntimeError("no inspector")
            return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def serialize(self) -> bytes:
        """Return the engine as a plan.

        Raises:
            EngineLoadError: if TensorRT does not give one.
        """
        engine = self._engine
        with _translated(self._flavor, "could not write the engine as a plan"):
            plan = engine.serialize()
            if plan is None:
                raise RuntimeError("no plan")
            return bytes(plan)

    def close(self) -> None:
        """Free the engine. All of its contexts must be closed."""
        self._engine = self._runtime = None


class TensorRTContext:
    """See `DeviceContext`."""

    def __init__(self, flavor: Flavor, context: Any, output_names: tuple[str, ...]) -> None:
        self._flavor = flavor
        self._context = context
        self._output_names = output_names
        self._allocators: dict[str, Any] = {}  # TensorRT keeps no reference to them

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...] | None]:
        """Set the shapes of the inputs and return those of the outputs, `None` of one that depends on the data.

        Raises:
            InputError: if a shape lies outside the engine's profile.
            EngineLoadError: if TensorRT misses something else.
        """
        context = self._context
        with _translated(self._flavor, "could not work out the outputs' shapes") as log:
            for name, shape in shapes.items():
                if not context.set_input_shape(name, shape):
                    raise InputError(
                        f"The engine was not built for the shape {shape} of input '{name}': {'; '.join(log)}",
                        input_name=name,
                        received=shape,
                    )
            if missing := context.infer_shapes():
                raise RuntimeError(f"it misses {missing}")
        outputs = {name: tuple(context.get_tensor_shape(name)) for name in self._output_names}
        return {name: None if any(axis < 0 for axis in shape) else shape for name, shape in outputs.items()}

    def set_address(self, name: str, address: int) -> None:
        """Set where an input or output lies in device memory. TensorRT keeps no reference: it must stay there.

        Raises:
            EngineLoadError: if TensorRT refuses the address.
        """
        context = self._context
        with _translated(self._flavor, f"refused the address of '{name}'"):
            if not context.set_tensor_address(name, address):
                raise RuntimeError("false")

    def set_allocator(self, name: str, allocate: Callable[[int], int]) -> None:
        """Set what gives device memory to an output whose shape depends on the data: its address, for a size.

        Raises:
            EngineLoadError: if TensorRT refuses it.
        """
        context, allocator = self._context, output_allocator(self._flavor.trt, allocate)
        with _translated(self._flavor, f"refused an allocator for '{name}'"):
            if not context.set_output_allocator(name, allocator):
                raise RuntimeError("false")
        self._allocators[name] = allocator

    def report_to(self, profiler: Any) -> None:
        """Let a `trt.IProfiler` be told the time of each layer at each inference, which makes them slow."""
        context = self._context
        context.profiler = profiler

    def enqueue(self, stream: int) -> dict[str, tuple[int, ...]]:
        """Put one inference on a CUDA stream, and return the shapes of the outputs that have an allocator.

        Raises:
            EngineLoadError: if TensorRT does not take it.
            Exception: what an allocator raised.
        """
        if self._allocators:
            return self._enqueue_and_allocate(stream)
        context = self._context
        with _translated(self._flavor, "could not start the inference"):
            if not context.execute_async_v3(stream):
                raise RuntimeError("false")
        return {}

    def _enqueue_and_allocate(self, stream: int) -> dict[str, tuple[int, ...]]:
        context = self._context
        for allocator in self._allocators.values():
            allocator.begin()
        # TensorRT 8.6 ends the process if a callback raises, as it would after Ctrl-C.
        with _translated(self._flavor, "could not start the inference"), deferred():
            done = context.execute_async_v3(stream)
            for allocator in self._allocators.values():
                if allocator.failure is not None:
                    raise allocator.failure
            if not done:
                raise RuntimeError("false")
            if untold := [name for name, allocator in self._allocators.items() if allocator.shape is None]:
                raise RuntimeError(f"it does not tell the shapes of {untold}")
        return {name: allocator.shape for name, allocator in self._allocators.items()}

    def close(self) -> None:
        """Free the context. It must be idle."""
        self._context = None
        self._allocators = {}


@contextmanager
def _translated(flavor: Flavor, what: str, kind: type[EngineLoadError] = EngineLoadError) -> Iterator[list[str]]:
    """Make an error of ours with TensorRT's log of whatever pybind makes of its failures."""
    with flavor.log() as log:
        try:
            yield log
        except KerasTRTError:
            raise
        except (TypeError, RuntimeError, ValueError, MemoryError) as error:
            raise kind(f"{flavor.title} {what}: {error}.", log="\n".join(log)) from error
