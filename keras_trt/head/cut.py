"""A graph of Keras layers in two: what must be on the CPU with all that leads to it, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import policies
from ..errors import ExportError
from ..fingerprint.model_digest import given_name
from ..specs import flatten


@dataclass(eq=False)
class _Call:
    """One call of an operation in a graph.

    Attributes:
        operation: a layer or another operation of Keras.
        arguments: Keras's `SymbolicArguments`.
        outputs: its flat outputs.
        on_cpu: whether no engine can run it.
        name: the path of the layer to name in errors.
        cut_names: names for the inputs of a tail that stand for the outputs, without what Keras made up.
    """

    operation: Any
    arguments: Any
    outputs: list[Any]
    on_cpu: bool
    name: str
    cut_names: list[str]


@dataclass
class Piece:
    """A graph cut in two.

    Attributes:
        calls: what the head does, in order.
        cuts: the tensors between head and tail, of the graph that was cut.
        takes: places of the inputs that the head takes.
        passes: places of the inputs that the tail takes.
        head: a Keras model from a list of the inputs in `takes` to a list of the cuts.
        function: the head as a TensorFlow `ConcreteFunction` of flat tensors.
        tail: a Keras model from a list of the inputs in `passes` and the cuts; `None` where it would do nothing.
        cut_inputs: the tail's inputs that stand for the cuts.
    """

    calls: list[_Call]
    cuts: list[Any]
    takes: list[int]
    passes: list[int]
    head: Any = None
    function: Any = None
    tail: Any = None
    cut_inputs: list[Any] = field(default_factory=list)


def cut(graph: Any, name: str | None) -> Piece | None:
    """Cut a Functional graph behind its last calls that must be on the CPU; `None` where it has no such call.

    Layers are shared with the graph, as Keras shares them when a model is made from tensors of another.

    Args:
        graph: a Functional model, as `graph_of` returns it.
        name: for both parts; `None` lets Keras make names up.

    Raises:
        ExportError: if it cannot be cut so that no weights are in front of the cut, and dense numbers alone cross it.
    """
    calls = _calls(graph)
    if not any(call.on_cpu for call in calls):
        return None
    producer = {id(tensor): call for call in calls for tensor in call.outputs}
    behind, ends = _reach(graph._outputs, producer, lambda call: call.on_cpu)
    for tensor in ends.values():
        if tensor.dtype == "string":
            source = producer[id(tensor)].name if id(tensor) in producer else tensor._keras_history.operation.name
            raise ExportError(
                f"An output of '{graph.name}' is the strings that '{source}' gives, and no engine gives strings. Make "
                "a model without this output.",
                layer=source,
            )
    cuts = [tensor for call in calls for tensor in call.outputs if id(tensor) in ends]
    before, starts = _reach(cuts, producer, lambda _: False)
    ordered = [call for call in calls if call in before]
    _check_at_the_head(ordered, producer)
    piece = Piece(
        calls=ordered,
        cuts=cuts,
        takes=[place for place, tensor in enumerate(graph._inputs) if id(tensor) in starts],
        passes=[place for place, tensor in enumerate(graph._inputs) if id(tensor) in ends],
    )
    given = {id(tensor): tensor for tensor in (graph._inputs[place] for place in piece.takes)}
    piece.head = _assemble(given, ordered, cuts, name)
    piece.function = _traced(piece.head, name)
    if behind:
        given = {id(tensor): tensor for tensor in (graph._inputs[place] for place in piece.passes)}
        taken = {call.operation.name for call in behind}
        taken |= {tensor._keras_history.operation.name for tensor in given.values()}
        for tensor, traced in zip(cuts, flatten(piece.function.structured_outputs), strict=True):
            given[id(tensor)] = _input_for(tensor, traced, producer[id(tensor)], taken)
            piece.cut_inputs.append(given[id(tensor)])
        piece.tail = _assemble(given, [call for call in calls if call in behind], graph._outputs_struct, name)
    return piece


def _calls(graph: Any) -> list[_Call]:
    """Return the calls of a graph from inputs to outputs; a nested model that is cut becomes two."""
    pieces: dict[int, Piece | None] = {}
    calls: list[_Call] = []
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            if not node.is_input:
                calls += _calls_of(node, pieces)
    return calls


def _calls_of(node: Any, pieces: dict[int, Piece | None]) -> list[_Call]:
    from keras.src.ops.symbolic_arguments import SymbolicArguments

    operation, name = node.operation, str(node.operation.name)
    plain = [_lasting(operation)] * len(node.outputs)
    inner = graph_of(operation)
    if inner is None or not _is_plain(node) or any(tensor.dtype == "string" for tensor in node.outputs):
        on_cpu = _is_for_the_cpu(operation, [*node.input_tensors, *node.outputs])
        return [_Call(operation, node.arguments, node.outputs, on_cpu, name, plain)]
    if id(operation) not in pieces:
        pieces[id(operation)] = cut(inner, given_name(operation) or None)
    piece = pieces[id(operation)]
    if piece is None or piece.tail is None:
        return [_Call(operation, node.arguments, node.outputs, piece is not None, name, plain)]
    cuts = [_like(tensor) for tensor in piece.cuts]
    names = [f"{_lasting(operation)}_{tensor._keras_history.operation.name}" for tensor in piece.cut_inputs]
    first = next(call.name for call in piece.calls if call.on_cpu)
    given, argument = node.input_tensors, node.arguments.args[0]
    if isinstance(argument, dict) and not isinstance(inner._inputs_struct, dict):
        given = [argument[tensor.name] for tensor in inner._inputs]  # as Keras finds them
    to_head = SymbolicArguments([given[place] for place in piece.takes])
    to_tail = SymbolicArguments([*(given[place] for place in piece.passes), *cuts])
    return [
        _Call(piece.head, to_head, cuts, True, f"{name}/{first}", names),
        _Call(piece.tail, to_tail, node.outputs, False, name, []),
    ]


def _is_plain(node: Any) -> bool:
    """Tell whether a nested model is called with its inputs alone: no mask, and not as in training."""
    keywords = flatten(node.arguments.kwargs)  # Keras adds a mask of `None`s
    return len(node.arguments.args) == 1 and all(value is None or value is False for value in keywords)


def _reach(
    tensors: Sequence[Any], producer: dict[int, _Call], stop: Callable[[_Call], bool]
) -> tuple[set[_Call], dict[int, Any]]:
    """Return the calls that lead to `tensors`, and the tensors at which that walk ends."""
    found: set[_Call] = set()
    ends: dict[int, Any] = {}
    todo = list(tensors)
    while todo:
        tensor = todo.pop()
        call = producer.get(id(tensor))
        if call is None or stop(call):
            ends[id(tensor)] = tensor
        elif call not in found:
            found.add(call)
            todo += call.arguments.keras_tensors
    return found, ends


def _check_at_the_head(calls: Sequence[_Call], producer: dict[int, _Call]) -> None:
    """Refuse a head that has weights: a network belongs into the engine."""
    weighted = [call for call in calls if getattr(call.operation, "weights", ())]
    for call in (call for call in calls if call.on_cpu):
        kind = type(call.operation).__name__
        if call in weighted:
            raise ExportError(
                f"The layer '{call.name}' ({kind}) must run on the CPU, since it takes strings or looks values "
                "up, and it has weights. Make two layers of it, so that those weights can be in the engine.",
                layer=call.name,
            )
        before, _ = _reach(call.arguments.keras_tensors, producer, lambda _: False)
        if network := next((other for other in weighted if other in before), None):
            raise ExportError(
                f"The layer '{call.name}' ({kind}) must run on the CPU, and it is behind '{network.name}', "
                "which runs in the engine. Put it in front of all layers with weights, or make a model that ends "
                "before it and apply it to what `predict` returns.",
                layer=call.name,
            )


def _assemble(given: dict[int, Any], calls: Sequence[_Call], outputs: Any, name: str | None) -> Any:
    """Return a Keras model of some calls, with the layers as they are and nothing traced.

    Args:
        given: the new model's inputs by the `id` of the tensors that they stand for.
        calls: from inputs to outputs.
        outputs: tensors of the old graph, nested.
        name: for the model; `None` lets Keras make one up.
    """
    import keras
    from keras.src.ops.node import Node

    tensors = dict(given)
    for call in calls:
        arguments, keywords = call.arguments.fill_in(tensors)
        fresh = [_like(tensor) for tensor in call.outputs]
        Node(call.operation, call_args=arguments, call_kwargs=keywords, outputs=fresh)
        tensors.update(zip(map(id, call.outputs), fresh, strict=True))
    ends = keras.tree.map_structure(lambda tensor: tensors[id(tensor)], outputs)
    return keras.Model(list(given.values()), ends, name=name)


def _traced(head: Any, name: str | None) -> Any:
    """Trace a head on the CPU, in float32, as the tail is exported."""
    import tensorflow as tf

    def run(*inputs: Any) -> list[Any]:
        outputs = flatten(head(list(inputs), training=False))
        if any(getattr(output, "_keras_mask", None) is not None for output in outputs):
            raise TypeError("it gives a mask, which an engine cannot be handed")
        return outputs

    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in head.inputs]
    try:
        with policies.in_float32(head), tf.device("/CPU:0"):
            return tf.function(run, input_signature=specs, autograph=False).get_concrete_function()
    except Exception as error:  # a layer's own code runs here and may raise anything
        raise ExportError(f"The part of '{name}' that runs on the CPU could not be traced: {error}") from error


def _input_for(tensor: Any, traced: Any, call: _Call, taken: set[str]) -> Any:
    """Return a `keras.Input` for what crosses the cut, under a name that is not taken.

    Its type is the traced one: what Keras records of a lookup is not always true.

    Raises:
        ExportError: if it is something else than a dense tensor of numbers.
    """
    import keras
    import tensorflow as tf

    dense = isinstance(traced, tf.Tensor)
    if not dense or traced.dtype == tf.string:
        raise ExportError(
            f"The layer '{call.name}' gives a {'tensor of strings' if dense else type(traced).__name__}, and an engine "
            "takes dense tensors of numbers. Let it give those (ragged=False, sparse=False), or put a layer behind it "
            "that makes them.",
            layer=call.name,
        )
    wanted = name = call.cut_names[next(i for i, output in enumerate(call.outputs) if output is tensor)]
    number = 1
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    taken.add(name)
    shape = traced.shape.merge_with(tensor.shape).as_list()
    return keras.Input(batch_shape=shape, dtype=traced.dtype.name, name=name)


def _lasting(operation: Any) -> str:
    """Return the name that a user gave, or that of the class: numbers that Keras made up change from call to call."""
    from keras.src.utils.naming import to_snake_case

    return given_name(operation) or str(to_snake_case(type(operation).__name__))


def _like(tensor: Any) -> Any:
    import keras

    return keras.KerasTensor(tensor.shape, tensor.dtype, sparse=tensor.sparse)


def graph_of(layer: Any) -> Any:
    """Return the Functional graph that a model runs, or `None` for a model or layer with code of its own."""
    import keras
    from keras.src.models.functional import Functional

    if isinstance(layer, keras.Sequential):
        return layer._functional if type(layer).call is keras.Sequential.call else None
    return layer if isinstance(layer, Functional) and type(layer).call is Functional.call else None


def _is_for_the_cpu(operation: Any, tensors: Sequence[Any]) -> bool:
    """Tell whether no engine can run an operation: strings go in or come out, or it looks values up in a table."""
    import keras

    if any(tensor.dtype == "string" for tensor in tensors):
        return True
    return isinstance(operation, keras.Layer) and any(_looks_up(layer) for layer in operation._flatten_layers())


def _looks_up(layer: Any) -> bool:
    """Tell whether a layer has a table, or hashes: that goes through strings, of integers too."""
    import keras

    return isinstance(layer, keras.layers.Hashing | keras.layers.HashedCrossing) or bool(tables(layer))


def tables(layer: Any) -> list[Any]:
    """Return a layer's lookup tables; TensorFlow has no public class for all kinds of them."""
    return [item for item in vars(layer).values() if hasattr(item, "key_dtype") and hasattr(item, "lookup")]


def refuse_lookups(model: Any, why: str) -> None:
    """Refuse a model that cannot be cut if one of its layers must run on the CPU.

    Args:
        model: a `keras.Model`.
        why: the rest of the sentence.

    Raises:
        ExportError: names the layer.
    """
    for layer in model._flatten_layers():
        if _looks_up(layer):
            name = layer.path or layer.name
            raise ExportError(f"The layer '{name}' ({type(layer).__name__}) must run on the CPU, {why}", layer=name)
