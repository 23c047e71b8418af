"""What is said where a GPU has little memory left: how little, how much of it TensorFlow takes, and what to do."""

from __future__ import annotations

import sys
from typing import Any

from .. import cuda

#: What a build or a load may take beside the weights: TensorRT's libraries, activations, what a builder tries. It is
#: above what TensorFlow leaves of a GPU that it takes as a whole, by default.
BESIDE_WEIGHTS = 2 << 30


def shortage(device: int, weights: int, *, beside_tensorflow: bool = False) -> str | None:
    """Return how little memory a GPU has left and what to do about it, or `None` where it is enough.

    Args:
        device: the GPU.
        weights: the size in bytes of the plan that is loaded, or of the graph that is built.
        beside_tensorflow: whether it only counts where TensorFlow uses that GPU.
    """
    free, total = cuda.free_memory(device)
    if free >= weights + BESIDE_WEIGHTS:
        return None
    tensors = tensorflow_uses(device)
    return None if tensors is None and beside_tensorflow else sentence(device, free, total, weights, tensors)


def sentence(device: int, free: int, total: int, weights: int, tensors: int | None) -> str:
    """Return what is said of a GPU, by its figures in bytes; `tensors` are TensorFlow's, if it uses that GPU."""
    needed = _mib(weights + BESIDE_WEIGHTS)
    said = f"GPU {device} has {_mib(free)} of {_mib(total)} MiB free, and {needed} MiB may be needed."
    if tensors is None:
        return f"{said} TensorFlow in this process does not use it: see `nvidia-smi` for who does."
    return (
        f"{said} TensorFlow's tensors take {_mib(tensors)} MiB, and what else it has reserved it does not give back. "
        "Let it take only what it needs, before its first use of the GPU: "
        "tf.config.experimental.set_memory_growth(gpu, True), or TF_FORCE_GPU_ALLOW_GROWTH=true in the environment, or "
        "a limit in MiB, tf.config.set_logical_device_configuration(gpu, "
        "[tf.config.LogicalDeviceConfiguration(memory_limit=…)])."
    )


def tensorflow_uses(device: int) -> int | None:
    """Return how many bytes TensorFlow's tensors take on a GPU, or `None` where it does not use it.

    TensorFlow is neither imported nor initialized by this: the first question to it that concerns a device would take
    the whole GPU.
    """
    tf: Any = sys.modules.get("tensorflow")
    eager: Any = sys.modules.get("tensorflow.python.eager.context")
    # There is no public way to ask.
    if tf is None or eager is None or not getattr(eager.context_safe(), "_initialized", False):
        return None
    try:
        # One GPU may be several logical ones, and some may be hidden from TensorFlow.
        owners = [
            gpu.name
            for gpu in tf.config.get_visible_devices("GPU")
            for _ in tf.config.get_logical_device_configuration(gpu) or [None]
        ]
        logical = [one.name.removeprefix("/device:") for one in tf.config.list_logical_devices("GPU")]
        taken = [
            int(tf.config.experimental.get_memory_info(name)["current"])
            for name, owner in zip(logical, owners, strict=True)
            if owner.endswith(f":GPU:{device}")
        ]
    except (ValueError, KeyError, tf.errors.OpError):  # an allocator of the user's choice may count nothing
        return None
    return sum(taken) if taken else None


def _mib(size_bytes: int) -> int:
    return size_bytes >> 20
