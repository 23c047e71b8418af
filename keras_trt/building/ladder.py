"""What is tried, and in which order, where an engine in the precision asked for is not close enough to Keras."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from .. import policies
from .. import precision as types
from .._subgraphs import all_nodes
from ..backends import Judge
from ..errors import BuildError, KerasTRTError, PrecisionError, VerificationError
from ..export import ExportedModel
from ..export.check import layer_of
from ..inputs import Array
from ..options import Precision

_logger = logging.getLogger("keras_trt")

#: Each is closer to Keras than the one before.
LADDER: Mapping[Precision, tuple[Precision, ...]] = {
    "fp8": ("fp8", "fp16", "bf16", "tf32", "fp32"),
    "int8": ("int8", "fp16", "bf16", "tf32", "fp32"),
    "fp16": ("fp16", "bf16", "tf32", "fp32"),
    "bf16": ("bf16", "tf32", "fp32"),
    "tf32": ("tf32", "fp32"),
    "fp32": ("fp32",),
}


@dataclass(frozen=True)
class Rung:
    """One form of a graph.

    Attributes:
        precision: its precision.
        keep: names of nodes that compute in float32 all the same.
        quantization: for 8 bits, tells how.
    """

    precision: Precision
    keep: frozenset[str] = frozenset()
    quantization: Callable[[], types.Quantization] | None = None

    def graph(self, exported: ExportedModel) -> bytes:
        """Return the graph in these types.

        Raises:
            BuildError: if it has no such form.
            PrecisionError: if nothing of it can be in 8 bits.
        """
        try:
            how = None if self.quantization is None else self.quantization()
            if how is not None and self.precision in ("int8", "fp8") and self.keep.issuperset(how.thresholds):
                raise PrecisionError(
                    f"nothing of the graph can be in {self.precision}: there is no convolution or matrix product with "
                    "constant weights, none that `precision_plan` leaves, or none that `calibration_data` reaches"
                )
            return types.typed(exported.onnx, self.precision, self.keep, how)
        except KerasTRTError:
            raise
        except Exception as error:  # calibrators, the converter and onnx's checker raise kinds of their own
            raise BuildError(f"The graph could not be converted to {self.precision}: {error}") from error

    def layers(self, model: Any) -> tuple[str, ...]:
        """Return the Keras layers of the nodes that are kept in float32, where others are not."""
        if self.precision in ("tf32", "fp32"):
            return ()
        return tuple(sorted({layer_of(model, name) or model.name for name in self.keep}))


class Ladder:
    """Yields the forms of a graph, each closer to Keras than the one before.

    Args:
        asked: the precision to start with.
        quantization: tells how the forms in 8 bits are quantized.
        keep: names of nodes that compute in float32 in all forms.
        only: whether there are no forms in other precisions. Defaults to `False`.
    """

    def __init__(
        self,
        asked: Precision,
        quantization: Callable[[], types.Quantization] | None = None,
        keep: frozenset[str] = frozenset(),
        *,
        only: bool = False,
    ) -> None:
        self._keep = keep
        self._waiting = [
            Rung(precision, keep, quantization if precision in ("int8", "fp8") else None)
            for precision in (LADDER[asked][:1] if only else LADDER[asked])
        ]

    def __iter__(self) -> Iterator[Rung]:
        while self._waiting:
            yield self._waiting.pop(0)

    def ensure_in_range(self, rung: Rung, exported: ExportedModel, rows: Callable[[], Sequence[Array]]) -> None:
        """Refuse the form in which numbers leave the range of float16, before an engine is built of it.

        Args:
            rung: the form.
            exported: the graph.
            rows: gives what an engine would be compared on.

        Raises:
            VerificationError: if answers are others for it.
        """
        if rung.precision != "fp16" or rung.keep != self._keep:
            return
        feeds = _feeds(exported, rows())
        try:
            shows = types.overflow_shows(exported.onnx, feeds, rung.keep)
        except Exception as error:  # as in `failed`
            _logger.info("Whether numbers leave the range of float16 cannot be seen: %s", error)
            return
        if shows:
            raise VerificationError("numbers leave the range of float16, and answers are others for it")

    def failed(self, rung: Rung, exported: ExportedModel, rows: Sequence[Array]) -> None:
        """Note that the engine of a form differs from Keras: where numbers leave its range, they get another chance.

        Args:
            rung: the form.
            exported: the graph.
            rows: what the engine was compared on.
        """
        if rung.precision == "fp16" and rung.keep == self._keep:
            try:
                more = types.overflowing(exported.onnx, _feeds(exported, rows)) - self._keep
            except Exception as error:  # ONNX Runtime's share no base class; it may lack an operator that TensorRT has
                _logger.info("Where numbers leave the range of float16 cannot be seen: %s", error)
                return
            if more:
                self._waiting.insert(0, Rung("fp16", self._keep | more))


def _feeds(exported: ExportedModel, rows: Sequence[Array]) -> dict[str, Array]:
    return {spec.name: array for spec, array in zip(exported.signature.inputs, rows, strict=True)}


def default_precision(model: Any, judge: Judge) -> Precision:
    """Return the precision where none is asked for: the backend's, in the half type that the model's policy has."""
    if judge.default_precision == "fp16" and "bf16" in judge.precisions and policies.half_types(model) == {"bfloat16"}:
        return "bf16"
    return judge.default_precision


def planned(plan: Mapping[str, str] | None, model: Any, exported: ExportedModel) -> frozenset[str]:
    """Return the names of the nodes that a user's plan keeps in float32.

    Raises:
        ValueError: if a pattern fits no layer of the graph.
    """
    found: set[str] = set()
    layers = nodes_by_layer(model, exported)
    for pattern in plan or ():
        nodes = {name for layer, names in layers.items() if _fits(pattern, layer) for name in names}
        if not nodes:
            raise ValueError(f"`precision_plan`: no layer of the graph fits {pattern!r}. Its layers: {sorted(layers)}.")
        found |= nodes
    return frozenset(found)


def nodes_by_layer(model: Any, exported: ExportedModel) -> dict[str, list[str]]:
    """Return the names of a graph's nodes by the path of their Keras layer, in the graph's order.

    What belongs to no layer, as an operation in a subclassed model, is under the model's own name.
    """
    import onnx

    found: dict[str, list[str]] = {}
    for node in all_nodes([onnx.load_from_string(exported.onnx).graph]):
        found.setdefault(layer_of(model, node.name) or model.name, []).append(node.name)
    return found


def _fits(pattern: str, path: str) -> bool:
    parts = path.split("/")
    paths = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    return any(fnmatchcase(one, pattern) for one in (*paths, *parts))


def lacks(judge: Judge, precision: Precision) -> str | None:
    """Return what is said where a backend does not have a precision, or `None` where it has."""
    return None if precision in judge.precisions else f"{judge.title} has no {precision}"
