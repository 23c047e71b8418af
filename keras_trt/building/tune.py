"""`precision="auto"`: the fastest precision that keeps a model's metric within a budget."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np

from .. import data, fingerprint
from .._version import __version__
from ..backends import Backend
from ..cache import EngineCache, digest
from ..errors import BuildError, CacheError, InputError, KerasTRTError, VerificationError
from ..export.signature import input_signature
from ..head import Head
from ..inputs import digest_of, standardize
from ..model.predictor import Predictor
from ..options import BuildOptions, Precision
from ..report.report import Candidate
from ..source import own
from ..specs import flatten, pack
from .calibration import calibration_rows
from .ladder import lacks
from .provision import Provisioned, provision

Mode = Literal["min", "max"]

_logger = logging.getLogger("keras_trt")

_CANDIDATES: tuple[Precision, ...] = ("fp8", "int8", "fp16", "bf16", "tf32", "fp32")
#: What of a compiled model its metrics come from; an optimizer has a name that Keras makes up.
_JUDGES = ("loss", "loss_weights", "metrics", "weighted_metrics")
#: How far metrics may be apart, beside Keras's own, that are the same but for the rounding of float32.
_ROUNDING = 1e-6
#: Calls that the time of a batch is the median of.
_CALLS = 20
#: What Keras calls them.
_DIRECTIONS: Mapping[str, Mode] = {"down": "min", "up": "max"}
#: Metrics that Keras itself gives no direction.
_MODES: Mapping[str, Mode] = {
    "FalseNegatives": "min",
    "FalsePositives": "min",
    "TrueNegatives": "max",
    "TruePositives": "max",
}


def tune(
    model: Any, backend: Backend, options: BuildOptions, cache: EngineCache | None, head: Head | None = None
) -> Provisioned:
    """Return the fastest engine whose metric is within the budget; its report tells what was tried.

    The choice is kept in the cache: a later call with the same arguments measures nothing.

    Args:
        model: a built `keras.Model`; with a head, the tail of one.
        backend: what builds and runs it.
        options: what is asked for.
        cache: where engines and choices are kept, or `None`.
        head: what runs in front of the engine, if anything does.

    Raises:
        InputError, ValueError: if the validation data has no answers, or the model no such metric; if it is not known
            whether the metric is better as it is larger.
        VerificationError: if no precision is within the budget.
        ExportError, EngineLoadError, CudaError: if no engine can be had.
    """
    return _Tuning(model, backend, options, cache, head).run()


class _Tuning:
    def __init__(
        self, model: Any, backend: Backend, options: BuildOptions, cache: EngineCache | None, head: Head | None
    ) -> None:
        self._model, self._backend, self._options, self._cache, self._head = model, backend, options, cache, head
        self._whole = model if head is None else head.model
        self._x, self._y, self._weights = data.labelled(options.validation_data)
        self._takes = input_signature(model, options.sample) if head is None else head.signature
        self._calibration = None
        if options.calibration_data is not None:  # read once: it may be a generator
            self._calibration = calibration_rows(self._in("int8"), self._takes)
            arrays = pack(self._takes.input_structure, self._calibration or ())
            self._options = replace(options, calibration_data=arrays)
        self._monitored = ""
        self._mode: Mode | None = None if options.mode == "auto" else options.mode

    def run(self) -> Provisioned:
        key = self._key()
        kept = None if key is None or self._cache is None else self._cache.get_record(key)
        if kept is not None:
            try:
                return self._with(self._provision(kept["precision"]), list(map(_from_json, kept["table"])))
            except (BuildError, VerificationError) as error:
                _logger.warning(
                    "The precision that was chosen before can be had no more, and is chosen anew: %s", error
                )
        reference = self._metric(own(self._whole, "predict")(self._as_keras_takes_it(), verbose=0))
        self._mode = self._mode or _mode(self._whole, self._monitored)
        table = [Candidate("keras", reference, None, "the model itself")]
        tried = [self._try(precision, reference) for precision in _CANDIDATES]
        within = [one.milliseconds for one in tried if one.milliseconds is not None and not one.outcome]
        if not within:
            rows = "\n".join(map(str, [*table, *tried]))
            budget = f"accuracy_budget={self._options.accuracy_budget}"
            raise VerificationError(f"No precision keeps '{self._whole.name}' within {budget}:\n{rows}")
        for one in tried:
            outcome = one.outcome or ("chosen" if one.milliseconds == min(within) else "slower")
            table.append(replace(one, outcome=outcome))
        chosen: Any = next(one.precision for one in table if one.outcome == "chosen")
        if key is not None and self._cache is not None:
            # Where the cache cannot be written to, a warning of the engines has said so.
            with contextlib.suppress(CacheError):
                self._cache.put_record(key, {"precision": chosen, "table": list(map(_to_json, table))})
        return self._with(self._provision(chosen), table)

    def _as_keras_takes_it(self) -> Any:
        """Return the inputs with tensors in the place of arrays of strings, which Keras's `predict` refuses."""
        if self._head is None:
            return self._x
        import keras
        import tensorflow as tf

        return keras.tree.map_structure(
            lambda array: tf.constant(array) if array.dtype.kind in "OSU" else array, self._x
        )

    def _try(self, precision: Precision, reference: float) -> Candidate:
        """Measure a precision. Its outcome is why it cannot be chosen, or empty."""
        if (why := lacks(self._backend, precision)) is not None:
            return Candidate(precision, None, None, why)
        if precision in ("int8", "fp8") and self._calibration is None:
            return Candidate(precision, None, None, "no calibration_data")
        try:
            ready = self._provision(precision)
        except InputError:
            raise  # the user's sample: no precision could mend it
        except KerasTRTError as error:
            return Candidate(precision, None, None, str(error).splitlines()[0])
        try:
            predictor = Predictor(self._whole, ready.signature, ready.session, self._head)
            metric = self._metric(predictor.predict(self._whole, self._x, None, 0, None, None))
            milliseconds = self._milliseconds(predictor, ready)
        finally:
            ready.session.close()
        loss = (reference - metric) * (1 if self._mode == "max" else -1)
        within = loss <= self._options.accuracy_budget + _ROUNDING * abs(reference)  # which NaN is not
        return Candidate(precision, metric, milliseconds, "" if within else f"loses {loss:.3g}")

    def _provision(self, precision: Precision) -> Provisioned:
        # What the metric judges need not be near Keras number by number, as 8 bits hardly ever are.
        options = self._in(precision)
        if precision in ("int8", "fp8"):
            options = replace(options, verify=False)
        return provision(self._model, self._backend, options, self._cache, self._head, only=True)

    def _in(self, precision: Precision) -> BuildOptions:
        return replace(
            self._options,
            precision=precision,
            validation_data=None,
            accuracy_budget=0.0,
            monitor=None,
            mode="auto",
            fallback="raise",
        )

    def _with(self, ready: Provisioned, table: list[Candidate]) -> Provisioned:
        return replace(ready, report=replace(ready.report, candidates=tuple(table)))

    def _milliseconds(self, predictor: Predictor, ready: Provisioned) -> float:
        import keras

        rows = len(flatten(self._x)[0])
        order = np.arange(ready.session.profile.batch[1]) % rows
        batch = keras.tree.map_structure(lambda array: np.asarray(array)[order], self._x)
        seconds = []
        for _ in range(_CALLS + 3):
            start = time.perf_counter()
            predictor.predict_on_batch(batch)
            seconds.append(time.perf_counter() - start)
        return float(np.median(seconds[3:])) * 1e3  # the first calls of a shape set it up

    def _metric(self, answers: Any) -> float:
        monitor = self._options.monitor
        if callable(monitor):
            return float(monitor(self._y, answers))
        values = self._metrics(answers)
        self._monitored = monitor or next((name for name in values if name != "loss"), "loss")
        if self._monitored not in values:
            raise ValueError(f"`monitor` is one of {', '.join(values)}, or a callable. Received: monitor={monitor!r}")
        value = np.asarray(values[self._monitored])
        if value.size != 1:
            raise ValueError(
                f"The metric {self._monitored!r} is not one number but has the shape {value.shape}: give `monitor`, "
                f"another one of {', '.join(values)}, or a callable. Received: monitor={monitor!r}"
            )
        return float(value.reshape(()))

    def _metrics(self, answers: Any) -> dict[str, Any]:
        """Return the compiled metrics and the loss; those that training has gathered so far are lost, as by `fit`."""
        model = self._whole
        if not model.compiled:
            raise ValueError(
                f"'{model.name}' is not compiled: it has no metric. Give `monitor`, a callable (y, y_pred)."
            )
        model.reset_metrics()
        try:
            loss = model.compute_loss(None, self._y, answers, self._weights, training=False)
            values = model.compute_metrics(None, self._y, answers, self._weights)
        finally:
            model.reset_metrics()
        return {**values, "loss": loss}

    def _key(self) -> str | None:
        """Return what the choice is found by, or `None` where something that it depends on cannot be hashed."""
        options = self._options
        if self._cache is None or callable(options.monitor):
            return None
        try:
            structure, weights = fingerprint.structure_key(self._whole), fingerprint.weights_key(self._whole)
            judges = fingerprint.code_key(_judges(self._whole))
        except fingerprint.Unhashable:
            return None
        compiled, data = self._whole.get_compile_config(), (self._x, self._y, self._weights)
        return digest(
            "choice",
            {
                "structure": structure,
                "weights": weights,
                "compiled": [*(str(compiled.get(name)) for name in _JUDGES), judges],
                "data": [None if part is None else digest_of(flatten(part)) for part in data],
                "calibration": [digest_of(self._calibration), options.calibration_method],
                "sample": digest_of(None if options.sample is None else standardize(options.sample, self._takes)),
                "precision plan": sorted(options.precision_plan or ()),
                "judgement": [options.accuracy_budget, options.monitor, options.mode, options.verify],
                "engine": [list(options.batch_sizes), str(options.profiles), options.optimization_level],
                "backend": self._backend.identity(),
                "keras_trt": __version__,
            },
        )


def _judges(model: Any) -> list[Any]:
    """Return the losses and metrics that a model was compiled with; of functions its configuration has names alone."""
    import keras

    # Keras has no public door to the metrics. They are the same from 3.10 on.
    metrics = getattr(model, "_compile_metrics", None)
    kinds = [getattr(metrics, f"_user_{name}", None) for name in ("metrics", "weighted_metrics")]
    return [found for one in (model.loss, *kinds) for found in keras.tree.flatten(one)]


def _to_json(one: Candidate) -> dict[str, Any]:
    """Return a candidate as a record holds it: NaN and infinity have no form in JSON."""
    return {**asdict(one), "metric": None if one.metric is None else repr(one.metric)}


def _from_json(one: Mapping[str, Any]) -> Candidate:
    return Candidate(**{**one, "metric": None if one["metric"] is None else float(one["metric"])})


def _mode(model: Any, monitored: str) -> Mode:
    """Tell, as Keras's own callbacks do, whether a metric is better as it is smaller or larger.

    Raises:
        ValueError: if that is not known, as of users' own metrics.
    """
    metrics = [one for each in model.metrics for one in getattr(each, "metrics", [each])]
    # Keras puts the output's name in front where there are several, and a number behind a name that is there already.
    named = [one for one in metrics if re.fullmatch(rf"(.+_)?{re.escape(one.name)}(_\d+)?", monitored)]
    longest = max((len(one.name) for one in named), default=0)
    modes = {_mode_of(one) for one in named if len(one.name) == longest}
    if modes == {None} and monitored.endswith("loss"):  # the mean that Keras or a model of one's own takes of a loss
        return "min"
    if len(modes) == 1 and (mode := modes.pop()) is not None:
        return mode
    raise ValueError(
        f'It is not known whether the metric {monitored!r} is better as it is smaller or larger: give mode="min" or '
        "mode=\"max\". Received: mode='auto'"
    )


def _mode_of(metric: Any) -> Mode | None:
    # Keras has no public door to it. It is the same from 3.10 on.
    found = _DIRECTIONS.get(getattr(metric, "_direction", ""))
    return found or _MODES.get(type(metric).__name__)
