"""Datasets, generators and `PyDataset`s in, Keras's progress bar and callbacks out: Keras's own parts do both."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from ._require import require
from ._warn import warn
from .errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]


def labelled(given: Any) -> tuple[Any, Any, Any]:
    """Return the inputs, answers and weights of rows in anything that Keras's `evaluate` takes, as whole arrays.

    Args:
        given: `(x, y)`, `(x, y, sample_weight)`, or what `keras_batches` takes.

    Raises:
        InputError: for data of no kind that Keras knows, such without answers or rows, and numbers of rows that differ.
    """
    import keras
    from keras.src.trainers.data_adapters.data_adapter_utils import unpack_x_y_sample_weight

    batches = [given] if isinstance(given, tuple) else _batches(given, None, None, "validation_data")[0]
    parts = [unpack_x_y_sample_weight(batch) for batch in batches]
    x, y, weights = (
        None if each[0] is None else keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *each)
        for each in (zip(*parts, strict=True) if parts else [(None,)] * 3)
    )
    if y is None:
        raise InputError(
            "`validation_data` has no answers to compare with. It is (x, y), or a dataset of such batches."
        )
    rows = {name: {len(leaf) for leaf in keras.tree.flatten(part)} for name, part in (("x", x), ("y", y))}
    if rows["x"] != rows["y"] or len(rows["x"]) != 1 or 0 in rows["x"]:
        raise InputError(
            "`validation_data` needs one number of rows, the same for inputs and answers. Received: "
            f"{' and '.join(f'{sorted(counts)} rows of {name}' for name, counts in rows.items())}."
        )
    return x, y, weights


def keras_batches(
    x: Any, batch_size: int | None, steps: int | None, taker: str = "predict"
) -> tuple[Iterator[Any], int | None]:
    """Return the batches of inputs in anything that Keras's `predict` takes, and how many there are if it is known.

    Args:
        x: a `tf.data.Dataset`, generator, `keras.utils.PyDataset`, torch `DataLoader`, ….
        batch_size: the user's argument: an error for data that comes in batches already.
        steps: stop after so many.
        taker: what an error says that it takes such data. Defaults to `"predict"`.

    Raises:
        InputError: for data of no kind that Keras knows, and for arguments that do not go with its kind.
    """
    require("keras", package="keras", extra="tensorflow", purpose="Data that is no array")
    from keras.src.trainers.data_adapters.data_adapter_utils import unpack_x_y_sample_weight

    batches, count = _batches(x, batch_size, steps, taker)
    return (unpack_x_y_sample_weight(batch)[0] for batch in batches), count


def _batches(x: Any, batch_size: int | None, steps: int | None, taker: str) -> tuple[Iterator[Any], int | None]:
    # Keras has no public door to its adapters. They are the same from 3.10 on.
    from keras.src.trainers import data_adapters

    try:
        adapter = data_adapters.get_data_adapter(x, batch_size=batch_size, steps_per_epoch=steps, shuffle=False)
    except (KeyError, TypeError, ValueError) as error:
        kinds = "arrays or tensors, or a list or dict of them, a tf.data.Dataset, a generator or a PyDataset"
        raise InputError(
            f"`{taker}` takes {kinds} (for a list of numbers use np.asarray). Received: {reprlib.repr(x)} of type "
            f"{type(x).__name__}. Keras says: {error}",
            expected=kinds,
            received=type(x).__name__,
        ) from error
    known = adapter.num_batches

    def iterate() -> Iterator[Any]:
        adapter.on_epoch_begin()
        done = 0
        for batch in adapter.get_numpy_iterator():
            yield batch
            done += 1
            if done == steps:
                break
        if steps is not None and done < steps:
            warn_ran_out()
        adapter.on_epoch_end()

    return iterate(), known if steps is None else steps


def array_batch_size(rows: int, batch_size: int | None, steps: int | None) -> int:
    """Return the batch size that Keras uses for arrays.

    Raises:
        ValueError: for sizes below 1.
    """
    for name, value in (("batch_size", batch_size), ("steps", steps)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` is 1 or more. Received: {name}={value}")
    if batch_size is not None:
        return batch_size
    return max(1, -(-rows // steps)) if steps is not None else 32


def warn_ran_out() -> None:
    """Warn, as Keras does, of data that ended before `steps` batches."""
    warn("The data ended before `steps` batches; predicting stops there.")


def limited(steps: int | None) -> int | None:
    """Return `steps` under the limit that `keras.config.set_max_steps_per_epoch` has set for debugging."""
    keras = sys.modules.get("keras")
    if keras is None:  # nobody can have set one
        return steps
    limit = getattr(keras.config, "max_steps_per_epoch", lambda: None)()  # not in the oldest Keras
    if not limit or (steps and steps <= limit):
        return steps
    warn(f"Predicting at most {limit} batches, as keras.config.set_max_steps_per_epoch says.")
    return int(limit)


def callback_list(model: Any, callbacks: Any, verbose: Any, steps: int | None) -> Any:
    """Return Keras's `CallbackList` with its progress bar, or `None` where nothing would be called.

    Where Keras is not imported, as beside a loaded artifact, it is not imported for a progress bar.
    """
    keras = sys.modules.get("keras")
    if not callbacks and (verbose == 0 or keras is None):
        return None
    if keras is None:
        keras = require("keras", package="keras", extra="tensorflow", purpose="`callbacks`")

    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks
    return keras.callbacks.CallbackList(
        callbacks, add_progbar=verbose != 0, model=model, verbose=verbose, epochs=1, steps=steps
    )


def concatenate(parts: list[Array]) -> Any:
    """Join one output of several batches as Keras does: ragged where their inner shapes differ."""
    if len(parts) == 1:
        return parts[0]
    if parts[0].ndim == 0:
        return np.stack(parts)
    if len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(parts)
    tf = require("tensorflow", package="tensorflow", extra="tensorflow", purpose="A ragged output")
    return tf.concat([tf.RaggedTensor.from_tensor(part) for part in parts], axis=0)
