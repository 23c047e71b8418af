"""`load`: an artifact → a drop-in, without TensorFlow and Keras."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal, cast

from . import artifact, backends
from ._warn import warn
from .artifact import Artifact
from .backends import Backend
from .backends.onnxruntime import OnnxRuntimeBackend
from .building.engines import Engines, Made, cache_of
from .building.wanted import Wanted
from .errors import EngineLoadError, FallbackWarning, KerasTRTError, PlanError, VerificationError
from .graph_source import GraphSource
from .model.predictor import Predictor
from .model.trt_model import TRTModel
from .options import BackendName, BuildOptions, Precision
from .report.report import Report
from .runtime import Session
from .verification.verify import LIMITS, Difference, compare


def load(
    filepath: str | os.PathLike[str],
    *,
    backend: BackendName = "auto",
    device: int | Sequence[int] = 0,
    fallback: Literal["onnxruntime", "raise"] = "onnxruntime",
    cache: Any = True,
    key: bytes | None = None,
    verbose: Literal["auto", 0, 1] = "auto",
) -> TRTModel:
    """Return the drop-in that `TRTModel.save` wrote to a file. Neither TensorFlow nor Keras is needed, or imported.

    The file's plan for this GPU, system and TensorRT is run, if there is one; else an engine is built from the graph in
    the file, and cached. Either must give the answers that the engine gave when it was saved. There is no Keras model
    to fall back to: where TensorRT cannot run the file, ONNX Runtime runs its graph on the CPU, and one
    `FallbackWarning` says why. It also runs the batches that the engine was not built for.

    A plan is executable code: load only what comes from people whom you trust, or what was signed with a `key` that
    only they know.

    Args:
        filepath: a `.ktrt` file.
        backend: as for `accelerate`. Defaults to `"auto"`.
        device: index of the GPU, or of several GPUs of one kind. Defaults to `0`.
        fallback: `"onnxruntime"`, or `"raise"` to raise instead. Defaults to `"onnxruntime"`.
        cache: where an engine is kept that must be built, as for `accelerate`. Defaults to `True`: the user's cache.
        key: the secret that the file must have been signed with by `save`. Defaults to `None`: it need not be signed.
        verbose: `"auto"`, 0 or 1: whether a line says what was done. Defaults to `"auto"`.

    Returns:
        A `TRTModel`.

    Raises:
        ArtifactError: if the file is damaged, none that `save` wrote, or not signed with the key. Nothing of it is
            run then.
        VerificationError: if ONNX Runtime too answers otherwise than the engine did that was saved.
        OSError: if the file cannot be read.
        ValueError: if an option, or the key, has a value that is not allowed.
        MissingDependencyError, EngineLoadError: if a backend that is asked for by name cannot be used.
        BuildError, PlanError, CudaError: with `fallback="raise"`, or of ONNX Runtime.

    Example:
    >>> fast = keras_trt.load("model.ktrt")
    >>> fast.predict(images)
    """
    if fallback not in ("onnxruntime", "raise"):
        raise ValueError(f"`fallback` is one of 'onnxruntime', 'raise'. Received: fallback={fallback!r}")
    options = BuildOptions(backend=backend, device=device, cache=cache, verbose=verbose)
    with Artifact(filepath, key) as file:
        return _loaded(file, options, fallback)


def _loaded(file: Artifact, options: BuildOptions, fallback: str) -> TRTModel:
    backend = options.backend
    named = None if backend == "auto" else backends.choose(backend, options.devices)
    chosen, unusable = named or backends.choose("auto", options.devices)
    if unusable and fallback == "raise":
        raise EngineLoadError(" ".join(unusable))
    reasons = list(unusable)
    try:
        engines, made, origin = _engine(file, chosen, options)
    except KerasTRTError as error:
        if fallback == "raise" or chosen.name == "onnxruntime":
            raise
        reasons.append(str(error))
        chosen = OnnxRuntimeBackend()
        engines, made, origin = _engine(file, chosen, options)
    with ExitStack() as unless_returned:
        unless_returned.callback(made.session.close)  # a warning may be an error
        if reasons:
            warn(f"{chosen.title} runs '{file.name}' on the CPU: {' '.join(reasons)}", FallbackWarning)
        report = Report(
            backend=chosen.name,
            title=chosen.title,
            device=chosen.device,
            device_name=chosen.device_name,
            precision=_runs_in(chosen, file.precision),
            origin=origin,
            seconds=engines.seconds,
            differences=made.differences,
            rows_independent=file.rows_independent,
            fell_back=tuple(reasons),
        )
        if options.verbose:
            print(report)  # noqa: T201 (as Keras's own verbose)
        signature = file.live_signature
        source = GraphSource(file, signature)
        fast = TRTModel(
            source,
            Predictor(source, signature, made.session),
            made.session,
            report,
            lambda: _contents(file, chosen, made.session),
        )
        unless_returned.pop_all()
    return fast


def _engine(file: Artifact, backend: Backend, options: BuildOptions) -> tuple[Engines, Made, Any]:
    """Return the engine of an artifact on a backend: its own plan, or one that is built."""
    # ONNX Runtime's plan is the graph itself: nothing to keep.
    engines = Engines(backend, None if backend.name == "onnxruntime" else cache_of(options), options, file.name)
    ranges = tuple(file.profile.shapes[spec.name] for spec in file.signature.inputs)
    with engines.timed("total"):
        inputs, outputs = file.golden()

        def check(session: Session) -> tuple[Difference, ...]:
            limit = LIMITS[_precision(file)]
            try:
                answers = session.run(inputs)
            except KerasTRTError:
                raise
            except Exception as error:  # ONNX Runtime's exceptions share no base class
                raise VerificationError(f"The engine of '{file.path}' cannot run its golden rows: {error}") from error
            found = tuple(compare(outputs, answers, file.signature.outputs, limit))
            if bad := [str(one) for one in found if not one.within]:
                raise VerificationError(
                    f"The engine of '{file.path}' answers otherwise here than when it was saved: {'; '.join(bad)}"
                )
            return found

        stored = file.plan(backend.identity())
        host = backend.name == "onnxruntime"  # its plan is the graph itself
        plan = artifact.Plan(backend.identity(), file.graph()) if host and stored is None else stored
        if plan is not None:
            known = plan.measured if plan.measured.costs else None
            try:
                with engines.timed("load"):
                    session = engines.load(
                        plan.data, file.signature, ranges, rows_independent=file.rows_independent, measured=known
                    )
                return engines, Made("", session, "cache", engines.checked(session, check), file.graph), "artifact"
            except (PlanError, VerificationError) as error:
                if stored is None:
                    raise
                warn(f"The plan in '{file.path}' for this GPU is of no use: {error}", FallbackWarning)
        wanted = Wanted(
            file.graph(), file.signature, _precision(file), ranges, file.optimization_level, file.rows_independent
        )
        manifest = {"model": file.name, "signature": file.signature.to_json(), "versions": file.versions}
        made = engines.make(wanted, check, manifest)
    return engines, made, "artifact" if backend.name == "onnxruntime" else made.origin


def _contents(file: Artifact, backend: Backend, session: Session) -> artifact.Contents:
    """Return what `save` writes: what the file held, and the plan that runs here."""
    inputs, outputs = file.golden()
    plans = file.plans()
    own = session.plan()
    if own is not None and backend.identity() not in file.identities:
        plans.append(artifact.Plan(backend.identity(), own, session.measured))
    return artifact.Contents(
        name=file.name,
        signature=file.signature,
        input_names=file.input_names,
        profile=file.profile,
        precision=file.precision,
        optimization_level=file.optimization_level,
        rows_independent=file.rows_independent,
        versions=file.versions,
        graph=file.graph(),
        inputs=inputs,
        outputs=outputs,
        plans=plans,
    )


def _precision(file: Artifact) -> Precision:
    return cast(Precision, file.precision)


def _runs_in(backend: Backend, precision: str) -> str:
    """Return the precision that a graph has on a backend: TF32 is a flag that ONNX Runtime does not know."""
    return precision if precision in backend.precisions else "fp32" if precision == "tf32" else precision
