"""`EngineCheckpoint`: the best engine of a training, in a file, while the training goes on."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any, Literal

import keras
from keras.src.backend.common import global_state  # public in no version, as what follows
from keras.src.utils import io_utils  # what Keras's callbacks print with

from .. import artifact, fingerprint, policies
from .._warn import warn
from ..api import ensure_sizes
from ..compiled.attach import follow
from ..errors import FallbackWarning
from ..model.trt_model import TRTModel
from ..options import BuildOptions
from .background import Background
from .sample import with_types

_logger = logging.getLogger("keras_trt")

#: What of Keras's own state a model is made by: classes and functions in a scope, and whether lambdas are taken.
_MADE_BY = ("custom_objects_scope_dict", "safe_mode_saving")

#: How much the weights of checkpoints whose turn has not come may take before the training waits for them.
WAITING_BYTES = 1 << 30

#: By path, whose training began last: engines of an interrupted one, which are still made, are not written over its.
_newest: weakref.WeakValueDictionary[Path, EngineCheckpoint] = weakref.WeakValueDictionary()
_saving = threading.Lock()


class EngineCheckpoint(keras.callbacks.ModelCheckpoint):  # type: ignore[misc]
    """Save the model's engine as a `.ktrt` file during `fit`, at the times at which `ModelCheckpoint` saves the model.

    At a checkpoint the weights are copied, and training goes on while the engine is made in the background: of a
    clone of the model with these weights, verified as by `accelerate`, and written to the file in one step. Whatever
    interrupts the training, the file is the last good one. Where checkpoints come faster than engines are made, they
    queue up: the training waits only where the weights in the queue would take more than a GiB. `fit` ends when the
    last engine is saved.

    What is known of the newest engine is put into `logs` at the end of each epoch, so that it reaches the history and
    the callbacks listed after this one (`TensorBoard`, `CSVLogger`): `engine_epoch`, of whose weights it is;
    `engine_latency_ms` for one row; `engine_difference`, the largest relative difference to Keras; and with
    `validation_data` the compiled loss and metrics of the engine, such as `engine_loss`. Before there is one
    they are NaN.

    A failed engine is a `FallbackWarning`, once for each reason, and the training goes on. A model that cannot be
    cloned (a subclassed one without `get_config`, or with attributes that its configuration does not tell) is not
    trained on while its engine is made. Of several workers only the chief makes engines.

    Engines are built in a process of their own, as a builder in this one keeps Python from the training: TensorRT 8.6
    for 13 s when it starts (`benchmarks/checkpoint.py`). Where a GPU takes one process alone, ask for `build="thread"`.

    Args:
        filepath: a path that ends in `.ktrt`, with the placeholders of `ModelCheckpoint`, such as
            `"{epoch:02d}-{val_loss:.2f}.ktrt"`.
        monitor: name of the metric. Defaults to `"val_loss"`.
        verbose: 0 or 1. Defaults to `0`.
        save_best_only: whether only an improvement of `monitor` is a checkpoint. Defaults to `False`.
        mode: `"auto"`, `"min"` or `"max"`. Defaults to `"auto"`.
        save_freq: `"epoch"`, or a number of batches. Defaults to `"epoch"`.
        initial_value_threshold: what must be improved on at first. Defaults to `None`.
        refit: whether new weights are put into the engine of the checkpoint before, which takes a `cache`. It is also
            the engine's `refittable`, so that on TensorRT it may be slower. Defaults to `True`.
        validation_data: `(x, y)`, `(x, y, sample_weight)` or a dataset, for the metrics of the engine. Arrays also say
            that a subclassed model takes integers, where there is no `sample`. Defaults to `None`: none.
        raise_on_failure: whether an engine that cannot be made ends the training. Defaults to `False`.
        options: a `BuildOptions`. Defaults to `None`: its defaults, and `build="process"`.
        **keywords: fields of `BuildOptions`, put over `options`.

    Raises:
        ValueError: for a path that does not end in `.ktrt`, for calibration data that can be read but once, and as
            `ModelCheckpoint`; when training begins, for an axis of an input that has no fixed size, as `accelerate`.
        TypeError: for an unknown option.
        OSError: when training begins, if no file can be written there.

    Example:
    >>> best = keras_trt.EngineCheckpoint("best.ktrt", monitor="val_accuracy", save_best_only=True)
    >>> model.fit(x, y, validation_split=0.1, epochs=10, callbacks=[best])
    >>> fast = keras_trt.load("best.ktrt")
    """

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        mode: Literal["auto", "min", "max"] = "auto",
        save_freq: str | int = "epoch",
        initial_value_threshold: float | None = None,
        refit: bool = True,
        validation_data: Any = None,
        raise_on_failure: bool = False,
        options: BuildOptions | None = None,
        **keywords: Any,
    ) -> None:
        path = os.fspath(filepath)
        artifact.check_name(path)
        super().__init__(
            path.removesuffix(".ktrt") + ".keras",  # what Keras allows
            monitor,
            verbose,
            save_best_only,
            mode=mode,
            save_freq=save_freq,
            initial_value_threshold=initial_value_threshold,
        )
        self.filepath = path
        options = BuildOptions(build="process") if options is None else options
        self._options = BuildOptions.of(options, {"verbose": 0, "refittable": refit, **keywords})
        self._options.ensure_repeatable()
        self._refit, self._validation_data, self._raise = refit, validation_data, raise_on_failure
        self._background = Background(WAITING_BYTES)
        self._clone: Any = None  # or the model itself, where it has none
        self._structure: str | None = None  # of the model when it was cloned
        self._fast: TRTModel | None = None
        self._failures: list[tuple[int, Exception]] = []
        self._told: str | None = None  # why the last one failed
        self._known: dict[str, float] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Check that a file can be written, and the sizes of inputs are known, before time is spent."""
        super().on_train_begin(logs)
        if self.model.built:
            ensure_sizes(self.model, self._options)
        path = Path(self.filepath)
        if path.is_dir():
            raise IsADirectoryError(
                f"The filepath of an EngineCheckpoint is that of a file. Received a directory: {path}"
            )
        folder = next(folder for folder in path.parents if "{" not in str(folder))
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        self._end()  # of a training that was interrupted
        with _saving:
            self._place = Path(self.filepath).resolve()
            _newest[self._place] = self
        self._known, self._failures, self._told = {}, [], None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Make a checkpoint, if `save_freq` says so."""
        self._tell_failures()
        super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Make a checkpoint, if it is time, and put what is known of the newest engine into `logs`."""
        self._tell_failures()
        metrics = list(self.model.get_metrics_result()) if self._validation_data is not None else []
        super().on_epoch_end(epoch, logs)
        if logs is not None:
            names = ["epoch", "latency_ms", "difference", *metrics]
            logs.update({f"engine_{name}": self._known.get(name, math.nan) for name in names})

    def on_train_end(self, logs: Any = None) -> None:
        """Wait for the last engine, and free it."""
        super().on_train_end(logs)
        self._end()
        self._tell_failures()

    def _save_model(self, epoch: int, batch: int | None, logs: Any) -> None:
        """Do, in its place, what the method of `ModelCheckpoint` does for models."""
        if self.save_best_only and self.monitor_op is None:
            self._set_monitor_op()  # which Keras does at the end of the first epoch, after `save_freq` may need it
        path = self._get_file_path(epoch, batch, logs)
        if not self._should_save_model(epoch, batch, logs, path) or not _is_chief(self.model):
            return
        structure = _structure(self.model)
        if self._clone is None or structure != self._structure:  # a callback may change the model while it is trained
            self._end()
            self._clone, self._structure = self._cloned(self.model), structure
        if self._clone is self.model:
            # In the middle of an epoch, evaluating it would reset the metrics of the training.
            self._make(path, epoch, None, measured=batch is None)
            return
        weights = self.model.get_weights()
        size = sum(weight.nbytes for weight in weights)
        self._background.submit(path, partial(self._make_beside, path, epoch, weights), size)

    def _cloned(self, model: Any) -> Any:
        """Return a clone of a model with a loss and metrics of its own, or the model itself if it has none."""
        try:
            # In a thread of its own, where no distribution strategy is in scope that would mirror its variables.
            state = {name: global_state.get_global_attribute(name) for name in _MADE_BY}
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(_clone, model, self._validation_data is not None, state).result()
        except Exception as error:  # a user's `get_config` and `__init__` may raise anything
            why = f"{type(error).__name__}: {error}"
            warn(
                f"'{model.name}' cannot be cloned, so training waits for its engines to be made: {why}", FallbackWarning
            )
            return model

    def _make_beside(self, path: str, epoch: int, weights: Any) -> None:
        """Make an engine beside the training, to which TensorFlow leaves the GPU."""
        with policies.on_the_cpu():
            self._make(path, epoch, weights, measured=True)

    def _make(self, path: str, epoch: int, weights: Any, *, measured: bool) -> None:
        """Save the engine of the clone with these weights; without any, that of the model as it is now."""
        try:
            if not self._is_newest():
                return
            if weights is not None:
                _take(self._clone, weights)
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            if self._fast is None or self._fast.backend == "keras":
                options = with_types(self._options, self._clone, arguments(self._validation_data)["x"])
                self._fast = follow(self._clone, options, "refit" if self._refit else "rebuild")
            with self._fast._engine():  # it follows the weights, which takes a while, and not where others wait for it
                pass
            with _saving:
                if not self._is_newest():
                    return
                self._fast.save(path)
            known = {"epoch": epoch + 1, **_figures(self._fast)}
            if measured and self._validation_data is not None:
                known |= self._fast.evaluate(**arguments(self._validation_data), verbose=0, return_dict=True)
            self._known = known
            if self.verbose:
                io_utils.print_msg(f"\nEpoch {epoch + 1}: finished saving engine to {path}")
        except Exception as error:  # whatever it is, the training goes on unless it was to end
            _logger.info("The engine of epoch %d could not be made.", epoch + 1, exc_info=error)
            self._failures.append((epoch, error))

    def _is_newest(self) -> bool:
        """Tell whether no training has begun since that is to write to the same path."""
        return _newest.get(self._place) is self

    def _tell_failures(self) -> None:
        """Warn of engines that could not be made, or raise; in the thread of the training, where the user hears it."""
        while self._failures:
            epoch, error = self._failures.pop(0)
            if self._raise:
                raise error
            why = f"{type(error).__name__}: {error}"
            if why != self._told:  # else the next engines fail as this one did
                self._told = why
                warn(f"The engine of epoch {epoch + 1} could not be made: {why}", FallbackWarning)

    def _end(self) -> None:
        self._background.wait()
        if self._fast is not None:
            self._fast.close()
        self._fast = self._clone = None


def _clone(model: Any, compiled: bool, state: Mapping[str, Any]) -> Any:
    """Return a clone on the CPU: it takes no memory of a GPU, and is compared there, beside the training.

    It is made in a thread of its own, of which Keras's state begins anew.
    """
    for name, value in state.items():
        global_state.set_global_attribute(name, value)
    keras.config.set_dtype_policy(model.dtype_policy)  # which a Sequential or Functional clone does not take over
    # Keras compiles what it clones, and finds a function of the user's own only by its name in a scope.
    given = keras.tree.flatten(model._compile_config.config) if hasattr(model, "_compile_config") else []
    functions = {one.__name__: one for one in given if isinstance(one, FunctionType)}
    scope = {**(global_state.get_global_attribute("custom_objects_scope_dict") or {}), **functions}
    with policies.on_the_cpu(), keras.saving.custom_object_scope(scope):  # which takes the place of another
        clone = keras.models.clone_model(model)
        if not clone.built:
            clone.build_from_config(model.get_build_config())
        found, wanted = ([tuple(weight.shape) for weight in one.weights] for one in (clone, model))
        if found != wanted:
            raise ValueError("its clone has other weights")
        _take(clone, model.get_weights())
        if fingerprint.structure_key(model) != fingerprint.structure_key(clone):
            raise ValueError("its clone is another model, as its configuration does not tell all of its attributes")
        if compiled:
            clone.compile_from_config(model.get_compile_config())
        return clone


def _structure(model: Any) -> str | None:
    """Return a hash of all that a model computes with but its weights, or `None` if there is none."""
    try:
        return fingerprint.structure_key(model)
    except fingerprint.Unhashable:
        return None


def _take(clone: Any, weights: Any) -> None:
    clone.set_weights(weights)
    for layer in clone._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes with tensors that it makes of its weights, when they are loaded


def _figures(fast: TRTModel) -> dict[str, float]:
    difference = max((one.relative_l2 for one in fast.report().differences), default=math.nan)
    return {"difference": difference, "latency_ms": 1000 * fast._seconds_a_call()}


def arguments(validation_data: Any) -> dict[str, Any]:
    """Return what `evaluate` takes for what `fit` calls `validation_data`."""
    return dict(zip(("x", "y", "sample_weight"), keras.utils.unpack_x_y_sample_weight(validation_data), strict=True))


def _is_chief(model: Any) -> bool:
    """Tell whether this process is the one that writes files, of all that train the model together."""
    resolver = getattr(getattr(model, "distribute_strategy", None), "cluster_resolver", None)
    if resolver is None or not getattr(resolver, "task_type", None):
        return True
    return resolver.task_type == "chief" or (
        resolver.task_type == "worker" and resolver.task_id == 0 and "chief" not in resolver.cluster_spec().as_dict()
    )
