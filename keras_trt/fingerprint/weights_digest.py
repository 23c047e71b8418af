"""A hash of the values of a model's weights."""

from __future__ import annotations

import hashlib
import math
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from ..cache.keys import digest
from .walk import Unhashable

#: For how many numbers there is another thread. For fewer it takes longer, as threads wait for each other and keep a
#: training beside them waiting: 8 of them for the 3.5 million of MobileNetV2 took three times as long as one.
_A_THREAD = 1 << 24


def weights_key(model: Any, *beside: Any) -> str:
    """Return a hash of the values of a model's weights, in the model's order, without their names.

    States of seed generators, metrics and optimizers are no weights of a model.

    Args:
        model: a built `keras.Model`.
        *beside: variables that it reads though they are no weights of it.

    Returns:
        64 hexadecimal digits.

    Raises:
        Unhashable: if a variable does not hold numbers.
    """
    weights = [*model.weights, *beside]
    left, found = iter(enumerate(weights)), [b""] * len(weights)

    def work() -> None:
        for place, variable in left:  # each thread takes the next
            found[place] = _content(variable)

    numbers_in_all = sum(map(size, weights))
    # hashlib lets other threads run, and so does TensorFlow while it copies from a GPU.
    others = min(8, os.cpu_count() or 1, numbers_in_all // _A_THREAD + 1) - 1
    with ThreadPoolExecutor(max(1, others)) as pool:  # starts no thread but for a job
        jobs: list[Future[None]] = []
        with suppress(RuntimeError):  # Python starts none once it ends, as when a training is interrupted
            jobs += (pool.submit(work) for _ in range(others))
        work()
        for job in jobs:
            job.result()
    return digest("weights", {"count": len(weights), "content": b"".join(found)})


def _content(variable: Any) -> bytes:
    """Return a hash of type, shape and numbers of a variable."""
    import numpy as np

    array = numbers(variable)
    if array.dtype.hasobject:
        raise Unhashable(f"the variable {getattr(variable, 'path', variable.name)} does not hold numbers")
    content = hashlib.sha256(f"{array.dtype.name}|{array.shape}|".encode())
    content.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return content.digest()


def size(variable: Any) -> int:
    """Return how many numbers a variable holds; 0 where its shape is open, which no weight's is."""
    is_open = getattr(variable.shape, "rank", 0) is None or None in tuple(variable.shape)
    return 0 if is_open else math.prod(variable.shape)


def numbers(variable: Any) -> Any:
    """Return the content of a variable or tensor, without a copy where its library allows that."""
    import numpy as np

    value = getattr(variable, "value", variable)
    value = value() if callable(value) else value  # a method of tf.Variable, a property of Keras's
    if hasattr(value, "read_value"):
        value = value.read_value()
    try:
        return np.asarray(memoryview(value)) if hasattr(value, "_numpy") else np.asarray(variable)
    except (BufferError, TypeError, ValueError):  # types that the buffer protocol lacks, such as bfloat16; strings
        return np.asarray(value)
