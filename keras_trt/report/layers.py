"""An engine by the Keras layers that it runs: time, types, what was fused, and how far each is from float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends import EngineLayer
from ..export.check import layer_of
from ..inputs import Array
from ..precision import values_of
from ..verification.verify import difference

#: Edges of the histograms of magnitudes, as powers of ten.
EDGES = np.linspace(-8, 6, 57)


@dataclass(frozen=True)
class Histogram:
    """How many numbers of a layer's answers have which magnitude.

    Attributes:
        float32: counts in the float32 graph, between the powers of ten of `EDGES`.
        typed: counts in the graph that runs.
    """

    float32: tuple[int, ...]
    typed: tuple[int, ...]


@dataclass(frozen=True)
class LayerReport:
    """One Keras layer of an engine.

    Attributes:
        layer: its path; `""` for what belongs to no layer.
        kind: its class.
        microseconds: time of one batch, of the engine's pieces that begin with this layer.
        share: of the time of all layers.
        types: the types that these read and write, as the engine calls them.
        pieces: the engine's own names of the pieces that do its work.
        fused_with: the other layers in these pieces.
        relative_error: ‖typed - float32‖ / ‖float32‖ of its answers, infinite where NaN or infinity is in one alone;
            `None` where they are not in both graphs.
        histogram: of its answers, where they are.
    """

    layer: str
    kind: str
    microseconds: float
    share: float
    types: tuple[str, ...]
    pieces: tuple[str, ...]
    fused_with: tuple[str, ...]
    relative_error: float | None = None
    histogram: Histogram | None = None


def layer_reports(
    model: Any, pieces: Sequence[EngineLayer], answers: Mapping[str, tuple[float, Histogram]]
) -> tuple[LayerReport, ...]:
    """Return the layers of an engine in the order in which they run.

    Args:
        model: the Keras model.
        pieces: what the engine runs.
        answers: by layer, how far its answers are from float32.
    """
    found: dict[str, dict[str, Any]] = {}
    for piece in pieces:
        inside = list(dict.fromkeys(filter(None, (layer_of(model, node) for node in piece.nodes)))) or [""]
        for layer in inside:
            row = found.setdefault(layer, {"time": 0.0, "types": set(), "pieces": [], "with": {}})
            row["types"].update(piece.types)
            row["pieces"].append(piece.name)
            row["with"].update(dict.fromkeys(one for one in inside if one != layer))
        found[inside[0]]["time"] += piece.microseconds
    total = sum(row["time"] for row in found.values()) or 1.0
    kinds = _kinds(model)
    return tuple(
        LayerReport(
            layer,
            kinds.get(layer, ""),
            row["time"],
            row["time"] / total,
            tuple(sorted(row["types"])),
            tuple(row["pieces"]),
            tuple(row["with"]),
            *answers.get(layer, (None, None)),
        )
        for layer, row in found.items()
    )


def compare_layers(
    model: Any, float32: bytes, typed: bytes, feeds: Mapping[str, Array]
) -> dict[str, tuple[float, Histogram]]:
    """Return, by layer, how far its answers in a typed graph are from those in the float32 graph.

    Both are run by ONNX Runtime. A layer's answers are the last float tensor of its nodes that is in both graphs.

    Args:
        model: the Keras model.
        float32: the graph before it was typed.
        typed: the graph that an engine was made of.
        feeds: rows for the inputs.
    """
    import onnx

    both = {name for node in onnx.load_from_string(typed).graph.node for name in node.output}
    last: dict[str, str] = {}
    for node in onnx.load_from_string(float32).graph.node:
        for name in node.output:
            if name in both:
                last[layer_of(model, node.name) or ""] = name
    exact, rounded = (values_of(graph, feeds, set(last.values())) for graph in (float32, typed))
    found = {}
    for layer, name in last.items():
        if name in exact and name in rounded and exact[name].shape == rounded[name].shape:
            wanted, got = exact[name], rounded[name]
            error, _ = difference(wanted, got)
            found[layer] = (error, Histogram(_counts(wanted), _counts(got)))
    return found


def _counts(array: Array) -> tuple[int, ...]:
    magnitudes = np.abs(array[np.isfinite(array) & (array != 0)])
    counts, _ = np.histogram(np.clip(np.log10(magnitudes), EDGES[0], EDGES[-1]), EDGES)
    return tuple(int(count) for count in counts)


def _kinds(model: Any, path: str = "") -> dict[str, str]:
    found = {}
    for layer in model._flatten_layers(include_self=False, recursive=False):
        name = f"{path}{layer.name}"
        found[name] = type(layer).__name__
        found.update(_kinds(layer, f"{name}/"))
    return found
