"""`accelerate`: where it is decided what happens when something cannot be had."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

from . import backends, source
from ._warn import warn
from .building.engines import cache_of
from .building.provision import Provisioned, provision
from .building.tune import tune
from .errors import EngineLoadError, FallbackWarning, InputError, KerasTRTError, refuse
from .export.check import too_many_weights
from .export.signature import input_signature
from .head import Head, split
from .loading import keras_model
from .model.predictor import Predictor
from .model.trt_model import TRTModel
from .options import BuildOptions, shapes_for
from .report.report import Report


def accelerate(model: Any, *, options: BuildOptions | None = None, **keywords: Any) -> TRTModel:
    """Return a drop-in for a Keras model whose `predict` runs on TensorRT.

    The model is exported to ONNX, an engine is built of it, compared with Keras and cached. Every later call for
    the same model, options, GPU and versions, in any process, finds the engine in the cache: nothing is exported
    or built. The Keras model is not changed, and later changes of it do not reach the drop-in.

    On Keras's JAX and PyTorch backends TensorFlow exports the model, in a process of its own.

    Where no engine can be had, the Keras model runs, and one `FallbackWarning` says why; `fallback="raise"`
    raises instead.

    Args:
        model: a built `keras.Model`; or where one is saved, a `.keras` or `.h5` file or a
            SavedModel folder.
        options: a `BuildOptions`. Defaults to `None`: its defaults.
        **keywords: fields of `BuildOptions`, put over `options`: `precision`, `backend`, `batch_sizes`,
            `profiles`, `sample`, `optimization_level`, `refittable`, `verify`, `fallback`, `cache`, `device`, `build`,
            `build_timeout`, `verbose`; for 8 bits `calibration_data` and `calibration_method`; for mixtures
            `precision_plan`; for `precision="auto"` `validation_data`, `accuracy_budget`, `monitor` and `mode`.

    Returns:
        A `TRTModel`.

    Raises:
        TypeError: if `model` is not a Keras 3 model, or a keyword is not an option.
        ValueError: if an option has a value that is not allowed, an axis of an input has no known size, or a file or
            folder holds no model.
        FileNotFoundError: if there is no such file or folder.
        InputError: if the sample does not fit the model.
        ExportError: if the model is not built; with `fallback="raise"` also if it cannot be exported.
        MissingDependencyError, EngineLoadError: if a backend that is asked for by name cannot be used.
        BuildError, VerificationError, CudaError: with `fallback="raise"` only.

    Example:
    >>> fast = keras_trt.accelerate(model)
    >>> fast.predict(images)                                        # as model.predict(images)
    >>> keras_trt.accelerate(model, precision="fp32", batch_sizes=(1, 8, 64))
    """
    chosen = BuildOptions.of(options, keywords)
    model = keras_model(model)
    source.ensure_built(model, chosen.sample)
    # What is asked for by name is an error where it cannot be used, whatever `fallback` says.
    named = None if chosen.backend == "auto" else backends.choose(chosen.backend, chosen.devices)
    try:
        backend, unusable = named or backends.choose("auto", chosen.devices)
        if unusable and chosen.fallback == "raise":
            raise EngineLoadError(" ".join(unusable))
        rest, head = _for_an_engine(model)
        obtain = tune if chosen.precision == "auto" else provision
        ready = obtain(rest, backend, chosen, cache_of(chosen), head)
    except InputError:
        raise  # the user's sample: nothing that another engine could mend
    except KerasTRTError as error:
        if chosen.fallback == "raise":
            raise
        notes = " ".join(getattr(error, "__notes__", ()))
        warn(f"Keras runs '{model.name}' without TensorRT: {error}{' ' + notes if notes else ''}", FallbackWarning)
        return _keras_instead(model, str(error), chosen)
    with ExitStack() as unless_returned:
        unless_returned.callback(ready.session.close)  # a warning may be an error
        fast = _drop_in(model, ready, head, chosen, unusable)
        unless_returned.pop_all()
    return fast


def ensure_sizes(model: Any, options: BuildOptions) -> None:
    """Refuse what `accelerate` would for the sizes of a model's inputs, before time is spent.

    Where rows say the sizes, and where no engine can be had whatever they are, nothing is said.

    Args:
        model: a built `keras.Model`.
        options: as for `accelerate`.

    Raises:
        ValueError: for an axis of unknown size, which is named; for a profile that does not fit the model.
    """
    calibrated = options.precision in ("int8", "fp8") and options.calibration_data is not None
    if options.sample is not None or calibrated:
        return
    with suppress(KerasTRTError):
        rest, _ = _for_an_engine(model)
        shapes_for(input_signature(rest).inputs, options, None)


def _for_an_engine(model: Any) -> tuple[Any, Head | None]:
    """Return what of a model an engine is to run, and what runs in front of it, if anything does.

    Raises:
        ExportError: if no engine can run it, as far as that is seen before it is exported.
    """
    refuse(source.only_keras_can(model))
    head = split(model)
    rest = model if head is None else head.tail
    refuse(too_many_weights(rest))  # before they are hashed, and long before they are exported
    return rest, head


def _drop_in(
    model: Any, ready: Provisioned, head: Head | None, options: BuildOptions, unusable: Sequence[str]
) -> TRTModel:
    report = ready.report
    for loop in source.loops(model):
        warn(loop.problem, FallbackWarning)
    if unusable:
        warn(f"{report.title} runs '{model.name}' on the CPU: {' '.join(unusable)}", FallbackWarning)
    if report.fell_back:
        kept = f" but for {', '.join(report.kept_float32)} in float32" if report.kept_float32 else ""
        warn(
            f"'{model.name}' runs in {report.precision}{kept}, not as asked: {'; '.join(report.fell_back)}.",
            FallbackWarning,
        )
    if options.verbose:
        print(report)  # noqa: T201 (as Keras's own verbose)
    predictor = Predictor(model, ready.signature, ready.session, head)
    return TRTModel(model, predictor, ready.session, report, ready.contents)


def _keras_instead(model: Any, why: str, options: BuildOptions) -> TRTModel:
    report = Report(
        backend="keras", title="Keras", device="", device_name="", precision="keras", origin="keras", fell_back=(why,)
    )
    if options.verbose:
        print(report)  # noqa: T201 (as Keras's own verbose)
    return TRTModel(model, None, None, report, None)
