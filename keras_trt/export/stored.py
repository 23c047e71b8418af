"""An exported model without its weights: what a cache keeps, so that new weights need no export."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..specs import Signature

if TYPE_CHECKING:
    from . import ExportedModel


def whole(exported: ExportedModel) -> tuple[bytes, dict[str, Any]]:
    """Return a model as bytes, and what is needed to read them again as JSON data."""
    recipe = exported.recipe
    return exported.onnx + recipe.onnx, {
        "graph_bytes": len(exported.onnx),
        "signature": exported.signature.to_json(),
        "weights": list(recipe.weights),
        "computed": list(recipe.computed),
        "direct": dict(recipe.direct),
        "whole": recipe.whole,
    }


def read(data: bytes, manifest: Mapping[str, Any]) -> ExportedModel:
    """Return what `whole` was given, but for its findings."""
    from . import ExportedModel
    from .graph import Recipe

    size = manifest["graph_bytes"]
    weights, computed = tuple(manifest["weights"]), tuple(manifest["computed"])
    recipe = Recipe(data[size:], weights, computed, manifest["direct"], manifest["whole"])
    return ExportedModel(data[:size], Signature.from_json(manifest["signature"]), recipe)


def pack(exported: ExportedModel, values: Sequence[Any]) -> tuple[bytes, dict[str, Any]]:
    """Return a model's graph and recipe as bytes, and what is needed to read them again as JSON data.

    Args:
        exported: the model.
        values: its weights, in the order of the model's variables. Only their digests are kept.
    """
    import onnx

    proto = onnx.load_from_string(exported.onnx)
    for initializer in proto.graph.initializer:
        if initializer.name in exported.recipe.names:
            initializer.ClearField("raw_data")
    data, about = whole(replace(exported, onnx=proto.SerializeToString(deterministic=True)))
    return data, {**about, "values": digests(values)}


def unpack(data: bytes, manifest: Mapping[str, Any], values: Sequence[Any]) -> ExportedModel | None:
    """Return the model with other weights, or `None` where it is not known all that follows from them.

    Args:
        data: what `pack` returned.
        manifest: likewise.
        values: the weights, of the same shapes and types.
    """
    import onnx

    exported = read(data, manifest)
    recipe = exported.recipe
    before = manifest["values"]
    changed = [i for i, digest in enumerate(digests(values)) if i >= len(before) or digest != before[i]]
    if len(before) != len(values) or not recipe.covers(changed):
        return None
    arrays = recipe.run(values)
    proto = onnx.load_from_string(exported.onnx)
    for initializer in proto.graph.initializer:
        if initializer.name in recipe.names:
            tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(arrays[initializer.name]), initializer.name)
            if (tensor.data_type, list(tensor.dims)) != (initializer.data_type, list(initializer.dims)):
                return None
            initializer.raw_data = tensor.raw_data
    return replace(exported, onnx=bytes(proto.SerializeToString(deterministic=True)))


def digests(values: Sequence[Any]) -> list[str]:
    """Return a digest of each of a model's weights."""
    flat = (np.ascontiguousarray(value).reshape(-1).view(np.uint8) for value in values)  # copies nothing
    return [hashlib.sha256(one.data).hexdigest() for one in flat]
