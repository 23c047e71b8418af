"""Whether a Keras model is still what it was: noticed in microseconds, decided by the content of its weights."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

from .. import fingerprint
from ..fingerprint.weights_digest import size
from ..head.cut import tables
from ..loading import on_tensorflow
from .beside import beside, of_tensorflow

Change = Literal["weights", "structure"]

#: What writes to a `tf.Variable`. Keras's `assign`, `set_weights` and `load_weights` end here, and eager optimizers;
#: the last two are `variable[…].assign` and `tf.train.Checkpoint.restore`.
_WRITES = (
    *("assign", "assign_add", "assign_sub", "count_up_to"),
    *(f"scatter_{how}" for how in ("add", "sub", "mul", "div", "min", "max", "update")),
    *(f"scatter_nd_{how}" for how in ("add", "sub", "min", "max", "update")),
    *("batch_scatter_update", "_strided_slice_assign", "_restore_from_tensors"),
)
_WATCHES = "_keras_trt_watches"
#: How many numbers a weight may have that is read at every call.
_SMALL = 1 << 16


class Watch:
    """Watches the weights and layers of a model.

    What is written through a variable in Python is seen as it happens. What a `tf.function` writes, as that of `fit`
    does, is seen at the next look by its pulse: the steps that the model's optimizers have made, and a small weight of
    the last layer, which hardly any training leaves as it is. So does what a graph writes that is traced meanwhile, as
    that of another model's `fit` that shares layers: the smallest weight that it writes to is of the pulse too. Layers
    are told by Keras's own bookkeeping. On Keras's other backends every write shows: JAX's arrays are others after one,
    and PyTorch counts what is written to a tensor.

    Variables that the model reads though they are no weights of it, as a `tf.Variable` of a layer, are watched as its
    weights are, and all that are small are of the pulse: no optimizer's steps tell of them.

    Args:
        model: a built `keras.Model`.
        check: `"writes"`, or `"content"` to compare all weights at every look.
        sample: a batch of inputs, for subclassed models whose inputs are not all of the model's float type.
    """

    def __init__(self, model: Any, check: Literal["writes", "content"] = "writes", sample: Any = None) -> None:
        self._model, self._check, self._sample = model, check, sample
        self._change: Change | None = "structure"  # all of it is new
        self._hooked: list[Any] = []
        self._traced: dict[int, tuple[weakref.ref[Any], Any]] = {}  # by graph, the smallest variable that it writes to
        self._states: list[tuple[Any, weakref.ref[Any], int]] = []  # on other backends than TensorFlow
        self.settle()

    def settle(self) -> None:
        """Take the model as it is now for what it is compared with from here on."""
        self._weights = list(self._model.weights)
        if self._change != "weights":  # other values bring no other variables
            self._beside = beside(self._model, self._sample)
        self._hook([*map(of_tensorflow, (*self._weights, *self._beside))] if on_tensorflow() else [])
        self._change = None
        layers = list(self._model._flatten_layers())
        self._sequentials = [layer for layer in layers if hasattr(layer, "_functional")]
        self._adapting = [layer for layer in layers if isinstance(layer, _adapting())]
        self._weighted = [layer for layer in layers if layer._trainable_variables or layer._non_trainable_variables]
        self._held = [held for layer in layers for held in (layer._trainable_variables, layer._non_trainable_variables)]
        self._holders = [layer._layers for layer in layers if layer._layers]
        self._looking_up = [layer for layer in layers if tables(layer)]
        self._parts = self._structure()
        self._remember()
        self._key = self._content()  # last: what is written meanwhile is noticed

    def change(self) -> Change | None:
        """Return what of the model is not as it was, or `None`."""
        quiet = not self._written and self._check == "writes" and self._counts == self._count()
        if quiet and _same(self._marks, self._look()) and self._pulse == self._beat() and not self._rewritten():
            return self._change
        self._remember()
        if not _same(self._weights, self._model.weights) or not _same(self._parts, self._structure()):
            self._change = "structure"
        else:
            self._change = "weights" if self._content() != self._key else None
        return self._change

    def distrust(self) -> None:
        """Say from here on that the weights are not as they were, until it is settled again."""
        self._key, self._change = "", self._change or "weights"

    def close(self) -> None:
        """Leave the model's variables as they were."""
        self._hook([])

    def _content(self) -> str:
        return fingerprint.weights_key(self._model, *self._beside)

    def _remember(self) -> None:
        if not on_tensorflow():
            self._states = [(variable, *_state(variable)) for variable in (*self._model.weights, *self._beside)]
        last = (self._model.trainable_weights or self._weights)[-2:]  # frozen ones may be trained: see `compile`
        small = sorted(last, key=size)
        small = [*small[:1], *(one for one in self._beside if size(one) <= _SMALL)]
        pulse = [of_tensorflow(one) for one in (*_steps(self._model), *small)] if on_tensorflow() else []
        hooked = {id(variable) for variable in self._hooked}
        pulse += [one for _, one in list(self._traced.values()) if id(one) in hooked and size(one) <= _SMALL]
        self._pulse_of = [_reader(variable) for variable in {id(one): one for one in pulse}.values()]
        self._written = False
        self._counts, self._marks, self._pulse = self._count(), self._look(), self._beat()

    def _notice(self, variable: Any) -> None:
        """Learn of a write, which in a graph happens again, without Python, whenever the graph runs."""
        import tensorflow as tf

        self._written = True
        if tf.inside_function():
            graph = tf.compat.v1.get_default_graph()
            of, smallest = self._traced.get(id(graph), (None, variable))
            if of is None or of() is not graph or size(variable) <= size(smallest):
                self._traced[id(graph)] = weakref.ref(graph), variable

    def _beat(self) -> list[bytes]:
        return [read().numpy().tobytes() for read in self._pulse_of]

    def _rewritten(self) -> bool:
        """Tell whether a variable holds another tensor than it did, or one that has been written to."""
        return any(held() is not variable._value or count != _writes(held()) for variable, held, count in self._states)

    def _look(self) -> list[Any]:
        """Return objects that are others once a layer is added or adapted, or the model is compiled or quantized."""
        policies = [layer._dtype_policy for layer in self._weighted]  # others once a layer is quantized
        return [getattr(self._model, "optimizer", None), *policies, *self._replaced()]

    def _count(self) -> list[int]:
        """Return numbers that are others once weights are added, as by `enable_lora`, or layers are taken away."""
        return [*map(len, self._held), *map(len, self._holders)]

    def _replaced(self) -> list[Any]:
        """Return objects that Keras replaces when a layer is added or adapted, or a vocabulary is set."""
        graphs = [layer._functional for layer in self._sequentials]
        adapted = [vars(layer).get(name) for layer in self._adapting for name in ("mean", "variance", "bin_boundaries")]
        return [*graphs, *adapted, *(table for layer in self._looking_up for table in tables(layer))]

    def _structure(self) -> list[Any]:
        """Return all of whose objects another engine is needed when one is another."""
        return [*self._replaced(), *(layer for layers in self._holders for layer in layers)]

    def _hook(self, variables: list[Any]) -> None:
        """Learn of what is written to these variables, and of no other: those that it knows are left as they are."""
        kept = {id(variable) for variable in variables}
        left = [variable for variable in self._hooked if id(variable) not in kept]
        # Those that are left are known until they are as they were, as Ctrl-C may leave that to the next.
        self._hooked = [*left, *variables]
        for variable in left:
            watches = variable.__dict__.get(_WATCHES, weakref.WeakSet())
            watches.discard(self)
            if not watches:
                for name in (*_WRITES, _WATCHES):
                    variable.__dict__.pop(name, None)
        for variable in variables:
            watches = variable.__dict__.get(_WATCHES)
            if watches is None:
                watches = weakref.WeakSet()
                variable.__dict__.update({**dict(_noticing(variable, watches)), _WATCHES: watches})
            watches.add(self)
        self._hooked = variables


def _same(ones: list[Any], others: list[Any]) -> bool:
    """Tell whether two lists hold the same objects: tensors are not to be compared."""
    return len(ones) == len(others) and all(map(operator.is_, ones, others))


def _state(variable: Any) -> tuple[weakref.ref[Any], int]:
    """Return the tensor of a variable, and how often it has been written to."""
    tensor = variable._value  # as `value` takes ten times as long, at every call
    return weakref.ref(tensor), _writes(tensor)


def _writes(tensor: Any) -> int:
    return getattr(tensor, "_version", 0)  # of PyTorch; those of others never change


def _adapting() -> tuple[type, ...]:
    """Return the layers that keep beside their weights what `adapt` finds."""
    import keras

    return keras.layers.Normalization, keras.layers.Discretization


def _steps(model: Any) -> Iterator[Any]:
    """Yield the variables in which the optimizers of a model count their steps."""
    import keras

    for held in vars(model).values():
        some = held if isinstance(held, list | tuple) else held.values() if isinstance(held, dict) else (held,)
        for one in some:
            if isinstance(one, keras.optimizers.Optimizer):
                # Past `iterations`, which is no variable where gradients are accumulated.
                counts: Any = getattr(one, "inner_optimizer", one)
                yield counts._iterations


def _reader(held: Any) -> Callable[[], Any]:
    """Return what reads a variable of TensorFlow: in the shortest way, since it is read at every call."""
    import tensorflow as tf

    if isinstance(held, tf.distribute.DistributedValues):
        return held.read_value  # type: ignore[no-any-return]
    return partial(tf.raw_ops.ReadVariableOp, resource=held.handle, dtype=held.dtype)


def _noticing(variable: Any, watches: weakref.WeakSet[Watch]) -> Iterator[tuple[str, Any]]:
    """Yield the methods that write to a variable, by name, as they are but that all watches learn of it."""
    import tensorflow as tf

    of = weakref.ref(variable)  # the methods are kept by the variable itself

    def noticing(method: Any) -> Any:
        def write(*arguments: Any, **keywords: Any) -> Any:
            written = of()
            try:
                return method(written, *arguments, **keywords)
            finally:  # not before: another thread might look in between
                for watch in watches:
                    watch._notice(written)

        return tf.autograph.experimental.do_not_convert(write)

    for name in _WRITES:
        if hasattr(type(variable), name):
            yield name, noticing(getattr(type(variable), name))
