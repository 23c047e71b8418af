"""`report().layers`: an engine is measured piece by piece when somebody asks for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import fingerprint
from ..backends import Backend
from ..export import export
from ..options import Precision
from ..runtime import Session
from ..specs import Signature
from ..verification.gate import Gate
from .layers import LayerReport, compare_layers, layer_reports

_logger = logging.getLogger("keras_trt")

_CALLS = 20
#: Types that ONNX Runtime computes in on a CPU, so that a layer's answers can be looked at.
_COMPARED: Sequence[Precision] = ("int8", "fp16", "tf32", "fp32")


@dataclass(frozen=True)
class Measurement:
    """Measures the layers of an engine.

    Args:
        model: the Keras model that it was made of.
        backend: what runs it.
        session: the engine.
        graph: gives its typed graph.
        signature: its inputs and outputs.
        gate: has rows for it.
        precision: what it runs in.
        sample: what the model was exported with.
        weights: the weights key that the model had then, or `None` where it has none.
    """

    model: Any
    backend: Backend
    session: Session
    graph: Callable[[], bytes]
    signature: Signature
    gate: Gate
    precision: Precision
    sample: Any
    weights: str | None

    def __call__(self) -> tuple[LayerReport, ...]:
        """Return the layers in the order in which they run."""
        rows = self.gate.rows(self.session)
        usual = self.session.profile.batch[1]
        order = [place % len(rows[0]) for place in range(usual)] if self.session.rows_independent else slice(None)
        names = [spec.name for spec in self.signature.inputs]
        batch = {name: array[order] for name, array in zip(names, rows, strict=True)}
        graph = self.graph()
        plan = self.session.plan()
        pieces = self.backend.profile(graph if plan is None else plan, batch, _CALLS)
        return layer_reports(self.model, pieces, self._answers(graph, dict(zip(names, rows, strict=True))))

    def _answers(self, graph: bytes, feeds: dict[str, Any]) -> dict[str, Any]:
        if self.precision not in _COMPARED or self.weights is None or weights_of(self.model) != self.weights:
            return {}
        try:
            return compare_layers(self.model, export(self.model, self.sample).onnx, graph, feeds)
        except Exception as error:  # ONNX Runtime's share no base class; it may lack an operator that TensorRT has
            _logger.info("The layers of '%s' are not compared with float32: %s", self.model.name, error)
            return {}


def weights_of(model: Any) -> str | None:
    """Return the weights key of a model, or `None` where it has none."""
    try:
        return fingerprint.weights_key(model)
    except fingerprint.Unhashable:
        return None
