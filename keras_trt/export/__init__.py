"""Keras → ONNX.

What a model takes (`signature`), its TensorFlow graph (`trace`, `layers`), that as ONNX (`convert`, `operators`), made
better (`graph/`), and whether it can be trusted (`check`). Where Keras does not run on TensorFlow, all of this is done
in a process where it does (`elsewhere`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .. import policies
from .._files import replacing
from .._garbage import collector_at_rest
from .._subgraphs import subgraphs
from ..errors import ExportError, refuse
from ..findings import Finding
from ..loading import keras_model, on_tensorflow
from ..specs import Signature, TensorSpec
from . import byte_inputs, check, convert, signature, trace

if TYPE_CHECKING:
    from .graph import Recipe

__all__ = ["ExportedModel", "examine", "examine_here", "export", "export_onnx"]

#: Key of the metadata entry of the ONNX file that holds the Keras names and nesting, as JSON.
SIGNATURE_METADATA = "keras_trt.signature"


@dataclass(frozen=True)
class ExportedModel:
    """A Keras model as ONNX.

    Attributes:
        onnx: the serialized `onnx.ModelProto`, float32, opset 17, weights inside.
        signature: names, shapes, types and nesting of its inputs and outputs.
        recipe: how the graph's initializers follow from the variables of the model.
        findings: what was repaired on the way, and what the graph costs.
    """

    onnx: bytes
    signature: Signature
    recipe: Recipe
    findings: tuple[Finding, ...] = ()


@collector_at_rest()
def export(model: Any, sample: Any = None) -> ExportedModel:
    """Export a Keras model's inference to ONNX.

    Args:
        model: a built `keras.Model`.
        sample: a batch of inputs, for subclassed models whose inputs are not all of the model's float type.

    Raises:
        ExportError: if no valid ONNX graph with exactly the model's inputs can be made of it; names the layer.
        MissingDependencyError: if TensorFlow or tf2onnx is not installed.
    """
    takes = _takes(model, sample)
    if on_tensorflow():
        return _finished(model, _converted(model, takes, refuse))
    exported, found = examine(model, sample)
    if exported is None:
        refuse(found)
    return cast(ExportedModel, exported)


@collector_at_rest()
def examine(model: Any, sample: Any = None) -> tuple[ExportedModel | None, tuple[Finding, ...]]:
    """Export a Keras model as `export` does, and return what was found instead of raising it.

    Args:
        model: a built `keras.Model`.
        sample: a batch of inputs.

    Returns:
        The exported model, or `None` where `export` would raise; and all findings.

    Raises:
        MissingDependencyError: if TensorFlow or tf2onnx is not installed.
    """
    try:
        takes = _takes(model, sample)
        if on_tensorflow():
            return examine_here(model, takes)
        from . import elsewhere

        return elsewhere.examine(model, takes)
    except ExportError as error:
        return None, error.findings


def examine_here(model: Any, takes: Signature) -> tuple[ExportedModel | None, tuple[Finding, ...]]:
    """Do what `examine` does with a model on TensorFlow, in this process."""
    refused: list[Finding] = []
    try:
        converted = _converted(model, takes, refused.extend)
        if refused:
            return None, tuple(refused)
        exported = _finished(model, converted)
    except ExportError as error:
        return None, (*refused, *error.findings)
    return exported, exported.findings


def _takes(model: Any, sample: Any) -> Signature:
    takes = signature.input_signature(model, sample)
    refuse(check.too_many_weights(model))
    return takes


@dataclass(frozen=True)
class _Converted:
    """A model as tf2onnx leaves it.

    Attributes:
        signature: names, shapes, types and nesting of its inputs and outputs.
        proto: the graph of standard nodes.
        whole: whether weights got into it by their inputs alone.
        log: what tf2onnx logged.
    """

    signature: Signature
    proto: Any
    whole: bool
    log: list[str]


def _converted(model: Any, takes: Signature, on_policies: Callable[[Iterable[Finding]], None]) -> _Converted:
    """Trace and convert; what dtype policies forbid goes to `on_policies`: the rest can be looked at all the same."""
    on_policies(policies.refusals(model))
    with policies.in_float32(model):
        traced = trace.trace(model, takes.input_structure, takes.inputs)
    outputs = traced.outputs
    refuse(check.writes(traced.function, model))
    if policies.is_mixed(model):  # the graph computes in float32; what its user gets has the types that Keras gives
        with policies.as_it_is():
            own = trace.trace(model, takes.input_structure, takes.inputs).outputs
        outputs = tuple(replace(spec, dtype=other.dtype) for spec, other in zip(outputs, own, strict=True))
    proto, log = convert.convert(traced)
    refuse(check.foreign_nodes(proto, model))
    inputs = _distinct(takes.inputs, set())
    outputs = _distinct(outputs, {spec.name for spec in inputs})
    known = replace(takes, inputs=inputs, outputs=outputs, output_structure=traced.output_structure)
    return _Converted(known, proto, traced.whole, log)


def _finished(model: Any, converted: _Converted) -> ExportedModel:
    from .graph import optimize

    try:
        weights = [np.asarray(variable) for variable in model.variables]
        optimized = optimize(converted.proto, weights, whole=converted.whole)
    except ExportError:
        raise
    except Exception as error:  # what onnx-ir, ONNX Runtime or a pass of ours cannot do, Keras can
        raise ExportError(f"The graph could not be simplified: {type(error).__name__}: {error}") from error
    refuse(check.invalid(optimized.proto, model, len(converted.signature.inputs), converted.log))
    findings = (*policies.repairs(model), *check.transposes(optimized.proto, model))
    try:
        onnx, names = _finish(optimized.proto, converted.signature)
    except Exception as error:  # protobuf's own kinds of errors differ between its versions
        raise ExportError(f"The graph could not be written: {error}") from error
    recipe = optimized.recipe.renamed(names)
    return ExportedModel(onnx, converted.signature, recipe, findings)


def export_onnx(model: Any, filepath: str | os.PathLike[str], *, sample: Any = None) -> None:
    """Export a Keras model's inference to an ONNX file (opset 17, float32, weights inside).

    The file's metadata entry `keras_trt.signature` holds the Keras names and nesting of inputs and outputs as
    JSON. An existing file is replaced only by a complete one.

    Args:
        model: a built `keras.Model`; or where one is saved, a `.keras` or `.h5` file or a
            SavedModel folder.
        filepath: where to write.
        sample: a batch of inputs as `predict` takes them, for subclassed models with integer inputs.

    Raises:
        ExportError: if the model cannot become valid ONNX; names the Keras layer.
        TypeError, ValueError: if it is no Keras 3 model, or a file or folder that holds none.
        OSError: if the file cannot be written, or there is no such model to read.

    Example:
    >>> keras_trt.export_onnx(model, "model.onnx")
    """
    exported = export(keras_model(model), sample)
    with replacing(Path(filepath)) as file:
        file.write(exported.onnx)


def _finish(proto: Any, known: Signature) -> tuple[bytes, dict[str, str]]:
    """Give inputs and outputs their Keras names, and keep the nesting beside the graph.

    Returns:
        The serialized model, and the new names of inner tensors by the old ones.
    """
    names = {f"input_{i}": spec.name for i, spec in enumerate(known.inputs)}
    names |= {f"output_{i}": spec.name for i, spec in enumerate(known.outputs)}
    # An inner tensor that bears a name which an input or output is going to have makes room for it.
    inner = {name: f"{name}__inner" for name in set(names.values()) - set(names)}
    _rename(proto.graph, inner)
    _rename(proto.graph, names)
    byte_inputs.cast_first(proto)
    # tf2onnx declares ai.onnx.ml whether it is used or not; `check` has seen that it is not.
    standard = [entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    del proto.opset_import[:]
    proto.opset_import.extend(standard)
    proto.producer_name = "keras_trt"
    entry = proto.metadata_props.add()
    entry.key, entry.value = SIGNATURE_METADATA, json.dumps(known.to_json(), sort_keys=True)
    return bytes(proto.SerializeToString(deterministic=True)), inner


def _rename(graph: Any, names: dict[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for subgraph in subgraphs(node):
            _rename(subgraph, names)


def _distinct(specs: tuple[TensorSpec, ...], taken: set[str]) -> tuple[TensorSpec, ...]:
    """Number the names that occur twice: a graph has one tensor of a name, an output may be called as an input."""
    result = []
    for spec in specs:
        name, number = spec.name, 1
        while name in taken:
            name, number = f"{spec.name}_{number}", number + 1
        taken.add(name)
        result.append(replace(spec, name=name))
    return tuple(result)
