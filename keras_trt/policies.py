"""Dtype policies: a model that computes in half precision is exported, and compared, as the float32 model it is.

Under a mixed policy the variables are float32, and only the computing is in another type. What type an engine computes
in is its own matter (`precision=`), and a graph of float32 is where it starts from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

from .findings import Finding
from .layer_calls import replaced, without_cudnn

_HALF = ("float16", "bfloat16")


# A model is changed for as long as it computes in float32, and so are the switches of TF32.
_one_at_a_time = threading.RLock()


def is_mixed(model: Any) -> bool:
    """Tell whether a layer computes in half precision with float32 variables."""
    return bool(half_types(model))


def half_types(model: Any) -> set[str]:
    """Return the types in which layers with a mixed policy compute."""
    return {layer.compute_dtype for layer in model._flatten_layers() if _is_mixed(layer)}


def refusals(model: Any) -> Iterator[Finding]:
    """Yield each layer whose variables are of other floats than float32 under its policy, or quantized but to int8."""
    import keras

    for layer in model._flatten_layers():
        policy = layer.dtype_policy
        quantized = layer.quantization_mode not in (None, "int8")
        # Keras 3.10 gives layers whose answers are integers, such as `Discretization`, a policy of these.
        plain = policy.compute_dtype == policy.variable_dtype and (
            policy.compute_dtype == "float32" or keras.backend.is_int_dtype(policy.compute_dtype)
        )
        if quantized or not (plain or _is_mixed(layer)):
            yield Finding(
                f"The layer '{layer.path or layer.name}' has the dtype policy '{policy.name}'. Only float32, mixed and "
                "int8 policies can be exported so far: the precision of the engine is chosen by `precision=`.",
                layer.path or layer.name,
            )


def repairs(model: Any) -> Iterator[Finding]:
    """Yield what is done about mixed policies, where a model has one."""
    mixed = [layer for layer in model._flatten_layers() if _is_mixed(layer)]
    if mixed:
        names = ", ".join(sorted({layer.dtype_policy.name for layer in mixed}))
        yield Finding(
            f"The model computes under the dtype policy {names}.",
            action="repaired",
            cost="exported as the float32 model that its variables are; the engine computes in what `precision=` says",
        )


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Give each layer that computes in half precision a float32 policy while the block runs; one block at a time.

    Layers that are quantized stay it: their weights are 8 bits, and nothing without the scales beside them.
    The model must not be used by other threads meanwhile: they would compute in float32 too.
    """
    import keras

    with _one_at_a_time:
        # Not through the public setter: on a layer with a `DTypePolicyMap` it writes into the user's map.
        changed = [(layer, layer._dtype_policy) for layer in model._flatten_layers() if _is_mixed(layer)]
        full = keras.DTypePolicy("float32")
        quantized = keras.dtype_policies.QuantizedDTypePolicy("int8", "float32")
        try:
            for layer, _ in changed:
                layer._dtype_policy = quantized if layer.quantization_mode == "int8" else full
            yield
        finally:
            for layer, policy in changed:
                layer._dtype_policy = policy


@contextmanager
def full_float32(model: Any) -> Iterator[None]:
    """Let a model compute in full float32, without TF32, while the block runs; one block at a time.

    A model whose weights are on the CPU computes there, which has no TF32. For others the switches of TensorFlow and
    PyTorch are turned, and those are the whole process's: what else computes on a GPU meanwhile has no TF32 either.
    """
    with in_float32(model), in_full(model):
        yield


@contextmanager
def in_full(model: Any) -> Iterator[None]:
    """Do what `full_float32` does, but let each layer compute in the type of its own policy."""
    without_tf32 = graphs_without_tf32(model)
    loops = model._flatten_layers() if without_tf32 is on_the_cpu else ()
    with as_it_is(), without_tf32(), replaced((one, "inner_loop", without_cudnn(one)) for one in loops):
        yield


def graphs_without_tf32(model: Any) -> Callable[[], Any]:
    """Return what lets graphs that were traced of a model in `full_float32` compute as they did then.

    It is asked for once for many calls, as it looks at each weight; the calls then look at no weight and no layer.
    """
    return on_the_cpu if _is_on_the_cpu(model) else _without_tf32


def on_the_cpu() -> Any:
    """Let what this thread computes with Keras be on the CPU, and the variables that it makes."""
    import keras

    return keras.device("cpu:0")


def _is_on_the_cpu(model: Any) -> bool:
    # TensorFlow has the name of a device there, PyTorch and JAX an object that is written as its name.
    places = [str(getattr(variable.value, "device", "")).lower() for variable in model.variables]
    return bool(places) and all("cpu" in place for place in places)


@contextmanager
def _without_tf32() -> Iterator[None]:
    import keras

    with _one_at_a_time, _WITHOUT_TF32.get(keras.config.backend(), nullcontext)():
        yield


@contextmanager
def _tensorflow_without_tf32() -> Iterator[None]:
    import tensorflow as tf

    tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
    try:
        tf.config.experimental.enable_tensor_float_32_execution(False)
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(tf32)


@contextmanager
def _jax_without_tf32() -> Iterator[None]:
    import jax

    with jax.default_matmul_precision("float32"):
        yield


@contextmanager
def _torch_without_tf32() -> Iterator[None]:
    import torch

    with ExitStack() as restoring:
        for switch in (torch.backends.cuda.matmul, torch.backends.cudnn):
            with suppress(RuntimeError):  # where PyTorch's newer switches are set, of which there are more
                restoring.callback(setattr, switch, "allow_tf32", switch.allow_tf32)
                switch.allow_tf32 = False
        yield


_WITHOUT_TF32 = {"tensorflow": _tensorflow_without_tf32, "jax": _jax_without_tf32, "torch": _torch_without_tf32}


@contextmanager
def as_it_is() -> Iterator[None]:
    """Let no thread change how models compute, while the block runs."""
    with _one_at_a_time:
        yield


def _is_mixed(layer: Any) -> bool:
    return layer.compute_dtype in _HALF and layer.variable_dtype == "float32"
