"""Two hashes of a Keras model, both without calling or tracing it: its structure, and the values of its weights."""

from __future__ import annotations

import functools
import re
import sys
import types
from collections.abc import Mapping
from typing import Any

from ..cache.keys import digest
from .code_digest import Digester
from .configs import NOISE, config_of
from .libraries import is_library, is_library_class, is_library_function, stored_names, words
from .value_digest import state_of
from .walk import Unhashable
from .weights_digest import numbers

# Methods that train, save or describe. They count only where code that infers names them.
_NOT_INFERENCE = words(
    "compile compile_from_config compile_own compute_loss compute_metrics evaluate fit from_config "
    "get_build_config get_compile_config get_config load_own_variables metrics reset_metrics save_own_variables "
    "summary test_step train_step __reduce__ __repr__ __str__"
)
# Modules of the classes whose attributes are bookkeeping: names, tracking, training, and the graph that is walked.
_BOOKKEEPERS = (
    "keras.src.layers.layer",
    "keras.src.layers.rnn.dropout_rnn_cell",
    "keras.src.models.",
    "keras.src.ops.function",
    "keras.src.ops.operation",
    "keras.src.saving.",
    "keras.src.trainers.",
    "keras.src.backend.",
    "tensorflow.python.trackable.",
)
_BOOKKEEPING = words(
    "_called _compile_config _input_shape_arg _layers _path _trainable build built compiled evaluate fit history loss "
    "name optimizer output_names predict predict_on_batch quantize stop_training test_on_batch train_on_batch trainable"
)
# Bookkeepers assign these too, and they change what a layer computes.
_COUNTS = frozenset({"activation", "autocast", "_convert_input_args", "_supports_masking"})
# Wrappers of models of other kinds: their content is not in their configuration.
_FOREIGN_LAYERS = frozenset({"FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"})
_OF_EVERY_JAX_LAYER = "keras.src.backend.jax.layer"  # whose base class there bears the name of the wrapper
# Loading a file sets these to False where building a layer leaves them away, which means the same.
_SET_BY_LOADING = frozenset({"is_awq_calibrated", "is_gptq_calibrated"})
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def structure_key(model: Any) -> str:
    """Return a hash of everything in a model but the values of its weights.

    It covers the configuration and wiring of all layers, the code that layers and functions of users reach, their
    attributes, the shapes and types of inputs and weights, and the settings and versions that shape a graph. Names that
    Keras made up, training state, seeds and `trainable` are left out. The key is the same in every process.

    Args:
        model: a built `keras.Model`.

    Returns:
        64 hexadecimal digits.

    Raises:
        Unhashable: if a part of the model has no hash that is certain to change when the part does; `reason` names it.
    """
    import keras

    walk = _walked(model)
    backend = keras.config.backend()
    backend_version = getattr(sys.modules.get(backend), "__version__", "")
    return digest(
        "structure",
        {
            "model": walk.digest(),
            "versions": [keras.__version__, backend, str(backend_version), sys.version.partition(" ")[0]],
            "image_data_format": keras.config.image_data_format(),
            "floatx": keras.config.floatx(),
            "epsilon": keras.config.epsilon(),
            "dtype_policy": str(keras.config.dtype_policy().name),
        },
    )


def variables_beside(model: Any) -> list[Any]:
    """Return the variables, of Keras or TensorFlow, that a model's code and attributes hold and that are no weights.

    Their values are in its structure key.

    Args:
        model: a built `keras.Model`.

    Raises:
        Unhashable: as `structure_key`.
    """
    return list({id(variable): variable for variable in _walked(model).beside}.values())


def _walked(model: Any) -> _ModelDigester:
    if not getattr(model, "built", False):
        raise Unhashable("the model is not built: call it on a batch of data first")
    walk = _ModelDigester(model)
    try:
        walk.model(model)
    except Unhashable:
        raise
    except RecursionError as error:
        raise Unhashable("the code or the attributes of the model are nested too deeply") from error
    except Exception as error:  # users' properties and slots may raise anything; no key is always a right answer
        raise Unhashable(f"{type(error).__name__} while the model was read: {error}") from error
    return walk


def given_name(layer: Any) -> str:
    """Return the name of a layer if a user gave it, and else an empty string."""
    snake = re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", type(layer).__name__)).lower()
    # clone_model() names input layers after their tensors, and Bidirectional adds to the names of its two layers.
    made_up = rf"(forward_|backward_)*({re.escape(snake)}|keras_tensor)(_\d+)?(_clone)*"
    return "" if re.fullmatch(made_up, layer.name) else str(layer.name)


def _without_batch(shapes: Any) -> Any:
    """Return recorded shapes without their first axis, which is the batch of the first call."""
    if isinstance(shapes, Mapping):
        return {str(key): _without_batch(child) for key, child in shapes.items()}
    if isinstance(shapes, list | tuple) and not all(axis is None or isinstance(axis, int) for axis in shapes):
        return [_without_batch(child) for child in shapes]
    return list(shapes[1:]) if shapes else shapes


@functools.lru_cache(1024)  # bounded: it keeps classes alive
def _bookkeeping(cls: type) -> frozenset[str]:
    """Return the attributes of instances of `cls` that only serve Keras itself."""
    names = set(_BOOKKEEPING)
    for base in cls.__mro__:
        if base.__module__.startswith(_BOOKKEEPERS) and is_library(base.__module__):
            names |= stored_names(base)
    return frozenset(names - _COUNTS)


class _ModelDigester(Digester):
    """Knows Keras's objects: layers, operations, variables, tensors, and the graph of a Functional model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.beside: list[Any] = []  # variables that are no weights of the model
        self._weights = {id(variable): index for index, variable in enumerate(model.weights)}
        self._top = model
        self._tensors: dict[int, tuple[int, int]] = {}
        self._nodes = 0
        self._unread: list[tuple[str, Any]] = []  # attributes that only training reads, unless some code names them

    def model(self, model: Any) -> None:
        """Hash the whole model."""
        import keras

        sequential = isinstance(model, keras.Sequential)
        if isinstance(model, keras.Model) and (model._functional is not None if sequential else _is_functional(model)):
            for tensor in model.inputs:
                self.value(["input", list(tensor.shape), str(tensor.dtype)])
        else:
            self.value(_without_batch(dict(getattr(model, "_build_shapes_dict", None) or {})), loose=True)
        self.layer(model)
        layers = model._flatten_layers()
        for layer in layers:  # also those that nothing above has met, such as layers that the graph does not use
            self.layer(layer)
            if not layer.built and not hasattr(layer, "get_vocabulary"):
                self.refuse(f"the layer {layer.name} is not built: call the model on a batch of data first")
        self.rest()
        for name, item in self._unread:
            if name in self.loads:
                with self.at(f"attribute {name}"):
                    self.value(item)
        if "trainable" in self.loads:
            self.value([bool(layer.trainable) for layer in layers])

    def layer(self, layer: Any) -> None:
        """Hash a layer: its class, its settings, which weights of the model are its own, and its attributes."""
        import keras

        if not self.first_time(layer):
            return
        cls = type(layer)
        with self.at(f"the layer {layer.name} ({cls.__name__})"):
            if any(base.__name__ in _FOREIGN_LAYERS and base.__module__ != _OF_EVERY_JAX_LAYER for base in cls.__mro__):
                self.refuse("its content is that of another framework")
            policy = layer.dtype_policy
            # The name of a map of policies says nothing, and its content is keyed by names of layers.
            policy_name = "" if isinstance(policy, Mapping) else str(policy.name)
            name = "" if layer is self._top else given_name(layer)
            self.put("layer", name, type(policy).__name__, policy_name)
            self.value([layer.compute_dtype, layer.variable_dtype, layer.quantization_mode])
            self.cls(cls)
            if is_library_class(cls) and not is_library_function(cls.call):  # someone has replaced it
                self.value(cls.call)
            self.value([getattr(layer, name, None) for name in sorted(_COUNTS - {"activation"})])
            self.value([*layer._trainable_variables, *layer._non_trainable_variables])
            stock = is_library_class(cls)
            has_config = False
            if isinstance(layer, keras.layers.InputLayer):
                # The batch of an inner input acts on nothing; `model` has hashed that of the model's own inputs.
                kind = [bool(getattr(layer, name, False)) for name in ("sparse", "ragged", "optional")]
                self.value([list(layer.batch_shape[1:]), str(layer.dtype), kind])
                if stock:
                    return
            elif isinstance(layer, keras.Sequential):
                self.value(["sequential", *layer._layers])
            elif _is_functional(layer):
                self._graph(layer)
            else:
                if hasattr(cls, "get_vocabulary"):
                    self.value([str(token) for token in layer.get_vocabulary()])
                config = config_of(layer) if stock and cls.__name__ != "Lambda" else None
                has_config = config is not None
                self.value(config, loose=True)
            has_config |= (stock and isinstance(layer, keras.Sequential)) or _is_functional(layer)
            self._state(layer, stock, soft=stock and has_config and cls.__module__.startswith("keras."))

    def _state(self, layer: Any, stock: bool, soft: bool) -> None:
        """Hash the attributes of a layer or an operation.

        Args:
            layer: the layer.
            stock: its class is a library's.
            soft: its configuration or graph is hashed, so that only what these may lack is left to hash: values
                that were set later, tensors, functions and layers.
        """
        cls: type = type(layer)
        skip = _bookkeeping(cls) - (self.stores - _BOOKKEEPING)
        state = {}
        for name, item in _attributes(layer).items():
            if name in skip or name.startswith(("_self_", "_keras_trt")):
                continue
            if stock and (name in NOISE or (name in _SET_BY_LOADING and item is False)):
                continue
            # Shapes in containers may hold the batch of the first call.
            if soft and isinstance(item, list | tuple | dict | set) and _all_plain(item):
                continue
            if not stock and self._trains(name, item):
                self._unread.append((name, item))
                continue
            state[name] = item
        self.attributes(layer, state, soft, loose=stock and cls.__name__ != "Lambda")

    def _trains(self, name: str, item: Any) -> bool:
        """Whether an attribute is a metric, loss or optimizer that no code but that for training reads."""
        import keras

        if isinstance(item, list | tuple | dict):
            children = list(item.values() if isinstance(item, dict) else item)
            return bool(children) and all(self._trains(name, child) for child in children)
        return name not in self.loads and isinstance(
            item, keras.metrics.Metric | keras.losses.Loss | keras.optimizers.Optimizer
        )

    def _operation(self, operation: Any) -> None:
        if not self.first_time(operation):
            return
        with self.at(f"the operation {operation.name}"):
            self.put("operation", given_name(operation))
            self.cls(type(operation))
            self._state(operation, is_library_class(type(operation)), soft=False)

    def _graph(self, model: Any) -> None:
        """Hash the graph of a Functional model: its nodes from inputs to outputs, joined by number."""
        for tensor in model._inputs:
            self._node(tensor._keras_history.operation._inbound_nodes[tensor._keras_history.node_index], [tensor])
            if tensor._keras_history.operation._inbound_nodes[tensor._keras_history.node_index].is_input:
                self.value(tensor._keras_history.operation)
        todo = list(reversed(model._outputs))
        while todo:  # not by recursion: graphs are deeper than Python's stack
            tensor = todo[-1]
            if id(tensor) in self._tensors:
                todo.pop()
                continue
            operation, node_index, _ = tensor._keras_history
            node = operation._inbound_nodes[node_index]
            missing = [parent for parent in node.input_tensors if id(parent) not in self._tensors]
            if missing:
                todo.extend(reversed(missing))
                continue
            self.put("node")
            self.value(operation)
            # What a user's layer is called with may act as a list and not as a tuple; Keras's own take both alike.
            loose = is_library_class(type(operation)) and type(operation).__name__ != "Lambda"
            self.value([list(node.arguments.args), dict(node.arguments.kwargs)], loose=loose)
            self._node(node, node.outputs)
        self.put("ends")
        self.value([model._inputs_struct, model._outputs_struct], loose=True)

    def _node(self, node: Any, tensors: list[Any]) -> None:
        self.first_time(node)  # holds it, so that no id of its tensors is used twice
        for index, tensor in enumerate(tensors):
            self._tensors[id(tensor)] = (self._nodes, index)
        self._nodes += 1

    def later(self, cls: type) -> set[str]:
        """Return the methods of a user's layer that infer nothing."""
        import keras

        return set(_NOT_INFERENCE) if issubclass(cls, keras.Layer) else set()

    def special(self, item: Any, soft: bool) -> bool:
        """Hash an object of Keras or TensorFlow."""
        if isinstance(item, types.FunctionType):
            return False
        import keras

        if isinstance(item, keras.Variable):
            if id(item) in self._weights:
                self.put("weight", self._weights[id(item)], str(item.dtype), repr(tuple(item.shape)))
            else:
                self.beside.append(item)
                self.put("variable")  # outside the model's weights, so nothing else hashes its value
                self.value(numbers(item))
        elif isinstance(item, keras.Layer):
            self.layer(item)
        elif isinstance(item, keras.Operation):
            self._operation(item)
        elif isinstance(item, keras.KerasTensor):
            if id(item) not in self._tensors:
                self.refuse("a symbolic tensor of another graph")
            self.put("tensor", *self._tensors[id(item)])
        elif isinstance(item, keras.random.SeedGenerator):
            self.put("seed generator")
        elif isinstance(item, keras.metrics.Metric | keras.optimizers.Optimizer):
            self.refuse(f"{type(item).__name__} is used outside of training, and its state is not hashed")
        elif isinstance(item, keras.InputSpec):
            self.put("input spec")
            self.value(dict(sorted(vars(item).items())), loose=True)
        elif type(item).__module__.startswith("tensorflow.") and self._tensorflow(item):
            pass
        elif type(item).__module__.startswith("keras.") and hasattr(item, "get_config") and not isinstance(item, type):
            if not is_library_class(type(item)):
                return False
            config = config_of(item)
            if config is None:
                self.refuse(f"the configuration of a {type(item).__name__} cannot be hashed")
            self.put("object")
            self.cls(type(item))
            self.value(config, soft, loose=True)
        elif keras.ops.is_tensor(item):  # last: it takes the longest
            self.put("constant")
            self.value(keras.ops.convert_to_numpy(item))
        else:
            return False
        return True

    def _tensorflow(self, item: Any) -> bool:
        import tensorflow as tf

        if isinstance(item, tf.Variable | tf.Tensor):
            if not hasattr(item, "numpy"):
                self.refuse("a symbolic tensor of TensorFlow")
            if isinstance(item, tf.Variable):
                self.beside.append(item)
            self.put("constant", type(item).__name__)
            self.value(item.numpy())
        elif isinstance(item, tf.dtypes.DType | tf.TensorShape | tf.TypeSpec):
            self.put("spec", type(item).__name__, repr(item))
        elif hasattr(item, "python_function"):
            self.put("tf.function", repr(getattr(item, "input_signature", None)))
            self.value(item.python_function)
        elif type(item).__qualname__ == "Bind":  # what tf.custom_gradient makes
            self.put("tf.custom_gradient")
            self.value(item._f)
        else:
            return False
        return True


def _attributes(layer: Any) -> dict[str, Any]:
    """Return the attributes of a layer or an operation, without PyTorch's own: its modules hold some in dicts."""
    state = dict(state_of(layer))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(layer, torch.nn.Module):
        held = [state[name] for name in ("_parameters", "_buffers", "_modules")]
        state = {name: item for name, item in state.items() if name not in vars(torch.nn.Module())}
        for items in held:
            state |= {name: item for name, item in items.items() if name != "_torch_params"}  # the layer's own weights
    return state


def _is_functional(layer: Any) -> bool:
    return hasattr(layer, "_nodes_by_depth")


def _all_plain(item: Any) -> bool:
    if isinstance(item, dict):
        return all(_all_plain(child) for child in item.values())
    return isinstance(item, _PLAIN) or (isinstance(item, list | tuple | set) and all(_all_plain(i) for i in item))
