"""What an engine is made of, and the keys that it, its graph and all engines with other weights are found by."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .._version import __version__
from ..cache import digest
from ..options import Precision
from ..specs import OptimizationProfile, ShapeRange, Signature


@dataclass(frozen=True)
class Wanted:
    """What an engine is made of.

    Attributes:
        graph: the typed ONNX graph.
        signature: its inputs and outputs, by the graph's names.
        precision: the precision of its types.
        ranges: the shapes to build for, one for each input.
        optimization_level: TensorRT's, or `None` for its default.
        rows_independent: whether batches may be regrouped.
        refittable: whether the engine is to be one whose weights can be changed later.
        weights: names of the initializers that follow from the model's weights; others than the graph's do no harm.
    """

    graph: bytes
    signature: Signature
    precision: Precision
    ranges: tuple[ShapeRange, ...]
    optimization_level: int | None
    rows_independent: bool
    refittable: bool = False
    weights: frozenset[str] = frozenset()

    @cached_property
    def graph_sha256(self) -> str:
        """The digest of the graph."""
        return hashlib.sha256(self.graph).hexdigest()

    @property
    def profile(self) -> OptimizationProfile:
        """The shapes by input."""
        return profile(self.signature, self.ranges)

    def options(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Return all but the graph that an engine depends on, with what builds it: see `engine_options`."""
        return engine_options(
            identity, self.precision, self.ranges, self.optimization_level, refittable=self.refittable
        )

    def key(self, identity: Mapping[str, Any]) -> str:
        """Return the key of the engine."""
        return digest("engine", {"onnx": self.graph_sha256, **self.options(identity)})

    def family(self, identity: Mapping[str, Any]) -> str:
        """Return the key of all engines that differ in their weights alone."""
        return digest("family", {"skeleton": skeleton(self.graph, self.weights), **self.options(identity)})


def engine_options(
    identity: Mapping[str, Any],
    precision: Precision,
    ranges: Sequence[ShapeRange],
    optimization_level: int | None,
    *,
    refittable: bool,
) -> dict[str, Any]:
    """Return all but the graph that an engine depends on. Inputs are told by place: names may be generated.

    Args:
        identity: what builds it and where, as `Backend.identity` says it.
        precision: as in `Wanted`, and so are the others.
        ranges: likewise.
        optimization_level: likewise.
        refittable: likewise.
    """
    return {
        "precision": precision,
        "shapes": {
            **{f"{name} batch": getattr(ranges[0], name)[0] for name in ("min", "opt", "max")},  # of all inputs
            **{f"input {i}": [list(r.min[1:]), list(r.opt[1:]), list(r.max[1:])] for i, r in enumerate(ranges)},
        },
        "optimization_level": optimization_level,
        "refittable": refittable,
        "keras_trt": __version__,
        "backend": identity,
    }


def graph_key(graph_sha256: str) -> str:
    """Return the key under which a typed graph lies in the cache."""
    return digest("graph", {"onnx": graph_sha256})


def skeleton(graph: bytes, weights: Collection[str]) -> str:
    """Return the digest of a graph without the values of some initializers."""
    import onnx

    proto = onnx.load_from_string(graph)
    for initializer in proto.graph.initializer:
        if initializer.name in weights:
            for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                initializer.ClearField(field)
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def profile(signature: Signature, ranges: Sequence[ShapeRange]) -> OptimizationProfile:
    """Return the shapes of the inputs by name."""
    return OptimizationProfile({spec.name: shapes for spec, shapes in zip(signature.inputs, ranges, strict=True)})
