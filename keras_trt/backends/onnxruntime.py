"""ONNX Runtime on the CPU: the engine where there is no GPU. Its plan is the typed ONNX graph itself."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .._require import require
from .._subgraphs import all_nodes
from ..errors import InputError, PlanError, UnsupportedOperatorError
from ..options import Precision
from .base import Array, BuildSpec, EngineLayer, Finding, Report, Timings


class OnnxRuntimeBackend:
    """See `Backend`.

    It has no TF32: CPUs compute float32 in full.
    """

    name = "onnxruntime"
    default_precision: Precision = "fp32"
    precisions: tuple[Precision, ...] = ("int8", "fp16", "fp32")
    beside_8_bits: Literal["fp16", "fp32"] = "fp32"
    device = "cpu"
    refit_costs = False

    def __init__(self) -> None:
        self._ort = require(
            "onnxruntime", package="onnxruntime", extra="tensorflow", purpose="The backend 'onnxruntime'"
        )
        self.title = f"ONNX Runtime {self._ort.__version__}"
        self.device_name = platform.processor() or platform.machine()

    def identity(self) -> dict[str, Any]:
        """Return what an engine depends on: a graph runs on any machine that has this ONNX Runtime."""
        return {"backend": self.name, "ONNX Runtime": self._ort.__version__}

    def preflight(self, size_bytes: int) -> None:
        """Say nothing: the memory is the system's."""

    def supports(self, onnx: bytes) -> list[Finding]:
        """Return what ONNX Runtime refuses in a graph."""
        try:
            self._session(onnx)
        except Exception as error:  # its exceptions share no base class
            return [Finding("", "", str(error))]
        return []

    def build(
        self,
        onnx: bytes,
        spec: BuildSpec,  # noqa: ARG002 (the graph says it all)
        timings: Timings | None = None,  # noqa: ARG002 (it measures nothing)
        *,
        report: Report | None = None,  # noqa: ARG002 (it takes no time)
    ) -> bytes:
        """Return the graph, once ONNX Runtime has taken it.

        Raises:
            UnsupportedOperatorError: if it does not.
        """
        if findings := self.supports(onnx):
            raise UnsupportedOperatorError(f"ONNX Runtime refused the graph: {findings[0].reason}")
        return onnx

    def refit(self, plan: bytes, onnx: bytes, names: Collection[str]) -> bytes:  # noqa: ARG002 (the graph says it all)
        """Return the new graph, once ONNX Runtime has taken it: a plan is the graph itself.

        Raises:
            UnsupportedOperatorError: if it does not.
        """
        if findings := self.supports(onnx):
            raise UnsupportedOperatorError(f"ONNX Runtime refused the graph: {findings[0].reason}")
        return onnx

    def load(self, plan: bytes) -> list[OnnxRuntimeEngine]:
        """Load a graph.

        Raises:
            PlanError: if ONNX Runtime does not take it.
        """
        try:
            return [OnnxRuntimeEngine(self._session(plan))]
        except Exception as error:  # its exceptions share no base class
            raise PlanError(f"ONNX Runtime could not load the graph: {error}") from error

    def profile(self, plan: bytes, feeds: Mapping[str, Array], calls: int) -> list[EngineLayer]:
        """Return what ONNX Runtime makes of a graph, by its own profiler."""
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            rewritten = Path(folder) / "rewritten.onnx"
            options = self._ort.SessionOptions()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            options.optimized_model_filepath = str(rewritten)
            session = self._session(plan, options)
            for _ in range(calls + 1):
                session.run(None, dict(feeds))
            events = json.loads(Path(session.end_profiling()).read_text())
            graph = onnx.load(rewritten).graph
        times: dict[str, list[float]] = {}
        types: dict[str, tuple[str, ...]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"].removesuffix("_kernel_time")
                times.setdefault(name, []).append(float(event["dur"]))
                shapes = (*event["args"].get("input_type_shape", ()), *event["args"].get("output_type_shape", ()))
                types[name] = tuple(sorted({kind for one in shapes for kind in one}))
        sources = sources_of(onnx.load_from_string(plan).graph, graph)
        return [
            EngineLayer(node.name, sources[node.name], float(np.median(times[node.name][-calls:])), types[node.name])
            for node in graph.node
            if node.name in times
        ]

    def _session(self, onnx: bytes, options: Any = None) -> Any:
        options = options or self._ort.SessionOptions()
        options.log_severity_level = 4  # what fails is raised; what it warns of (unused initializers) changes no result
        # Weights of 8 bits are multiplied in float32: otherwise it rounds what they are multiplied by to 8 bits, too.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        return self._ort.InferenceSession(
            onnx, options, providers=["CPUExecutionProvider"], disabled_optimizers=_ends_the_process(onnx)
        )


def _ends_the_process(graph: bytes) -> list[str]:
    """Return the optimizers that crash on a graph, and with them the process.

    ONNX Runtime 1.32's for weights in half does where a recurrent node leaves an input out, as one with a first state
    and without lengths does. Other graphs need it: without, they take up to four times as long.
    """
    recurrent = ("GRU", "LSTM", "RNN")
    if not any(name.encode() in graph for name in recurrent):  # as most, which take longer to read
        return []
    import onnx

    nodes = all_nodes([onnx.load_from_string(graph).graph])
    crashes = any(node.op_type in recurrent and "" in node.input for node in nodes)
    return ["FuseFp16InitializerToFp32NodeTransformer"] if crashes else []


_MOVES = ("Cast", "DequantizeLinear", "QuantizeLinear", "Reshape", "Transpose")


def sources_of(before: Any, after: Any) -> dict[str, tuple[str, ...]]:
    """Return, for each node of a rewritten graph, the nodes that it does the work of, what moves data last.

    ONNX Runtime makes the name of a tensor from that of the one that it stands for, and those of nodes in a layout of
    its own from what they gave before. A node's sources are those between the tensors that it stands between; it has
    none where these are one.
    """
    makers = {name: node for node in before.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in before.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    known = sorted({*makers, *(value.name for value in before.input)}, key=len, reverse=True)
    stands_for: dict[str, str | None] = {}

    def meant(name: str) -> str | None:
        if name not in stands_for:
            stands_for[name] = next((one for one in known if one and one in name), None)
        return stands_for[name]

    for node in after.node:
        given = node.name.removesuffix("_nchwc").removeprefix("InsertedPrecisionFreeCast_")
        if node.name.endswith("_nchwc") and given in makers:
            activation = [one.s.decode() for one in node.attribute if one.name == "activation"]
            for operator in (["Add"] if len(node.input) > 3 else []) + activation:  # what is fused behind it
                following = readers.get(given, [])
                if len(following) == 1 and following[0].op_type == operator:
                    given = following[0].output[0]
            stands_for[node.output[0]] = given
    kept = {meant(name) for node in after.node for name in node.output}
    place = {node.name: (node.op_type in _MOVES, i) for i, node in enumerate(before.node)}
    found = {}
    for node in after.node:
        reads = {meant(name) for name in node.input}
        inside: set[str] = set()
        waiting = [one for one in map(meant, node.output) if one in makers and one not in reads]
        while waiting:
            maker = makers[waiting.pop() or ""]
            if maker.name not in inside:
                inside.add(maker.name)
                waiting += [one for one in maker.input if one in makers and one not in reads and one not in kept]
        if not inside and node.name in place:  # between tensors of other names, but the same
            inside.add(node.name)
        found[node.name] = tuple(sorted(inside, key=place.__getitem__))
    return found


class OnnxRuntimeEngine:
    """See `HostEngine`."""

    def __init__(self, session: Any) -> None:
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

        self._session, self._refusal = session, InvalidArgument
        self.input_names = tuple(value.name for value in session.get_inputs())
        self.output_names = tuple(value.name for value in session.get_outputs())

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs, in the order of `output_names`.

        Raises:
            InputError: for numbers that the graph does not take, such as an index outside its table.
        """
        try:
            return [np.asarray(output) for output in self._session.run(None, dict(feeds))]
        except self._refusal as error:
            raise InputError(f"The engine does not take this batch. ONNX Runtime says: {error}") from error

    def close(self) -> None:
        """Free the session."""
        self._session = None
