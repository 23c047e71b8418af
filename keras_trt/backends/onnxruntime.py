"""ONNX Runtime on the CPU: the engine where there is no GPU. Its plan is the typed ONNX graph itself."""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .._require import require
from ..errors import PlanError, UnsupportedOperatorError
from ..options import Precision
from .base import Array, BuildSpec, EngineLayer, Finding, Report, Timings

_KERNEL = "_kernel_time"  # ends the names of what a profile says of nodes


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

    def layers(self, onnx: bytes, feeds: Mapping[str, Array], runs: int = 10) -> list[EngineLayer]:
        """Return the layers that a graph becomes, with the median time that each takes.

        Args:
            onnx: the graph.
            feeds: its inputs.
            runs: how often it is run.
        """
        options = self._ort.SessionOptions()
        options.enable_profiling = True
        with tempfile.TemporaryDirectory(prefix="keras_trt-profile-") as folder:
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = self._session(onnx, options)
            for _ in range(runs):
                session.run(None, dict(feeds))
            events = json.loads(Path(session.end_profiling()).read_text())
        found: dict[str, list[Any]] = {}
        for event in events:
            if event["cat"] == "Node" and event["name"].endswith(_KERNEL):
                found.setdefault(event["name"].removesuffix(_KERNEL), []).append(event)
        return [
            EngineLayer(
                name,
                one[0]["args"]["op_name"],
                next((kind for shapes in one[0]["args"]["output_type_shape"] for kind in shapes), ""),
                statistics.median(event["dur"] for event in one) / 1e6,
            )
            for name, one in found.items()
        ]

    def _session(self, onnx: bytes, options: Any = None) -> Any:
        options = options or self._ort.SessionOptions()
        options.log_severity_level = 3  # errors; what it warns of (such as unused initializers) changes no result
        return self._ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


class OnnxRuntimeEngine:
    """See `HostEngine`."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.input_names = tuple(value.name for value in session.get_inputs())
        self.output_names = tuple(value.name for value in session.get_outputs())

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs, in the order of `output_names`."""
        return [np.asarray(output) for output in self._session.run(None, dict(feeds))]

    def close(self) -> None:
        """Free the session."""
        self._session = None
