"""The one interface of all backends: a typed ONNX graph becomes a plan, a plan becomes an engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from ..options import Precision
from ..specs import OptimizationProfile

Array = np.ndarray[Any, np.dtype[Any]]
Report = Callable[[float], None]


@dataclass(frozen=True)
class BuildSpec:
    """Everything beside the graph that decides what is built.

    Attributes:
        precision: the precision of the typed graph; `"tf32"` and `"fp32"` differ only here.
        profile: the shapes to build for.
        optimization_level: TensorRT's builder optimization level, or `None` for its default.
        refittable: whether the engine's weights can be changed later.
    """

    precision: Precision
    profile: OptimizationProfile
    optimization_level: int | None = None
    refittable: bool = False


class Timings(Protocol):
    """What builds have measured of a GPU, shared by all builds with one TensorRT: bytes that only it can read."""

    def read(self) -> bytes:
        """Return what is stored; empty where nothing is."""

    def update(self, merge: Callable[[bytes], bytes]) -> None:
        """Store what `merge` makes of what is stored now. No other process stores meanwhile."""


@dataclass(frozen=True)
class Finding:
    """Something in a graph that a backend refuses.

    Attributes:
        node: name of the ONNX node, empty where the backend does not say it.
        operator: its operator.
        reason: what the backend says.
    """

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        return f"{self.operator} (node '{self.node}'): {self.reason}" if self.operator else self.reason


@dataclass(frozen=True)
class EngineLayer:
    """One of the pieces that an engine runs.

    Attributes:
        name: the engine's own name for it.
        nodes: names of the ONNX nodes that it does the work of, in their order; empty for what only moves data.
        microseconds: time of one run.
        types: the types that it reads and writes, as the engine calls them.
    """

    name: str
    nodes: tuple[str, ...]
    microseconds: float
    types: tuple[str, ...]


class Judge(Protocol):
    """Tells what of a graph can be built, without building it: a backend, or a parser alone.

    Attributes:
        title: name and version for people.
        default_precision: what `precision=None` means.
        precisions: the precisions that it can run.
        beside_8_bits: the precision of what is not quantized in an int8 or fp8 graph.
    """

    @property
    def title(self) -> str: ...
    @property
    def default_precision(self) -> Precision: ...
    @property
    def precisions(self) -> Sequence[Precision]: ...
    @property
    def beside_8_bits(self) -> Literal["fp16", "fp32"]: ...

    def supports(self, onnx: bytes) -> list[Finding]:
        """Return what it refuses in a typed graph; nothing is built.

        Raises:
            BuildError: if the graph cannot be read at all.
        """


class HostEngine(Protocol):
    """An engine that takes and gives numpy arrays. Safe to call from many threads."""

    @property
    def input_names(self) -> Sequence[str]: ...
    @property
    def output_names(self) -> Sequence[str]: ...

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs, in the order of `output_names`."""

    def close(self) -> None:
        """Free the engine."""


class DeviceContext(Protocol):
    """One thread of execution of a `DeviceEngine`, with its own shapes and addresses."""

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...] | None]:
        """Set the shapes of the inputs and return those of the outputs, `None` of one that depends on the data."""

    def set_address(self, name: str, address: int) -> None:
        """Set where an input or output lies in device memory."""

    def set_allocator(self, name: str, allocate: Callable[[int], int]) -> None:
        """Set what gives device memory to an output whose shape depends on the data: its address, for a size.

        It is called while an inference is put on a stream, and what it raises is raised there.
        """

    def enqueue(self, stream: int) -> dict[str, tuple[int, ...]]:
        """Put one inference on a CUDA stream, and return the shapes of the outputs that have an allocator."""

    def close(self) -> None:
        """Free the context."""


@runtime_checkable
class DeviceEngine(Protocol):
    """An engine that reads and writes device memory.

    Attributes:
        device: index of its GPU.
        plan_bytes: size of its plan.
        context_bytes: what each of its contexts takes on the GPU for activations.
    """

    @property
    def input_names(self) -> Sequence[str]: ...
    @property
    def output_names(self) -> Sequence[str]: ...
    @property
    def device(self) -> int: ...
    @property
    def plan_bytes(self) -> int: ...
    @property
    def context_bytes(self) -> int: ...

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the type of an input or output as the engine has it."""

    def create_context(self, stream: int) -> DeviceContext:
        """Return a new execution context, set up on a CUDA stream."""

    def serialize(self) -> bytes:
        """Return the engine as a plan."""

    def close(self) -> None:
        """Free the engine. All of its contexts must be closed."""


class Backend(Judge, Protocol):
    """Builds and loads engines. Making one checks that it can be used here.

    Attributes:
        name: the `backend=` that selects it.
        device: `"cpu"`, or as `"cuda:0"`, or as `"cuda:0,1"`.
        device_name: product name of the device.
        refit_costs: whether an engine that can be refitted is slower than one that cannot.
    """

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def device_name(self) -> str: ...
    @property
    def refit_costs(self) -> bool: ...

    def identity(self) -> dict[str, Any]:
        """Return all of this backend, system and device that an engine depends on, for the engine key."""

    def preflight(self, size_bytes: int) -> None:
        """Say in the log where there is too little memory to build or to load what is so large. Never an error."""

    def build(
        self, onnx: bytes, spec: BuildSpec, timings: Timings | None = None, *, report: Report | None = None
    ) -> bytes:
        """Build a plan.

        Args:
            onnx: the typed graph.
            spec: what to build for.
            timings: where what is measured is kept; a backend that measures nothing leaves it alone.
            report: called with the share that is done, from 0 to 1, where the builder says it.

        Raises:
            BuildError: with the builder's log.
        """

    def profile(self, plan: bytes, feeds: Mapping[str, Array], calls: int) -> list[EngineLayer]:
        """Return what an engine runs, in order, with the usual time of some calls.

        Args:
            plan: the engine; it is loaded once more.
            feeds: one batch.
            calls: how many are measured, after one that is not.

        Raises:
            EngineLoadError: if it cannot be used here.
        """

    def refit(self, plan: bytes, onnx: bytes, names: Collection[str]) -> bytes:
        """Return a plan with other weights.

        Args:
            plan: a plan that was built refittable.
            onnx: the typed graph that it was built of, with other values of some initializers.
            names: these initializers.

        Raises:
            BuildError: if the engine cannot take them; it is to be built anew then.
            EngineLoadError: if the plan cannot be loaded.
        """

    def load(self, plan: bytes) -> Sequence[HostEngine | DeviceEngine]:
        """Load a plan, on each device.

        Raises:
            EngineLoadError: if it cannot be used here.
        """
