"""Float32 → float16 and bfloat16 graphs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from . import kinds

#: The first opsets at which the operators that networks are made of have a form in the type.
_OPSETS = {"fp16": 17, "bf16": 22}


def lower(
    onnx: bytes, precision: Literal["fp16", "bf16"], keep: Collection[str] = (), opset: int | None = None
) -> bytes:
    """Convert a float32 graph to half precision, with float32 inputs and outputs.

    ONNX Runtime's converter has no bfloat16 and clamps what float16 cannot hold; ModelOpt's needs PyTorch. Both
    decide operator by operator. Here it is decided by what stands around a node: `kinds.halves`.

    Args:
        onnx: a serialized float32 `onnx.ModelProto`.
        precision: the half type.
        keep: names of nodes that compute in float32.
        opset: the smallest opset of the result. Defaults to `None`: what the type needs.

    Returns:
        The typed graph, checked.
    """
    import onnx as onnx_package
    import onnx_ir as ir
    from onnx_ir.passes import common

    proto = onnx_package.load_from_string(onnx)
    wanted = max(_OPSETS[precision], opset or 0)
    if proto.opset_import[0].version < wanted:
        proto = onnx_package.version_converter.convert_version(proto, wanted)
    model = ir.from_proto(proto)
    common.NameFixPass()(model)
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)  # without carrying the weights along
    common.LiftConstantsToInitializersPass(lift_all_constants=True)(model)
    common.TopologicalSortPass()(model)
    low = ir.DataType.FLOAT16 if precision == "fp16" else ir.DataType.BFLOAT16
    _Casts(model, low, keep).insert()
    return finished(model)


def finished(model: Any) -> bytes:
    """Return a rewritten `onnx_ir.Model` as a serialized `onnx.ModelProto`: sorted, named, and checked."""
    import onnx as onnx_package
    import onnx_ir as ir
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
    common.NameFixPass()(model)
    typed = ir.to_proto(model)
    onnx_package.checker.check_model(typed, full_check=True)
    return bytes(typed.SerializeToString(deterministic=True))


def lowered(names: Collection[str]) -> frozenset[str]:
    """Return the names that initializers of a float32 graph may bear in its typed forms, their own included."""
    return frozenset(names) | {_name(name, kind) for name in names for kind in ("float16", "bfloat16")}


def _name(name: str, kind: str) -> str:
    return f"{name}/{kind}"


class _Casts:
    """Gives the nodes that compute in half what they read in half, and all others what they read in float32."""

    def __init__(self, model: Any, low: Any, keep: Collection[str]) -> None:
        import onnx_ir as ir

        self._ir = ir
        self._graph = model.graph
        self._low = low
        self._opset = model.opset_imports[""]
        self._nodes = list(model.graph.all_nodes())
        self._halves = kinds.halves(self._nodes, low, self._opset, keep)
        self._made: dict[tuple[Any, Any], Any] = {}

    def insert(self) -> None:
        slots = {node: list(kinds.low_slots(node, self._low, self._opset)) for node in self._halves}
        made_low = {value for node in self._halves for value in kinds.low_outputs(node, self._opset)}
        for value in made_low:
            value.dtype = self._low
        for node in self._nodes:
            if node in self._halves:
                for place, value in slots[node]:
                    if value not in made_low:
                        node.replace_input_with(place, self._as(value, self._low))
            elif node.op_type not in ("Cast", "Shape", "Size"):  # these take any type
                for place, value in enumerate(node.inputs):
                    if value in made_low:
                        node.replace_input_with(place, self._as(value, self._ir.DataType.FLOAT))
        for graph in (self._graph, *self._graph.subgraphs()):
            for place, value in enumerate(graph.outputs):
                if value in made_low:
                    graph.outputs[place] = self._as_output(value)

    def _as(self, value: Any, dtype: Any) -> Any:
        """Return a value in another type: one cast for all its readers, or the constant itself in that type."""
        if (value, dtype) not in self._made:
            name = _name(value.name, dtype.name.lower())
            if value.const_value is not None:
                array = value.const_value.numpy().astype(dtype.numpy())
                new = self._ir.Value(
                    name=name,
                    shape=value.shape,
                    type=self._ir.TensorType(dtype),
                    const_value=self._ir.tensor(array, dtype=dtype, name=name),
                )
                (value.graph or self._graph).register_initializer(new)
            else:
                new = self._cast(value, dtype, name)
            self._made[value, dtype] = new
        return self._made[value, dtype]

    def _as_output(self, value: Any) -> Any:
        """Return what takes the place and name of an output: TensorRT's parser does not cast to declared types."""
        name = value.name
        value.name = f"{name}/{self._low.name.lower()}"
        return self._cast(value, self._ir.DataType.FLOAT, name)

    def _cast(self, value: Any, dtype: Any, name: str) -> Any:
        node = self._ir.node("Cast", [value], {"to": int(dtype)}, name=f"{name}/cast")
        (new,) = node.outputs
        new.name, new.dtype, new.shape = name, dtype, value.shape
        producer = value.producer()
        if producer is not None:
            producer.graph.insert_after(producer, node)
        else:  # an input, of the graph or of a subgraph
            graph = value.graph
            graph.insert_before(graph[0], node)
        return new
