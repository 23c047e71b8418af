"""`EngineValidation`: the validation of each epoch, on the engine."""

from __future__ import annotations

from itertools import islice
from types import GeneratorType
from typing import Any

import keras

from ..api import ensure_sizes
from ..compiled.attach import follow
from ..model.trt_model import TRTModel
from ..options import BuildOptions
from .checkpoint import arguments
from .sample import with_types


class EngineValidation(keras.callbacks.Callback):  # type: ignore[misc]
    """Validate on the engine at the end of each epoch, in place of the `validation_data` of `fit`.

    What `evaluate` gives of the engine goes into `logs` under the names that Keras has for it (`val_loss`, …), so that
    callbacks listed after this one can monitor it. The engine takes the weights of each epoch: put into it where a
    backend can, else by building another. It pays where validating takes longer than that.

    Where there is no engine, Keras validates, with one `FallbackWarning`.

    Args:
        validation_data: `(x, y)`, `(x, y, sample_weight)`, a dataset, or a generator with `validation_steps`. Arrays
            also say that a subclassed model takes integers, where there is no `sample`.
        validation_batch_size: rows in a batch of arrays. Defaults to 32.
        validation_steps: stop after so many batches. Defaults to `None`: all.
        validation_freq: validate every so many epochs, or a list of the epochs, counted from 1. Defaults to `1`.
        verbose: 0, 1 or 2, for the progress of the validation. Defaults to `0`.
        options: a `BuildOptions`. Defaults to `None`: its defaults.
        **keywords: fields of `BuildOptions`, put over `options`.

    Raises:
        TypeError: for an unknown option.
        ValueError: when training begins, for an axis of an input that has no fixed size, as `accelerate`.
        KerasTRTError: from `fit`, as `accelerate`.

    Example:
    >>> validation = keras_trt.EngineValidation((x_val, y_val))
    >>> stop = keras.callbacks.EarlyStopping("val_loss", patience=3)
    >>> model.fit(x, y, epochs=10, callbacks=[validation, stop])
    """

    def __init__(
        self,
        validation_data: Any,
        validation_batch_size: int | None = None,
        validation_steps: int | None = None,
        validation_freq: int | list[int] = 1,
        verbose: int = 0,
        options: BuildOptions | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__()
        self._arguments = {
            **arguments(validation_data),
            "batch_size": validation_batch_size,
            "steps": validation_steps,
            "verbose": verbose,
        }
        self._freq = validation_freq
        self._options = BuildOptions.of(options, {"verbose": 0, "refittable": True, **keywords})
        self._options.ensure_repeatable()
        self._fast: TRTModel | None = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Validate, and put what is found into `logs`."""
        number = epoch + 1
        if number % self._freq if isinstance(self._freq, int) else number not in self._freq:
            return
        if self._fast is None:
            self._fast = follow(self.model, with_types(self._options, self.model, self._arguments["x"]))
        now = dict(self._arguments)
        if isinstance(now["x"], GeneratorType):  # which Keras reads ahead: what it then does not use would be lost
            now["x"] = (batch for batch in islice(self._arguments["x"], now["steps"]))
        found = self._fast.evaluate(**now, return_dict=True)
        if logs is not None:
            logs.update({f"val_{name}": value for name, value in found.items()})

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002 (Keras gives it)
        """Check that the sizes of inputs are known, and free the engine of a training that was interrupted."""
        self._end()
        if self.model.built:
            ensure_sizes(self.model, self._options)

    def on_train_end(self, logs: Any = None) -> None:  # noqa: ARG002 (Keras gives it)
        """Free the engine."""
        self._end()

    def _end(self) -> None:
        if self._fast is not None:
            self._fast.close()
        self._fast = None
