"""How large the numbers in a graph become."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from .._subgraphs import all_nodes, subgraphs
from .lower import lower
from .types import tensor_types

Array = np.ndarray[Any, np.dtype[Any]]

#: Rows that a graph is run on at once.
ROWS = 16
#: The largest number of float16.
_LARGEST = 65504.0
#: To look at all numbers takes several times as long as to compute them. Where they are below the share of float16's
#: largest in a few rows, none in the others is taken to be above it.
_FEW, _SHARE = 4, 1 / 8


def overflowing(onnx: bytes, feeds: Mapping[str, Array]) -> frozenset[str]:
    """Return the names of the nodes that would be in float16 and read or make numbers that are too large for it.

    Half of its largest number is too large: other rows than those that were looked at may have larger ones. Of a loop
    or a branch that does, these are all the nodes inside: what they make cannot be seen.

    Args:
        onnx: a serialized float32 `onnx.ModelProto`.
        feeds: rows for its inputs; the graph is run on them by ONNX Runtime.
    """
    import onnx as onnx_package

    graph = onnx_package.load_from_string(onnx).graph
    half = _in_half(onnx)
    names = {output.name for output in graph.output}
    # An output of the graph is cast to float32 under its own name.
    candidates = [node for node in graph.node if any(one in half or one in names for one in node.output)]
    reached = largest(onnx, feeds, rows=None)
    large = {name for name, value in reached.items() if value > _LARGEST / 2}
    found = {node.name for node in candidates if large.intersection((*node.input, *node.output))}
    for node in graph.node:
        if large.intersection((*node.input, *node.output)):
            found.update(inner.name for inner in all_nodes(subgraphs(node)))
    return frozenset(found)


def overflow_shows(onnx: bytes, feeds: Mapping[str, Array], keep: Collection[str] = ()) -> bool:
    """Tell whether answers are others where numbers become infinite that float16 has not.

    To compare whole outputs of an engine may not show it: what is infinite may end as a wrong share between 0 and 1,
    in an output that has pixels beside it.

    Args:
        onnx: a serialized float32 `onnx.ModelProto`.
        feeds: rows for its inputs; the graph is run on them by ONNX Runtime.
        keep: names of nodes that compute in float32.
    """
    import onnx as onnx_package

    if max(largest(onnx, feeds, rows=_FEW, most=_FEW).values(), default=0.0) <= _SHARE * _LARGEST:
        return False
    half = _in_half(onnx, keep)
    large = {name for name, value in largest(onnx, feeds, half, rows=None).items() if value > _LARGEST}
    if not large:
        return False
    proto = onnx_package.load_from_string(onnx)
    (rows,) = batches(proto, feeds, None)
    answers = _session(proto).run(None, rows)
    _make_infinite(proto.graph, large)
    return any(map(_differ, answers, _session(proto).run(None, rows)))


def _in_half(onnx: bytes, keep: Collection[str] = ()) -> set[str]:
    """Return the names of the tensors that are float16 where the graph is in it but for some nodes."""
    return {name for name, kind in tensor_types(lower(onnx, "fp16", keep)).items() if kind == "float16"}


def _make_infinite(graph: Any, names: Collection[str]) -> None:
    """Make the numbers of tensors infinite that are too large for float16."""
    from onnx import helper, numpy_helper

    graph.initializer.append(numpy_helper.from_array(np.array(_LARGEST, "float32"), "largest_of_float16"))
    graph.initializer.append(numpy_helper.from_array(np.array(np.inf, "float32"), "infinity"))
    nodes = list(graph.node)
    for place, node in reversed(list(enumerate(nodes))):
        for i, name in enumerate(node.output):
            if name in names:
                node.output[i] = full = f"{name}_in_full"
                size, is_large, sign, infinite = (f"{name}_{what}" for what in ("size", "is_large", "sign", "infinite"))
                nodes[place + 1 : place + 1] = [
                    helper.make_node("Abs", [full], [size]),
                    helper.make_node("Greater", [size, "largest_of_float16"], [is_large]),
                    helper.make_node("Sign", [full], [sign]),
                    helper.make_node("Mul", [sign, "infinity"], [infinite]),
                    helper.make_node("Where", [is_large, infinite, full], [name]),
                ]
    del graph.node[:]
    graph.node.extend(nodes)


def _differ(one: Array, other: Array) -> bool:
    """Tell whether a number is another by more than what operators that are fused otherwise round off."""
    if one.shape != other.shape or one.dtype.kind != "f":
        return not np.array_equal(one, other)
    finite = np.abs(one[np.isfinite(one)])
    rounding = 1e-3 * np.abs(one) + 1e-6 * (float(finite.max()) if finite.size else 0.0)
    with np.errstate(invalid="ignore"):
        same = (np.abs(one - other) <= rounding) | (one == other) | (np.isnan(one) & np.isnan(other))
    return not bool(same.all())


def largest(
    onnx: bytes,
    feeds: Mapping[str, Array],
    wanted: Collection[str] | None = None,
    rows: int | None = ROWS,
    most: int | None = None,
) -> dict[str, float]:
    """Return the largest magnitude of float32 tensors of a graph's top level; infinite where there is NaN.

    Args:
        onnx: a serialized float32 `onnx.ModelProto`.
        feeds: rows for its inputs.
        wanted: names of tensors. Defaults to `None`: all that are inputs or that a node makes.
        rows: how many are run at once, or `None` for all.
        most: how many are run at least, where there are so many: whole batches. Defaults to `None`: all.
    """
    import onnx as onnx_package
    from onnx import helper, numpy_helper

    proto = onnx_package.load_from_string(onnx)
    graph, types = proto.graph, tensor_types(onnx)
    there = [*(value.name for value in graph.input), *(name for node in graph.node for name in node.output)]
    names = [name for name in there if types.get(name) == "float32" and (wanted is None or name in wanted)]
    graph.initializer.append(numpy_helper.from_array(np.array(np.inf, "float32"), "magnitude_of_nan"))
    outputs = []
    for i, name in enumerate(names):  # as numbers, not as tensors: those would all be kept in memory
        numbers, odd, size, top = (
            f"{what}_{i}" for what in ("magnitude", "is_nan", "magnitude_or_infinity", "largest")
        )
        graph.node.extend(
            [
                helper.make_node("Abs", [name], [numbers], numbers),
                helper.make_node("IsNaN", [name], [odd], odd),
                helper.make_node("Where", [odd, "magnitude_of_nan", numbers], [size], size),
                helper.make_node("ReduceMax", [size], [top], top, keepdims=0),
            ]
        )
        outputs.append(helper.make_tensor_value_info(top, onnx_package.TensorProto.FLOAT, []))
    del graph.output[:]
    graph.output.extend(outputs)
    session, found = _session(proto), dict.fromkeys(names, 0.0)  # of no numbers the largest is 0 too
    seen = 0
    for batch in batches(proto, feeds, rows):
        for name, value in zip(names, session.run(None, batch), strict=True):
            found[name] = max(found[name], float(value))
        seen += len(next(iter(batch.values()), ()))
        if most is not None and seen >= most:
            break
    return found


def values_of(onnx: bytes, feeds: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array]:
    """Return float tensors inside a graph, as ONNX Runtime computes them.

    Args:
        onnx: a serialized `onnx.ModelProto`.
        feeds: rows for its inputs.
        wanted: names of tensors; those of other types are left out.
    """
    return next(values_by_batch(onnx, feeds, wanted, rows=None))


def values_by_batch(
    onnx: bytes, feeds: Mapping[str, Array], wanted: Collection[str], rows: int | None = ROWS
) -> Iterator[dict[str, Array]]:
    """Yield what `values_of` returns for some rows after others; all at once where `rows` is `None`."""
    import onnx as onnx_package

    proto = onnx_package.load_from_string(onnx)
    types = tensor_types(onnx)
    inputs = {value.name for value in proto.graph.input}
    names = [name for name in wanted if types.get(name) in ("float32", "float16") and name not in inputs]
    del proto.graph.output[:]
    for name in names:
        kind = onnx_package.helper.np_dtype_to_tensor_dtype(np.dtype(types[name]))
        proto.graph.output.append(onnx_package.helper.make_tensor_value_info(name, kind, None))
    session = _session(proto) if names else None
    for batch in batches(proto, feeds, rows):
        made = {} if session is None else dict(zip(names, session.run(None, batch), strict=True))
        yield {**{name: batch[name] for name in wanted if name in inputs}, **made}


def batches(proto: Any, feeds: Mapping[str, Array], rows: int | None) -> Iterator[dict[str, Array]]:
    """Yield some rows after others of what a graph reads, in batches of its size where it fixes that.

    The last batch of a fixed size has rows of the one before too.
    """
    first = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    given = {name: array for name, array in feeds.items() if name in {value.name for value in proto.graph.input}}
    count = len(next(iter(given.values())))
    size = count if rows is None else first or rows
    for start in range(0, count, size):
        begin = max(0, min(start, count - first)) if first else start
        yield {name: array[begin : begin + size] for name, array in given.items()}


def _session(proto: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
