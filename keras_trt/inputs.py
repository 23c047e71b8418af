"""A user's data → flat numpy arrays that fit a model, as Keras would take it, or an error that says what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._warn import warn
from .cache import digest
from .cuda import DeviceArray, is_on_gpu
from .errors import InputError
from .specs import Signature, TensorSpec, children, flatten, leaf_paths

Array = np.ndarray[Any, np.dtype[Any]]


def is_arrays(x: Any) -> bool:
    """Tell whether `x` is an array, a tensor, or a nest of them; datasets and generators are not."""
    if isinstance(x, Mapping):
        return bool(x) and all(is_arrays(child) for child in x.values())
    if isinstance(x, list | tuple):
        return bool(x) and all(is_arrays(child) for child in x)
    return isinstance(x, np.ndarray) or (hasattr(x, "__array__") and hasattr(x, "shape")) or is_on_gpu(x)


def standardize(x: Any, signature: Signature) -> list[Array]:
    """Return the flat inputs of a model from data in any nesting that Keras takes.

    As in Keras, a model with one input takes it bare, in a list or by name; lists and tuples stand for each
    other; a dict finds its inputs by name, and what the model does not know in it is left out with a warning;
    numbers are cast to the input's type; a last axis of length 1 may be missing or too many. Strings may also be in
    a list.

    Args:
        x: arrays or tensors.
        signature: what the model takes.

    Returns:
        One array for each input, of its type and rank, all with the same number of rows. Where the model does not
        say its types, integers and booleans stay as they are.

    Raises:
        InputError: for a missing input, a wrong number of inputs, rows that differ in number, a wrong rank or
            size of an axis, and values that are not numbers.
    """
    if type(x) is np.ndarray and isinstance(signature.input_structure, int) and _is_ready(x, signature.inputs[0]):
        return [x]  # what is looked at below takes as long as a small engine does
    if any(spec.dtype == "string" for spec in signature.inputs):
        x = _texts_as_arrays(x)
    leaves = _match(x, signature)
    arrays = [
        _standardize_one(leaf, spec, guessed=signature.types_guessed)
        for leaf, spec in zip(leaves, signature.inputs, strict=True)
    ]
    rows = [len(array) for array in arrays]
    if len(set(rows)) > 1:
        named = {spec.name: count for spec, count in zip(signature.inputs, rows, strict=True)}
        raise InputError(
            f"All inputs need the same number of rows. Received: {named}.",
            expected="one number of rows",
            received=named,
        )
    return arrays


def _is_ready(array: Array, spec: TensorSpec) -> bool:
    """Tell whether an array is what an input of numbers takes, to the letter."""
    return (
        array.dtype == spec.dtype
        and array.ndim == len(spec.shape) > 0
        and all(map(_fits, spec.shape[1:], array.shape[1:]))
    )


def _fits(known: int | None, size: int) -> bool:
    return known is None or known == size


def _texts_as_arrays(x: Any) -> Any:
    """Return `x` with an array for each innermost list of strings."""
    if isinstance(x, Mapping):
        return {key: _texts_as_arrays(child) for key, child in x.items()}
    if not isinstance(x, list | tuple):
        return x
    if x and all(isinstance(child, str | bytes) for child in x):
        return np.array(x, object)
    return type(x)(map(_texts_as_arrays, x)) if type(x) in (list, tuple) else x


def _match(x: Any, signature: Signature) -> list[Any]:
    """Bring the user's nesting to the model's."""
    specs, structure = signature.inputs, signature.input_structure
    if isinstance(structure, int) and not isinstance(x, Mapping | list | tuple):
        return [x]
    names = [spec.name for spec in specs]
    flat_dict = isinstance(structure, dict) and "dict" in structure and _is_flat(structure)
    if isinstance(x, Mapping):
        keys: list[str] | None = None
        if flat_dict and isinstance(structure, dict):
            keys = list(structure["dict"])
        elif _is_flat(structure):
            keys = names
        if keys is not None:
            if missing := [key for key in keys if key not in x]:
                raise InputError(
                    f"The data misses the input{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}. "
                    f"Received: a dict with {sorted(map(str, x))}, expected: {keys}.",
                    input_name=str(missing[0]),
                    expected=keys,
                    received=sorted(map(str, x)),
                )
            if extra := sorted(str(key) for key in x if key not in keys):
                warn(f"The model has no input {', '.join(map(repr, extra))}; it is left out. Its inputs are {keys}.")
            return [x[key] for key in keys]
    same_nesting = sorted(path for _, path in leaf_paths(structure)) == sorted(_paths(x))
    leaves = flatten(x) if same_nesting or _is_flat(structure) else None
    if leaves is None or len(leaves) != len(specs):
        received = f"{len(flatten(x))} arrays nested as {_outline(x)}"
        raise InputError(
            f"The model takes {len(specs)} input{'s' * (len(specs) > 1)} ({', '.join(map(repr, names))}). "
            f"Received: {received}.",
            expected=names,
            received=received,
        )
    return leaves


def _is_flat(structure: Any) -> bool:
    """Tell whether a structure is one leaf, or one container of leaves."""
    if isinstance(structure, int):
        return True
    return all(isinstance(child, int) for _, child in children(structure))


def _paths(x: Any, path: str = "") -> list[str]:
    if isinstance(x, Mapping):
        return [p for key in x for p in _paths(x[key], f"{path}[{key!r}]")]
    if isinstance(x, list | tuple):
        return [p for i, child in enumerate(x) for p in _paths(child, f"{path}[{i!r}]")]
    return [path]


def _outline(x: Any) -> str:
    if isinstance(x, Mapping):
        return "{" + ", ".join(f"{key!r}: {_outline(child)}" for key, child in x.items()) + "}"
    if isinstance(x, list | tuple):
        return "[" + ", ".join(map(_outline, x[:8])) + (", …" if len(x) > 8 else "") + "]"
    shape = getattr(x, "shape", None)
    return type(x).__name__ if shape is None else f"{type(x).__name__}{tuple(shape)}"


def _dense(leaf: Any) -> Any:
    """Return a sparse matrix or tensor as a dense one, and anything else as it is: engines take dense data."""
    if hasattr(leaf, "todense"):  # of scipy and JAX
        return np.asarray(leaf.todense())
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None and isinstance(leaf, tensorflow.SparseTensor):
        return tensorflow.sparse.to_dense(tensorflow.sparse.reorder(leaf)).numpy()
    return leaf


def standardize_out(out: Any, outputs: Sequence[TensorSpec], rows: int) -> list[Any]:
    """Return the flat arrays that are to take a model's outputs.

    Args:
        out: arrays in the nesting of the outputs, on the host or on a GPU.
        outputs: of the model.
        rows: how many there will be.

    Raises:
        InputError: if their number, a shape or a type does not fit, or one cannot be written to.
    """
    leaves = flatten(out)
    if len(leaves) != len(outputs):
        raise InputError(
            f"The model gives {len(outputs)} outputs. Received: `out` with {len(leaves)} arrays.",
            expected=len(outputs),
            received=len(leaves),
        )
    arrays = [DeviceArray(leaf) if is_on_gpu(leaf) else leaf for leaf in leaves]
    for leaf, array, spec in zip(leaves, arrays, outputs, strict=True):
        shape = tuple(getattr(array, "shape", ()))
        fits = len(shape) == len(spec.shape) and shape[0] == rows
        fits = fits and all(known in (None, size) for known, size in zip(spec.shape[1:], shape[1:], strict=True))
        writable = array.flags.writeable if isinstance(array, np.ndarray) else not getattr(array, "readonly", True)
        if not fits or not writable or str(array.dtype) != spec.dtype:
            wanted = (rows, *("any" if axis is None else axis for axis in spec.shape[1:]))
            raise InputError(
                f"Output '{spec.name}' is {spec.dtype} of shape {wanted}. Received in `out`: "
                f"{'a' if writable else 'a read-only'} {type(leaf).__name__} of "
                f"{getattr(array, 'dtype', 'no type')} with shape {shape}.",
                expected=wanted,
                received=shape,
            )
    return arrays


def _standardize_one(leaf: Any, spec: TensorSpec, *, guessed: bool) -> Any:
    plain = type(leaf) is np.ndarray  # the usual one, which need not be asked what it is
    leaf = leaf if plain else _dense(leaf)
    if not plain and not is_arrays(leaf):
        raise InputError(
            f"Input '{spec.name}' takes an array. Received: {type(leaf).__name__} (for a list of "
            "numbers use np.asarray).",
            input_name=spec.name,
            expected="an array",
            received=type(leaf).__name__,
        )
    on_gpu = not plain and is_on_gpu(leaf)
    array: Any = DeviceArray(leaf) if on_gpu else np.asarray(leaf)
    texts = spec.dtype == "string"
    numbers = array.dtype.kind in "biuf" or array.dtype.name.startswith(("bfloat16", "float8"))
    if array.dtype.kind not in "OSTU" if texts else not numbers:
        what = "strings" if texts else f"numbers of type {spec.dtype}"
        raise InputError(
            f"Input '{spec.name}' takes {what}. Received: dtype {array.dtype}.",
            input_name=spec.name,
            expected=spec.dtype,
            received=str(array.dtype),
        )
    rank = len(spec.shape)
    if on_gpu and array.dtype != spec.dtype:
        raise InputError(
            f"Input '{spec.name}' takes {spec.dtype}. Received: {array.dtype} on a GPU, where nothing is cast.",
            input_name=spec.name,
            expected=spec.dtype,
            received=str(array.dtype),
        )
    if on_gpu:
        pass  # as it is
    elif array.ndim == rank + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    elif array.ndim == rank - 1 and array.ndim > 0 and spec.shape[-1] == 1:
        array = array[..., np.newaxis]
    fits = array.ndim == rank and all(
        known is None or known == size for known, size in zip(spec.shape[1:], array.shape[1:], strict=True)
    )
    if not fits or rank == 0:
        expected = f"({', '.join(['batch', *('any' if axis is None else str(axis) for axis in spec.shape[1:])])})"
        raise InputError(
            f"Input '{spec.name}' takes the shape {expected}. Received: shape {np.shape(leaf)}.",
            input_name=spec.name,
            expected=expected,
            received=np.shape(leaf),
        )
    if on_gpu or texts or (guessed and array.dtype.kind in "biu"):
        return array  # Keras would let the model compute in integers; the engine objects (`Session.takes`)
    return array.astype(spec.dtype, copy=False)


def digest_of(rows: Sequence[Any] | None) -> str | None:
    """Return the digest of flat arrays: their types, shapes and numbers or strings."""
    if rows is None:
        return None
    arrays = [np.ascontiguousarray(array) for array in rows]
    return digest("arrays", {"arrays": [[one.dtype.name, list(one.shape), _content(one)] for one in arrays]})


def _content(array: Array) -> Any:
    """Return what an array holds: of one of Python's objects its bytes are addresses, other ones in each process."""
    if array.dtype.hasobject:
        return [item.item() if isinstance(item, np.generic) else item for item in array.ravel().tolist()]
    return array.tobytes()
