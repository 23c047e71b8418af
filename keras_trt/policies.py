"""Dtype policies: a model that computes in half precision is exported, and compared, as the float32 model it is.

Under a mixed policy the variables are float32, and only the computing is in another type. What type an engine computes
in is its own matter (`precision=`), and a graph of float32 is where it starts from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import ExportError

_HALF = ("float16", "bfloat16")


def is_mixed(model: Any) -> bool:
    """Tell whether a layer computes in half precision with float32 variables."""
    return any(_is_mixed(layer.dtype_policy) for layer in model._flatten_layers())


def check(model: Any) -> None:
    """Refuse models with policies under which the variables are not float32.

    Raises:
        ExportError: names the first such layer and its dtype policy.
    """
    for layer in model._flatten_layers():
        policy = layer.dtype_policy
        quantized = getattr(policy, "quantization_mode", None) is not None
        plain = policy.compute_dtype == policy.variable_dtype == "float32"
        if quantized or not (plain or _is_mixed(policy)):
            raise ExportError(
                f"The layer '{layer.path or layer.name}' has the dtype policy '{policy.name}'. Only float32 and mixed "
                "policies can be exported so far: the precision of the engine is chosen by `precision=`.",
                layer=layer.path or layer.name,
            )


@contextmanager
def float32(model: Any) -> Iterator[None]:
    """Let a mixed model compute in float32 while the block runs."""
    import keras

    changed = [(layer, layer.dtype_policy) for layer in model._flatten_layers() if _is_mixed(layer.dtype_policy)]
    full = keras.DTypePolicy("float32")
    try:
        for layer, _ in changed:
            layer.dtype_policy = full
        yield
    finally:
        for layer, policy in changed:
            layer.dtype_policy = policy


def _is_mixed(policy: Any) -> bool:
    return policy.compute_dtype in _HALF and policy.variable_dtype == "float32"
