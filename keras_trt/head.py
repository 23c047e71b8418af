"""What cannot be on a GPU stays in front of it: a model is cut behind layers that take strings or look values up.

The *head* is what must run on the CPU and all that leads to it; TensorFlow runs it as one traced function. The *tail*
is a Keras model of everything else: it is what is exported, verified and cached, so that vocabularies are in no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from . import policies
from .errors import ExportError, InputError
from .export.signature import input_signature
from .fingerprint.libraries import is_library_class
from .inputs import Array
from .specs import Signature, TensorSpec, flatten

_HALF = ("float16", "bfloat16")


class Head:
    """The part of a model that TensorFlow runs on the CPU, in front of the engine. May be called from many threads.

    It is a snapshot, as the engine is: a vocabulary that is set later does not reach it.

    Args:
        model: the whole Keras model.
        piece: its two parts.

    Attributes:
        model: the whole Keras model.
        tail: the Keras model from what the head gives, and those inputs that do not need it, to the outputs.
        signature: the inputs of the whole model.
        layers: what runs on the CPU, by name.
        rows_independent: whether the head gives the same for a row whatever its batch. Not so where its outputs are
            as long as the longest row, and not known of layers that are not Keras's own.

    Raises:
        ExportError: if the head gives something that no engine takes; names the layer.
    """

    def __init__(self, model: Any, piece: _Piece) -> None:
        self.model = model
        self.tail = piece.tail
        self.signature: Signature = input_signature(model, strings=True)
        self.layers = tuple(dict.fromkeys(call.name for call in piece.calls if call.on_cpu))
        self.rows_independent = all(None not in tensor.shape[1:] for tensor in piece.cuts) and all(
            _keeps_rows_apart(call.operation) for call in piece.calls
        )
        self._passes, self._takes = piece.passes, piece.takes
        self._specs = [self.signature.inputs[place] for place in self._takes]
        self._tables = [table for layer in piece.head._flatten_layers() for table in _tables(layer)]  # kept alive
        with policies.full_float32(model):
            self._function = self._trace(piece)

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """Return the flat inputs of the tail for flat inputs of the whole model.

        Raises:
            InputError: for an array that holds something else than strings, and for values that a layer refuses.
        """
        import tensorflow as tf

        with tf.device("/CPU:0"):
            tensors = [_tensor(inputs[place], spec) for place, spec in zip(self._takes, self._specs, strict=True)]
            try:
                outputs = self._function(*tensors)
            except tf.errors.InvalidArgumentError as error:  # such as a word that a table without a place for it lacks
                raise InputError(f"A layer of '{self.model.name}' refuses the data: {error.message}") from error
        return [*(inputs[place] for place in self._passes), *(np.asarray(output) for output in outputs)]

    def whole(self, signature: Signature) -> Signature:
        """Return the signature of the whole model, whose outputs are those of `signature`, the tail's."""
        return replace(self.signature, outputs=signature.outputs, output_structure=signature.output_structure)

    def _trace(self, piece: _Piece) -> Any:
        import tensorflow as tf

        def run(*inputs: Any) -> list[Any]:
            return flatten(piece.head(list(inputs), training=False))

        specs = [tf.TensorSpec(spec.shape, spec.dtype) for spec in self._specs]
        try:
            with tf.device("/CPU:0"):
                traced = tf.function(run, input_signature=specs, autograph=False)
                function = traced.get_concrete_function()
        except Exception as error:  # a layer's own code runs here and may raise anything
            raise ExportError(
                f"The part of '{self.model.name}' that runs on the CPU could not be traced: {error}"
            ) from error
        for name, wanted, got in zip(
            piece.cut_names, piece.cut_inputs, flatten(function.structured_outputs), strict=True
        ):
            if not isinstance(got, tf.Tensor):
                raise ExportError(
                    f"The layer '{name}' gives a {type(got).__name__}, and an engine takes dense tensors. Let it give "
                    "those (ragged=False, sparse=False), or put a layer behind it that makes it dense.",
                    layer=name,
                )
            if got.dtype.name != wanted.dtype or not got.shape.is_compatible_with(wanted.shape):
                raise ExportError(
                    f"The layer '{name}' gives {got.dtype.name} of shape {got.shape}, and Keras recorded "
                    f"{wanted.dtype} of shape {wanted.shape}.",
                    layer=name,
                )
        return function


def split(model: Any) -> Head | None:
    """Return the head of a model, or `None` for a model that an engine can run as a whole, as most are.

    Args:
        model: a built `keras.Model`.

    Raises:
        ExportError: if a layer must run on the CPU and is not at the head, if the model is no graph of layers that can
            be cut, or if nothing is left for an engine. Names the layer.
    """
    graph = _graph(model)
    if graph is None:
        _refuse_in_a_class(model)
        return None
    piece = _cut(graph, model.name)
    if piece is None:
        return None
    if piece.tail is None:
        names = ", ".join(repr(call.name) for call in piece.calls if call.on_cpu)
        raise ExportError(f"Nothing of '{model.name}' is left for an engine: its outputs come from {names} themselves.")
    return Head(model, piece)


@dataclass(eq=False)
class _Call:
    """One call of an operation in a graph.

    Attributes:
        operation: a layer or another operation of Keras.
        arguments: Keras's `SymbolicArguments`.
        outputs: its flat outputs.
        on_cpu: whether no engine can run it.
        name: the path of the layer to name in errors.
    """

    operation: Any
    arguments: Any
    outputs: list[Any]
    on_cpu: bool
    name: str


@dataclass
class _Piece:
    """A graph cut in two.

    Attributes:
        calls: what the head does, in order.
        cuts: the tensors between head and tail, of the graph that was cut.
        cut_names: the layers that give them.
        takes: places of the inputs that the head takes.
        passes: places of the inputs that the tail takes.
        head: a Keras model from a list of the inputs in `takes` to a list of the cuts.
        tail: a Keras model from a list of the inputs in `passes` and the cuts; `None` where it would do nothing.
        cut_inputs: the tail's inputs that stand for the cuts.
    """

    calls: list[_Call]
    cuts: list[Any]
    cut_names: list[str]
    takes: list[int]
    passes: list[int]
    head: Any = None
    tail: Any = None
    cut_inputs: list[Any] = field(default_factory=list)


def _cut(graph: Any, name: str) -> _Piece | None:
    """Cut a Functional graph behind its last calls that must be on the CPU; `None` where it has no such call.

    Layers are shared with the graph, as Keras shares them when a model is made from tensors of another.
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
                f"An output of '{name}' is the strings that '{source}' gives, and no engine gives strings. Make a "
                "model without this output.",
                layer=source,
            )
    cuts = [tensor for call in calls for tensor in call.outputs if id(tensor) in ends]
    before, starts = _reach(cuts, producer, lambda _: False)
    ordered = [call for call in calls if call in before]
    _check_at_the_head(ordered, producer)
    piece = _Piece(
        calls=ordered,
        cuts=cuts,
        cut_names=[producer[id(tensor)].name for tensor in cuts],
        takes=[place for place, tensor in enumerate(graph._inputs) if id(tensor) in starts],
        passes=[place for place, tensor in enumerate(graph._inputs) if id(tensor) in ends],
    )
    piece.head = _assemble({id(t): t for t in (graph._inputs[i] for i in piece.takes)}, ordered, cuts, name)
    if behind:
        given = {id(tensor): tensor for tensor in (graph._inputs[place] for place in piece.passes)}
        taken = {call.operation.name for call in behind} | {
            tensor._keras_history.operation.name for tensor in given.values()
        }
        for tensor, layer in zip(cuts, piece.cut_names, strict=True):
            given[id(tensor)] = _input_for(tensor, layer.replace("/", "_"), taken)
            piece.cut_inputs.append(given[id(tensor)])
        piece.tail = _assemble(given, [call for call in calls if call in behind], graph._outputs_struct, name)
    return piece


def _calls(graph: Any) -> list[_Call]:
    """Return the calls of a graph from inputs to outputs; a nested model that is cut becomes two."""
    pieces: dict[int, _Piece | None] = {}
    calls: list[_Call] = []
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            if not node.is_input:
                calls += _calls_of(node, pieces)
    return calls


def _calls_of(node: Any, pieces: dict[int, _Piece | None]) -> list[_Call]:
    from keras.src.ops.symbolic_arguments import SymbolicArguments

    operation, name = node.operation, str(node.operation.name)
    inner = _graph(operation)
    if inner is None or any(tensor.dtype == "string" for tensor in node.outputs):
        on_cpu = _is_for_the_cpu(operation, [*node.input_tensors, *node.outputs])
        return [_Call(operation, node.arguments, node.outputs, on_cpu, name)]
    if id(operation) not in pieces:
        pieces[id(operation)] = _cut(inner, name)
    piece = pieces[id(operation)]
    if piece is None or piece.tail is None:
        return [_Call(operation, node.arguments, node.outputs, piece is not None, name)]
    cuts = [_like(tensor) for tensor in piece.cuts]
    given = node.input_tensors
    to_head = SymbolicArguments([given[place] for place in piece.takes])
    to_tail = SymbolicArguments([*(given[place] for place in piece.passes), *cuts])
    return [
        _Call(piece.head, to_head, cuts, True, f"{name}/{piece.cut_names[0]}"),
        _Call(piece.tail, to_tail, node.outputs, False, name),
    ]


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
    for call in calls:
        if not call.on_cpu:
            continue
        if _weights(call):
            raise ExportError(
                f"The layer '{call.name}' ({_kind(call)}) must run on the CPU, since it takes strings or looks values "
                "up, and it has weights. Make two layers of it, so that those weights can be in the engine.",
                layer=call.name,
            )
        before, _ = _reach(call.arguments.keras_tensors, producer, lambda _: False)
        if weighted := next((other for other in calls if other in before and _weights(other)), None):
            raise ExportError(
                f"The layer '{call.name}' ({_kind(call)}) must run on the CPU, and it is behind '{weighted.name}', "
                "which runs in the engine. Put it in front of all layers with weights, or make a model that ends before "
                "it and apply it to what `predict` returns.",
                layer=call.name,
            )


def _assemble(given: dict[int, Any], calls: Sequence[_Call], outputs: Any, name: str) -> Any:
    """Return a Keras model of some calls, with the layers as they are and nothing traced.

    Args:
        given: the new model's inputs by the `id` of the tensors that they stand for.
        calls: from inputs to outputs.
        outputs: tensors of the old graph, nested.
        name: for the model.
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


def _input_for(tensor: Any, name: str, taken: set[str]) -> Any:
    """Return a `keras.Input` like `tensor`, under a name that no other has; half precision crosses as float32."""
    import keras

    distinct, number = name, 1
    while distinct in taken:
        distinct, number = f"{name}_{number}", number + 1
    taken.add(distinct)
    dtype = "float32" if tensor.dtype in _HALF else tensor.dtype
    return keras.Input(batch_shape=tensor.shape, dtype=dtype, name=distinct)


def _like(tensor: Any) -> Any:
    import keras

    return keras.KerasTensor(tensor.shape, tensor.dtype, sparse=tensor.sparse)


def _graph(layer: Any) -> Any:
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

    return isinstance(layer, keras.layers.Hashing | keras.layers.HashedCrossing) or bool(_tables(layer))


def _tables(layer: Any) -> list[Any]:
    """Return a layer's lookup tables; TensorFlow has no public class for all kinds of them."""
    return [item for item in vars(layer).values() if hasattr(item, "key_dtype") and hasattr(item, "lookup")]


def _refuse_in_a_class(model: Any) -> None:
    for layer in model._flatten_layers():
        if _looks_up(layer):
            name = layer.path or layer.name
            raise ExportError(
                f"The layer '{name}' ({type(layer).__name__}) must run on the CPU, and '{model.name}' is a class with "
                "a `call` of its own, which cannot be cut behind it. Make a Functional model, "
                "keras.Model(inputs, model_without_it(layer(inputs))).",
                layer=name,
            )


def _keeps_rows_apart(operation: Any) -> bool:
    import keras

    if _graph(operation) is not None:
        return all(map(_keeps_rows_apart, operation.layers))
    known = isinstance(operation, keras.Layer) and is_library_class(type(operation))
    return known and not isinstance(operation, keras.layers.Lambda)


def _weights(call: _Call) -> bool:
    return bool(getattr(call.operation, "weights", ()))


def _kind(call: _Call) -> str:
    return type(call.operation).__name__


def _tensor(array: Array, spec: TensorSpec) -> Any:
    import tensorflow as tf

    try:
        return tf.convert_to_tensor(array, spec.dtype)
    except (TypeError, ValueError) as error:  # an array of objects that are not all strings
        raise InputError(
            f"Input '{spec.name}' takes {spec.dtype}. Received: an array of {array.dtype} with something else in it "
            f"({error}).",
            input_name=spec.name,
            expected=spec.dtype,
            received=str(array.dtype),
        ) from error
