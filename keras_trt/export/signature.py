"""What a Keras model takes: names, shapes, types and nesting of its inputs, without calling it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from .. import policies
from ..errors import ExportError, refuse
from ..findings import Finding
from ..specs import Signature, Structure, TensorSpec, children, describe, flatten


def input_signature(model: Any, sample: Any = None, *, strings: bool = False) -> Signature:
    """Return a model's inputs, as a signature without outputs.

    Sequential and Functional models say it themselves. For a subclassed model it is the `sample`, where there
    is one, and else the shapes that Keras recorded at its first call, which carry no types: there every input
    has the model's own float type, to which Keras casts.

    Args:
        model: a built `keras.Model`.
        sample: a batch of inputs, or `None`.
        strings: whether inputs may be strings, since what takes them is not exported.

    Raises:
        ExportError: if the model is not built, or takes something that is not a dense tensor of numbers.
    """
    import keras

    if isinstance(model, keras.Sequential) and model.built and model.inputs:
        tensors: Any = model.inputs[0]
    elif isinstance(model, keras.Model) and getattr(model, "inputs", None):
        tensors = model.input
    else:
        return _of_subclass(model, sample)
    leaves = flatten(tensors)
    refuse(finding for leaf in leaves for finding in _unfit(leaf, strings))
    return _signature(describe(tensors), [_of_keras_tensor(leaf) for leaf in leaves])


def unbuilt(model: Any) -> ExportError:
    """Return what is said of a model that has not been built."""
    return ExportError(
        f"The model '{model.name}' has not been built, so the shapes of its inputs are not known. "
        "Call it once on a batch of data, or pass `sample=` with such a batch."
    )


def _signature(structure: Structure, inputs: Iterable[TensorSpec], *, types_guessed: bool = False) -> Signature:
    check_keys(structure, "inputs")
    return Signature(tuple(inputs), (), structure, {"tuple": []}, types_guessed)


def _of_keras_tensor(tensor: Any) -> TensorSpec:
    return TensorSpec(str(tensor._keras_history.operation.name), tuple(tensor.shape), str(tensor.dtype))


def _unfit(tensor: Any, strings: bool) -> Iterator[Finding]:
    """Yield what keeps an input from being one of an engine."""
    operation, dtype = tensor._keras_history.operation, str(tensor.dtype)
    name = str(operation.name)
    for unsupported in ("sparse", "ragged"):
        if getattr(tensor, unsupported, False):
            yield Finding(f"Input '{name}' is {unsupported}; only dense inputs can be exported.", name)
    if len(tensor.shape) == 0:
        yield Finding(f"Input '{name}' has no axes, so it has no batch of rows.", name)
    if getattr(operation, "optional", False):
        yield Finding(f"Input '{name}' is optional; an engine takes all of its inputs at each call.", name)
    if not (strings and dtype == "string"):
        yield from _no_number(name, dtype)


def _of_subclass(model: Any, sample: Any) -> Signature:
    if sample is not None:
        plain = _plain(sample)
        arrays = [np.asarray(leaf) for leaf in flatten(plain)]
        names = _names(plain, len(arrays))
        # Keras itself casts float64 data to its own float type before a model sees it.
        specs = [
            TensorSpec(name, (None, *array.shape[1:]), _numeric(name, _as_keras_casts(array.dtype)))
            for name, array in zip(names, arrays, strict=True)
        ]
        return _signature(describe(plain), specs)
    recorded = getattr(model, "_build_shapes_dict", None)
    if not model.built or not recorded:
        raise unbuilt(model)
    if len(recorded) > 1:
        raise ExportError(
            f"The model '{model.name}' was called with {len(recorded)} arguments ({', '.join(recorded)}). `predict` "
            "passes one: let `call` take a list or a dict of tensors, or pass `sample=`."
        )
    shapes = _shape_tree(next(iter(recorded.values())))
    leaves = flatten(shapes)
    names = _names(shapes, len(leaves))
    dtype = str(model.input_dtype) if hasattr(model, "input_dtype") else str(model.compute_dtype)
    if dtype != "float32" and policies.is_mixed(model):
        dtype = str(model.variable_dtype)  # the graph is of float32; Keras would cast to half by itself
    specs = [
        TensorSpec(name, (None, *leaf.shape[1:]), _numeric(name, dtype))
        for name, leaf in zip(names, leaves, strict=True)
    ]
    return _signature(describe(shapes), specs, types_guessed=True)


def check_keys(structure: Structure, what: str) -> None:
    """Refuse dicts whose keys are not strings: structures are kept as JSON, which has no others.

    Raises:
        ExportError: names the key.
    """
    if isinstance(structure, int):
        return
    for key, child in children(structure):
        if not structure.keys().isdisjoint(("dict", "ordered")) and not isinstance(key, str):
            raise ExportError(f"A dict of the model's {what} has the key {key!r}. Only strings can be keys.")
        check_keys(child, what)


class _Shape:
    """A shape as a leaf: Keras records shapes as tuples, which would be taken for containers."""

    def __init__(self, shape: tuple[int | None, ...]) -> None:
        self.shape = shape


def _shape_tree(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _shape_tree(child) for key, child in node.items()}
    if all(axis is None or isinstance(axis, int) for axis in node):
        return _Shape(tuple(node))
    children = [_shape_tree(child) for child in node]
    return tuple(children) if isinstance(node, tuple) else children


def _plain(node: Any) -> Any:
    """Return `node` with plain dicts and lists for the tracked containers of Keras and TensorFlow."""
    if isinstance(node, Mapping):
        return {key: _plain(child) for key, child in node.items()}
    if isinstance(node, list | tuple):
        children = [_plain(child) for child in node]
        return tuple(children) if isinstance(node, tuple) else children
    return node


def _names(structure: Any, count: int) -> list[str]:
    if isinstance(structure, Mapping) and len(structure) == count:
        return [str(key) for key in sorted(structure)]
    return [f"input_{i}" for i in range(count)] if count > 1 else ["input"]


def _as_keras_casts(dtype: np.dtype[Any]) -> str:
    import keras

    return str(keras.config.floatx()) if dtype == np.float64 else dtype.name


def _numeric(name: str, dtype: str) -> str:
    refuse(_no_number(name, dtype))
    return dtype


def _no_number(name: str, dtype: str) -> Iterator[Finding]:
    if dtype in ("string", "object") or dtype.startswith(("str", "bytes", "complex")):
        yield Finding(
            f"Input '{name}' has dtype {dtype}, which no engine takes. Allowed are numbers and booleans. (`accelerate` "
            'lets the CPU run what takes strings in a Sequential or Functional model of keras.Input(dtype="string").)',
            name,
        )
