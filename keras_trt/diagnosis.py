"""`doctor`: what `accelerate` will do with a model, and why, before anything is built."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from . import backends, fingerprint, source
from .backends import Backend, Judge
from .building.calibration import uncalibrated
from .building.ladder import LADDER, Rung, default_precision, lacks, planned
from .errors import BuildError, EngineLoadError, ExportError, KerasTRTError, VerificationError
from .export import ExportedModel, examine
from .export.check import layer_of
from .export.signature import input_signature
from .findings import Finding
from .head import Head, split
from .loading import keras_model
from .options import BuildOptions, precision_of, shapes_for, unknown_sizes
from .precision import Quantization, even_thresholds
from .verification.gate import Gate, user_sample

_RAISES = "`accelerate` raises"


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What `doctor` found. Prints as a table; iterating gives its findings.

    Attributes:
        model: name of the model.
        judge: whose parser read the graph, such as `"TensorRT-RTX 1.7.1"`.
        engine: what `accelerate` would use on this machine; `None` where a backend asked for by name cannot be used.
        findings: what is not simply run by an engine; empty where everything is.

    Example:
    >>> diagnosis = keras_trt.doctor(model)
    >>> diagnosis.ok
    True
    """

    model: str
    judge: str
    engine: str | None
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether everything runs on an engine, as it was asked for."""
        return all(finding.on_engine for finding in self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the diagnosis as what JSON holds."""
        return {**asdict(self), "findings": [asdict(finding) for finding in self.findings], "ok": self.ok}

    def __str__(self) -> str:
        verdict = "runs on an engine" if self.ok else "does not run on an engine as asked"
        head = f"'{self.model}' {verdict}. Judged by {self.judge}; here {self.engine or 'nothing'} would run it."
        if not self.findings:
            return head
        rows = [(one.layer or "(model)", one.problem, one.action, one.cost) for one in self.findings]
        return "\n".join([head, "", *_table([("layer", "what is the matter", "what is done", "what it costs"), *rows])])

    __repr__ = __str__  # a notebook shows the table


def doctor(model: Any, *, options: BuildOptions | None = None, **keywords: Any) -> Diagnosis:
    """Return what `accelerate` with the same arguments will do with a model, before anything is built.

    The model is exported, and a real parser judges the graph: that of the TensorRT that would run it; on a machine
    without a usable GPU TensorRT-RTX's; else ONNX Runtime. Everything is found at once, as far as it can be seen: what
    keeps a model from being exported hides what a parser would say of it.

    Args:
        model: as for `accelerate`: a `keras.Model`, a `.keras` or `.h5` file, or a SavedModel folder.
        options: a `BuildOptions`. Defaults to `None`: its defaults.
        **keywords: fields of `BuildOptions`, put over `options`.

    Returns:
        A `Diagnosis`.

    Raises:
        TypeError, ValueError, FileNotFoundError: as `accelerate`, if an argument is wrong.
        InputError: if the sample does not fit the model.
        MissingDependencyError: if TensorFlow, or a backend that is asked for by name, is not installed.

    Example:
    >>> print(keras_trt.doctor(model))
    """
    chosen = BuildOptions.of(options, keywords)
    model = keras_model(model)
    backend, found = _backend(chosen)
    judge = backend if backend and chosen.backend != "auto" else backends.judge(backend)
    found += _findings(model, chosen, judge, backend)
    if chosen.fallback == "raise":
        found = [replace(one, action="refused", cost=_RAISES) if one.action == "falls back" else one for one in found]
    return Diagnosis(model.name, judge.title, backend.title if backend else None, tuple(found))


def _backend(options: BuildOptions) -> tuple[Backend | None, list[Finding]]:
    try:
        backend, unusable = backends.choose(options.backend, options.devices)
    except EngineLoadError as error:
        return None, [Finding(str(error), action="refused", cost=_RAISES)]
    # Under fallback="keras" this is no matter of the model: the diagnosis says what runs it here.
    refused = unusable if options.fallback == "raise" else []
    return backend, [Finding(why, action="refused", cost=_RAISES) for why in refused]


def _findings(model: Any, options: BuildOptions, judge: Judge, backend: Backend | None) -> Iterator[Finding]:
    try:
        source.ensure_built(model, options.sample)
    except ExportError as error:
        yield from (replace(one, action="refused", cost=_RAISES) for one in error.findings)
        return
    yield from source.only_keras_can(model)
    yield from source.loops(model)
    try:
        head = split(model)
    except ExportError as error:
        yield from error.findings
        return  # without the cut there is nothing to export
    if head is not None:
        yield from (
            Finding(
                f"The layer '{name}' takes strings or looks values up, which no GPU does.",
                name,
                "split",
                "TensorFlow runs it on the CPU, in front of the engine",
            )
            for name in head.layers
        )
        model = head.tail
    yield from _uncached(model, options)
    exported, found = examine(model, options.sample)
    yield from found
    yield from _sizes_and_rows(model, exported, options, head)
    if (why := uncalibrated(options)) is not None:
        yield Finding(why, action="refused", cost=_RAISES)
    if exported is None:
        return
    try:
        keep = planned(options.precision_plan, model, exported)
    except ValueError as error:
        yield Finding(str(error), action="refused", cost=_RAISES)
        keep = frozenset()
    yield from _judged(model, exported, options, judge, keep)
    if backend is not None and backend is not judge:
        yield from _judged(model, exported, options, backend, keep)


def _uncached(model: Any, options: BuildOptions) -> Iterator[Finding]:
    if options.cache is None or options.cache is False:
        return
    try:
        fingerprint.structure_key(model)
    except fingerprint.Unhashable as reason:
        yield Finding(
            f"The model is exported at each start: {reason}",
            action="kept",
            cost="the time of an export at each start; the engine itself comes from the cache",
        )


def _sizes_and_rows(
    model: Any, exported: ExportedModel | None, options: BuildOptions, head: Head | None
) -> Iterator[Finding]:
    try:
        takes = input_signature(model, options.sample)
    except ExportError:
        return  # `examine` has said it
    given = user_sample(options, takes if head is None else head.signature)
    sample = given if given is None or head is None else head(given)
    unknown = list(unknown_sizes(takes.inputs, options, sample))
    yield from unknown
    if unknown or exported is None:
        return
    gate = Gate(model, takes, shapes_for(takes.inputs, options, sample), given, head)
    try:
        if gate.rows_depend(exported.signature):
            yield Finding(
                "The answer for a row depends on the other rows of its batch.",
                action="kept",
                cost="batches are run exactly as they come: none is cut or joined, and a larger one is run by Keras",
            )
        if gate.is_other_in_a_graph:
            yield Finding(
                "The model answers otherwise where it is traced, as for an export, than where it is called.",
                action="kept",
                cost="an engine is built, and Keras runs the model if that answers otherwise too",
            )
        if options.verify:
            gate.ensure_same_in_float32(exported.signature)
    except VerificationError as error:
        yield Finding(str(error))


def _judged(
    model: Any, exported: ExportedModel, options: BuildOptions, judge: Judge, keep: frozenset[str]
) -> Iterator[Finding]:
    ladder = LADDER[precision_of(options, default_precision(model, judge))]
    for i, precision in enumerate(ladder):
        below = [other for other in ladder[i + 1 :] if lacks(judge, other) is None]
        cost = f"runs in {below[0]}" if below else Finding.cost
        try:
            if (why := lacks(judge, precision)) is not None:
                yield Finding(f"{why}.", cost=cost)
                continue
            # Which ranges numbers have is nothing to a parser.
            eight_bits = partial(Quantization, judge.beside_8_bits, even_thresholds(exported.onnx))
            graph = Rung(precision, keep, eight_bits).graph(exported)
        except BuildError as error:
            yield Finding(str(error), cost=cost)
            continue
        try:
            refusals = judge.supports(graph)
        except KerasTRTError as error:
            yield Finding(str(error))
            return
        for refusal in refusals:
            yield Finding(f"{judge.title} refused the graph: {refusal}", layer_of(model, refusal.node))
        return


def _table(rows: list[tuple[str, str, str, str]]) -> Iterator[str]:
    """Lay out rows whose second and fourth cells are wrapped to the width of the terminal."""
    narrow = [min(30, max(len(row[i]) for row in rows)) for i in (0, 2)]
    rest = max(60, min(shutil.get_terminal_size((120, 24)).columns, 160) - sum(narrow) - 6)
    widths = [narrow[0], rest * 3 // 5, narrow[1], rest * 2 // 5]
    for row in rows:
        cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths, strict=True)]
        for i in range(max(map(len, cells))):
            line = [(cell[i] if i < len(cell) else "").ljust(width) for cell, width in zip(cells, widths, strict=True)]
            yield "  ".join(line).rstrip()
