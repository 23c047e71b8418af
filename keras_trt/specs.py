"""Shapes, types and nested structures of a model's inputs and outputs, and what batches cost, in plain data.

Everything here can be written as JSON and read again without Keras: it is stored beside each engine.
"""

from __future__ import annotations

import math
import sys
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

#: A nested structure whose leaves are replaced by their position in the flat list, as JSON: an integer is a
#: leaf, `{"list": […]}`, `{"tuple": […]}` and `{"dict": {…}}` are containers. Of what is given back `{"ordered":
#: [[key, …], …]}` is a dict whose keys are not in their sorted order, and `{"named": ["module:Class", [field, …], …]}`
#: a named tuple.
Structure = int | dict[str, Any]


_DTYPES = {"bool", "float16", "bfloat16", "float32", "float64", "string"}
_DTYPES |= {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and type of one input or output.

    Args:
        name: the Keras name, which is also the tensor's name in the ONNX graph and in the engine.
        shape: `(batch, …)`; `None` marks an axis of any size.
        dtype: numpy's name of the type, such as `"float32"`.

    Example:
    >>> TensorSpec("image", (None, 224, 224, 3), "uint8")
    TensorSpec(name='image', shape=(None, 224, 224, 3), dtype='uint8')
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def to_json(self) -> dict[str, Any]:
        """Return this spec as JSON data."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TensorSpec:
        """Return the spec that `to_json` described.

        Raises:
            ValueError, TypeError, KeyError: if it was not `to_json`.
        """
        spec = cls(data["name"], tuple(data["shape"]), data["dtype"])
        if not isinstance(spec.name, str) or spec.dtype not in _DTYPES:
            raise ValueError(f"a tensor is told by its name and type, and not by {data!r}")
        if not all(size is None or (type(size) is int and size >= 0) for size in spec.shape):
            raise ValueError(f"a shape holds sizes, and not {data['shape']!r}")
        return spec


@dataclass(frozen=True)
class ShapeRange:
    """The smallest, the most usual and the largest shape of one input, batch axis included.

    Args:
        min: smallest shape the engine takes.
        opt: the shape that TensorRT optimizes for.
        max: largest shape the engine takes.

    Raises:
        ValueError: if the ranks differ, an axis is negative, or not min ≤ opt ≤ max on every axis. (TensorRT
            itself accepts such shapes silently.)

    Example:
    >>> ShapeRange(min=(1, 16), opt=(32, 128), max=(128, 512))
    ShapeRange(min=(1, 16), opt=(32, 128), max=(128, 512))
    """

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("min", "opt", "max"):
            object.__setattr__(self, name, tuple(int(axis) for axis in getattr(self, name)))
        same_rank = len(self.min) == len(self.opt) == len(self.max)
        if not same_rank or not all(
            0 <= low <= usual <= high for low, usual, high in zip(self.min, self.opt, self.max, strict=True)
        ):
            raise ValueError(
                f"A ShapeRange needs three shapes of one rank with 0 <= min <= opt <= max on every axis. "
                f"Received: {self}"
            )


@dataclass(frozen=True)
class OptimizationProfile:
    """The range of shapes that one engine is built for: a `ShapeRange` for each input.

    Args:
        shapes: from the name of an input to its range.

    Example:
    >>> profile = OptimizationProfile({"tokens": ShapeRange((1, 16), (32, 128), (128, 512))})
    """

    shapes: Mapping[str, ShapeRange]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", dict(self.shapes))
        if (
            len({name_range.min[:1] + name_range.opt[:1] + name_range.max[:1] for name_range in self.shapes.values()})
            > 1
        ):
            raise ValueError(
                f"All inputs of one OptimizationProfile need the same batch sizes (the first axis). Received: {self}"
            )

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.shapes.items(), key=lambda item: item[0])))

    @property
    def batch(self) -> tuple[int, int, int]:
        """The smallest, the most usual and the largest batch size."""
        some = next(iter(self.shapes.values()))
        return some.min[0], some.opt[0], some.max[0]

    def to_json(self) -> dict[str, Any]:
        """Return this profile as JSON data."""
        return {name: [list(r.min), list(r.opt), list(r.max)] for name, r in self.shapes.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OptimizationProfile:
        """Return the profile that `to_json` described.

        Raises:
            ValueError, TypeError: if it was not `to_json`.
        """
        if not all(type(size) is int for shapes in data.values() for shape in shapes for size in shape):
            raise ValueError(f"shapes are of whole numbers, and not {data!r}")
        return cls({name: ShapeRange(*map(tuple, shapes)) for name, shapes in data.items()})


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model: flat specs, and the nested structure that Keras users see.

    Args:
        inputs: specs in the order in which Keras flattens the inputs.
        outputs: likewise.
        input_structure: the nesting of the inputs; its leaves are positions in `inputs`.
        output_structure: likewise.
        types_guessed: whether the model does not say its inputs' types, so that they were taken to be its own
            float type.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_structure: Structure
    output_structure: Structure
    types_guessed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return this signature as JSON data."""
        return {
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "input_structure": self.input_structure,
            "output_structure": self.output_structure,
            "types_guessed": self.types_guessed,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        """Return the signature that `to_json` described.

        Raises:
            ValueError, TypeError, KeyError: if it was not `to_json`.
        """
        inputs, outputs = (tuple(map(TensorSpec.from_json, data[kind])) for kind in ("inputs", "outputs"))
        structures = data["input_structure"], data["output_structure"]
        for specs, structure in zip((inputs, outputs), structures, strict=True):
            names = [spec.name for spec in specs]
            positions = sorted(position for position, _ in leaf_paths(structure))
            if len({*names}) < len(names) or positions != list(range(len(names))):
                raise ValueError(f"{structure!r} is no nesting of {names}")
            pack(structure, names)  # which fails for what is no name of a class or field
        if not isinstance(data["types_guessed"], bool):
            raise ValueError(f"types are guessed or not, and not {data['types_guessed']!r}")
        return cls(inputs, outputs, *structures, data["types_guessed"])

    def with_inputs_of(self, live: Sequence[TensorSpec]) -> Signature:
        """Return this signature with the input names of `live`, a model of the same structure."""
        renamed = tuple(replace(spec, name=other.name) for spec, other in zip(self.inputs, live, strict=True))
        return replace(self, inputs=renamed)


def flatten(value: Any) -> list[Any]:
    """Return the leaves of nested lists, tuples and dicts, dicts by sorted key as Keras does."""
    if isinstance(value, Mapping):
        return [leaf for key in sorted(value) for leaf in flatten(value[key])]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in flatten(item)]
    return [value]


def describe(value: Any, *, exactly: bool = False) -> Structure:
    """Return the structure of nested lists, tuples and dicts, with leaves numbered in the order of `flatten`.

    Args:
        value: what is nested so.
        exactly: whether the order of a dict's keys and the class of a named tuple matter, as in what is given back.
    """
    positions = iter(range(len(flatten(value))))

    def walk(node: Any) -> Structure:
        if isinstance(node, Mapping):
            inside = {key: walk(node[key]) for key in sorted(node)}
            if exactly and list(node) != list(inside):
                return {"ordered": [[key, inside[key]] for key in node]}
            return {"dict": inside}
        if isinstance(node, list | tuple):
            items = [walk(item) for item in node]
            if exactly and (fields := getattr(node, "_fields", None)):
                where = f"{type(node).__module__}:{type(node).__qualname__}"
                return {"named": [where, *map(list, zip(fields, items, strict=True))]}
            return {"list" if isinstance(node, list) else "tuple": items}
        return next(positions)

    return walk(value)


def pack(structure: Structure, leaves: Sequence[Any]) -> Any:
    """Return `leaves` in the nesting that `structure` describes: the reverse of `flatten`."""
    if isinstance(structure, int):
        return leaves[structure]
    packed = {key: pack(child, leaves) for key, child in children(structure)}
    if "dict" in structure or "ordered" in structure:
        return packed
    if "named" in structure:
        where, *items = structure["named"]
        return _named_tuple(where, tuple(name for name, _ in items))(*packed.values())
    return list(packed.values()) if "list" in structure else tuple(packed.values())


def children(structure: dict[str, Any]) -> list[tuple[Any, Structure]]:
    """Return what is directly inside a structure that is no leaf: each with its key, or its place."""
    ((kind, inside),) = structure.items()
    if kind == "dict":
        return list(inside.items())
    if kind == "ordered":
        return [(key, child) for key, child in inside]
    return list(enumerate([child for _, child in inside[1:]] if kind == "named" else inside))


def _named_tuple(where: str, fields: tuple[str, ...]) -> type[Any]:
    """Return the class of a named tuple, or one like it where its module is not imported here."""
    module, name = where.split(":")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type) and getattr(found, "_fields", None) == fields:
        return found
    return _like(name.split(".")[-1], fields)


_like = cache(namedtuple)


def leaf_paths(structure: Structure, path: str = "") -> Iterator[tuple[int, str]]:
    """Yield each leaf's position with its path, such as `(1, "['decoder'][0]")`."""
    if isinstance(structure, int):
        yield structure, path
        return
    for key, child in children(structure):
        yield from leaf_paths(child, f"{path}[{key!r}]")


class Cost(NamedTuple):
    """What a batch takes, in seconds.

    Attributes:
        alone: from its rows on the host to its answers there.
        further: how much longer each takes behind others: its rows are copied while the GPU computes those before.
    """

    alone: float
    further: float


class Pipelining(NamedTuple):
    """How many batches and threads are under way at once.

    Attributes:
        slots: how many batches, each with an execution context.
        threads: how many copy the rows of one.
    """

    slots: int
    threads: int


@dataclass(frozen=True)
class Measured:
    """What was found out about an engine on a machine.

    Attributes:
        costs: what a batch takes, by its size. Empty where that is not measured, as on the host.
        pipelining: what is enough; `None` where nothing but the usual is tried.
    """

    costs: Mapping[int, Cost] = field(default_factory=dict)
    pipelining: Pipelining | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {
            "seconds": [[size, *cost] for size, cost in self.costs.items()],
            "pipelining": self.pipelining and list(self.pipelining),
        }

    @classmethod
    def from_json(cls, document: Any) -> Measured:
        """Return what `to_json` was called on.

        Raises:
            KeyError, TypeError, ValueError: if it is not that.
        """
        costs: dict[int, Cost] = {}
        for size, alone, further in document["seconds"]:
            times = all(isinstance(time, float) and 0 < time < math.inf for time in (alone, further))
            if not _is_count(size) or not times:
                raise ValueError(f"a batch of {size!r} rows cannot take {alone!r} and {further!r}")
            costs[size] = Cost(alone, further)
        pipelining = None if document["pipelining"] is None else Pipelining(*document["pipelining"])
        if pipelining is not None and not all(_is_count(one) and one <= _MANY for one in pipelining):
            raise ValueError(f"a pipeline cannot have {pipelining}")
        return cls(costs, pipelining)


#: More batches or threads than any pipeline has.
_MANY = 1000


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
