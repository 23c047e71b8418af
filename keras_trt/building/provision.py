"""A verified engine for a model: from the cache if it is there, else exported, built, verified and stored.

Warm start: structure key + weights key + what is asked for → record → engine key → plan. Neither TensorFlow is
traced nor anything exported. A model that has no structure key is exported at each start, and its engine is found
by the digest of the graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from .. import artifact, errors, fingerprint
from ..backends import Backend
from ..cache import EngineCache, digest
from ..errors import (
    BuildError,
    ExportError,
    KerasTRTError,
    PrecisionError,
    UnsupportedOperatorError,
    VerificationError,
)
from ..export import ExportedModel, export
from ..export.check import layer_of
from ..export.signature import input_signature
from ..export.stored import pack, unpack
from ..head import Head
from ..inputs import digest_of
from ..options import BuildOptions, Precision, precision_of, shapes_for
from ..precision import Quantization, calibrate, lowered
from ..report.measure import Measurement, weights_of
from ..report.report import Report
from ..runtime import Session
from ..specs import ShapeRange, Signature, TensorSpec
from ..verification.gate import Gate, user_sample
from ..verification.verify import Difference
from .calibration import calibration_rows
from .engines import Check, Engines, Made
from .ladder import Ladder, Rung, default_precision, lacks, planned
from .versions import versions
from .wanted import Wanted, engine_options, profile

_logger = logging.getLogger("keras_trt")

#: Why a precision does not run, where it will not run next time either; a build that failed may have lacked memory.
_LASTING = ("PrecisionError", "VerificationError")


@dataclass(frozen=True)
class Provisioned:
    """An engine that can be trusted.

    Attributes:
        session: runs it.
        signature: inputs by the live model's names, and outputs.
        report: how it came to be.
        contents: gives what an artifact of it holds.
    """

    session: Session
    signature: Signature
    report: Report
    contents: Callable[[], artifact.Contents]


def provision(
    model: Any,
    backend: Backend,
    options: BuildOptions,
    cache: EngineCache | None,
    head: Head | None = None,
    *,
    only: bool = False,
) -> Provisioned:
    """Return a verified engine for a model.

    Args:
        model: a built `keras.Model`; with a head, the tail of one.
        backend: what builds and runs it.
        options: what is asked for.
        cache: where engines are kept, or `None`.
        head: what runs in front of the engine, if anything does.
        only: whether no other precision than the one asked for will do; single layers may be in float32 all the same.
            Defaults to `False`: that is as `fallback` says.

    Raises:
        ExportError, BuildError, EngineLoadError, CudaError: if no engine can be had.
        VerificationError: if none is close enough to Keras; with `fallback="raise"`, if the one asked for is not.
        InputError: if the sample does not fit the model.
        ValueError: if a size of an input is not known.
    """
    return _Provision(model, backend, options, cache, head, only).run()


@dataclass
class _Provision:
    model: Any
    backend: Backend
    options: BuildOptions
    cache: EngineCache | None
    head: Head | None = None
    only: bool = False

    def __post_init__(self) -> None:
        self.engines = Engines(self.backend, self.cache, self.options, self.model.name)

    def run(self) -> Provisioned:
        with self.engines.timed("total"):
            self.takes: Signature = input_signature(self.model, self.options.sample)
            self.live: tuple[TensorSpec, ...] = self.takes.inputs
            whole = self.takes if self.head is None else self.head.signature
            calibration = calibration_rows(self.options, whole)
            # Where 8 bits are compared with Keras on other rows than they are made for, they are far from it.
            given = user_sample(self.options, whole, calibration)
            self.calibration = calibration if calibration is None or self.head is None else self.head(calibration)
            self.sample = given if given is None or self.head is None else self.head(given)
            self.ranges: tuple[ShapeRange, ...] = shapes_for(self.live, self.options, self.sample)
            self.asked: Precision = precision_of(self.options, default_precision(self.model, self.backend))
            self.refittable = self.options.refittable or not self.backend.refit_costs
            with self.engines.timed("keys"):
                self.fields = self._record_fields()
                key = None if self.fields is None else digest("record", self.fields)
            structure = None if self.fields is None else self.fields["structure"]
            self.gate = Gate(self.model, self.takes, self.ranges, given, self.head, structure)
            ready = self._warm(key)
            if ready is None:
                with self.engines.one_builder(key):
                    ready = self._warm(key) or self._cold(key)  # another process may have built it meanwhile
        # `total` is known only now; the report holds the same dict.
        return ready

    # Keys.

    def _record_fields(self) -> dict[str, Any] | None:
        """Return what the record of this start is found by, or `None` for a model that has no structure key."""
        if self.cache is None:
            return None
        try:
            structure, weights = fingerprint.structure_key(self.model), fingerprint.weights_key(self.model)
        except fingerprint.Unhashable as reason:
            _logger.info("'%s' is exported at each start: %s", self.model.name, reason)
            return None
        return {
            "layout": 4,  # of the record itself: raised when it holds other things
            "structure": structure,
            "weights": weights,
            "inputs": [[list(spec.shape), spec.dtype] for spec in self.live],
            "input structure": self.takes.input_structure,
            "types guessed": self.takes.types_guessed,
            "calibration": [digest_of(self.calibration), self.options.calibration_method],
            "precision plan": sorted(self.options.precision_plan or ()),
            "sample": digest_of(self.sample),  # an engine is trusted on the rows that it was compared on
            **engine_options(
                self.backend.identity(),
                self.asked,
                self.ranges,
                self.options.optimization_level,
                refittable=self.refittable,
            ),
            "versions": versions(),
        }

    # Warm.

    def _warm(self, key: str | None) -> Provisioned | None:
        if key is None or self.cache is None:
            return None
        record = self.cache.get_record(key)
        if record is None:
            return None
        fell_back = tuple(why for _, why in record["fell_back"])
        as_asked = self.only and record["precision"] == self.asked
        if fell_back and self.options.fallback == "raise" and not as_asked:
            kind, why = record["fell_back"][0]
            raise getattr(errors, kind)(f"{why} (as seen when the engine was built)")
        entry = self.cache.get(record["engine"])
        if entry is None:
            return None
        signature = Signature.from_json(record["signature"])
        independent = record["rows_independent"]
        session = self.engines.stored(record["engine"], entry, signature, self.ranges, rows_independent=independent)
        if session is None:
            return None
        differences = tuple(Difference(**one) for one in record["differences"])
        if self.options.verify and not differences:
            try:
                self.gate.ensure_same_in_float32(signature)
                self.gate.ensure_answers(signature, independent=independent)
                differences = self.engines.checked(session, self._check(signature, record["precision"]))
            except VerificationError:
                session.close()
                return None  # it was stored unverified; the ladder goes on from here
            self._store_record(key, {**record, "differences": [vars(one) for one in differences]})
        graph = self.engines.graph(record["engine"], record["graph"])
        made = Made(record["engine"], session, "cache", differences, graph)
        return self._ready(made, signature, record["precision"], fell_back, tuple(record["kept_float32"]))

    # Cold.

    def _cold(self, key: str | None) -> Provisioned:
        if self.fields is not None:
            self.engines.explain_miss(self.model.name, self.fields)
        exported = self._exported()
        with self.engines.timed("verify"):
            independent = not self.gate.rows_depend(exported.signature)
            if self.options.verify:
                self.gate.ensure_same_in_float32(exported.signature)
                self.gate.ensure_answers(exported.signature, independent=independent)
        fell_back: list[tuple[str, str]] = []  # error class and reason
        failures: list[KerasTRTError] = []
        keep = planned(self.options.precision_plan, self.model, exported)
        ladder = Ladder(self.asked, partial(self._quantization, exported), keep, only=self.only)
        for rung in ladder:
            if (why := lacks(self.backend, rung.precision)) is not None:
                if rung.precision == self.asked:
                    self._refuse_precision(why)
                fell_back.append(("PrecisionError", why))
                continue
            try:
                if self.options.verify:
                    with self.engines.timed("verify"):
                        ladder.ensure_in_range(rung, exported, self.gate.rows)
                return self._build_one(key, exported, rung, independent, fell_back)
            except UnsupportedOperatorError as error:
                if layers := {f"'{name}'" for node in error.nodes if (name := layer_of(self.model, node))}:
                    error.add_note(f"These are nodes of the Keras layers {', '.join(sorted(layers))}.")
                raise  # no other precision would help
            except (VerificationError, BuildError) as error:
                if self.options.fallback == "raise" and not self.only:
                    raise
                failures.append(error)
                kept = rung.layers(self.model)
                form = f"{rung.precision} but for {', '.join(kept)}" if kept else rung.precision
                fell_back.append((type(error).__name__, f"{form}: {error}"))
                if isinstance(error, VerificationError):
                    ladder.failed(rung, exported, self.gate.rows())
        if self.only or all(isinstance(error, BuildError) for error in failures):
            raise failures[-1]
        reasons = "; ".join(why for _, why in fell_back)
        raise VerificationError(f"No engine of '{self.model.name}' is close enough to Keras: {reasons}")

    def _exported(self) -> ExportedModel:
        """Return the model as ONNX: an export of other weights with those of now, or a new one."""
        if self.cache is None or self.fields is None:
            with self.engines.timed("export"):
                return export(self.model, self.options.sample)
        names = ("structure", "inputs", "input structure", "types guessed", "versions")
        key = digest("export", {name: self.fields[name] for name in names})
        with self.engines.timed("weights"):
            values = [np.asarray(variable) for variable in self.model.variables]
            entry = self.cache.get(key)
            found = unpack(entry.payload, entry.manifest["export"], values) if entry is not None else None
        if found is not None:
            return found
        with self.engines.timed("export"):
            exported = export(self.model, self.options.sample)
        data, about = pack(exported, values)
        self.engines.store(lambda cache: cache.put(key, data, {"export_of": self.model.name, "export": about}))
        return exported

    def _refuse_precision(self, why: str) -> None:
        if self.options.fallback == "raise":
            raise PrecisionError(
                f"{why}. Received: precision={self.asked!r}, allowed: {', '.join(self.backend.precisions)}."
            )

    def _quantization(self, exported: ExportedModel) -> Quantization:
        feeds = {spec.name: rows for spec, rows in zip(exported.signature.inputs, self.calibration or (), strict=True)}
        # For floats of 8 bits no range is finer than another.
        method = "minmax" if self.asked == "fp8" else self.options.calibration_method
        with self.engines.timed("calibrate"):
            return Quantization(self.backend.beside_8_bits, calibrate(exported.onnx, feeds, method))

    def _build_one(
        self,
        key: str | None,
        exported: ExportedModel,
        rung: Rung,
        independent: bool,
        fell_back: Sequence[tuple[str, str]],
    ) -> Provisioned:
        precision, kept = rung.precision, rung.layers(self.model)
        with self.engines.timed("precision"):
            graph = rung.graph(exported)
        signature = exported.signature
        level = self.options.optimization_level
        weights = lowered(exported.recipe.names)
        wanted = Wanted(graph, signature, precision, self.ranges, level, independent, self.refittable, weights)
        made = self.engines.make(
            wanted,
            self._check(signature, precision) if self.options.verify else lambda _: (),
            {
                "model": self.model.name,
                "signature": signature.to_json(),
                "versions": versions(),
            }
            | ({} if self.fields is None else {"fields": self.fields}),
        )
        if key is not None and all(kind in _LASTING for kind, _ in fell_back):
            record = {
                "engine": made.key,
                "graph": wanted.graph_sha256,
                "precision": precision,
                "signature": signature.to_json(),
                "rows_independent": made.session.rows_independent,
                "differences": [vars(one) for one in made.differences],
                "fell_back": list(fell_back),
                "kept_float32": list(kept),
            }
            self._store_record(key, record)
        reasons = tuple(why for _, why in fell_back)
        return self._ready(made, signature, precision, reasons, kept)

    # Parts of both.

    def _check(self, signature: Signature, precision: Precision) -> Check:
        return lambda session: self.gate.check(session, signature, precision)

    def _ready(
        self,
        made: Made,
        signature: Signature,
        precision: Precision,
        fell_back: tuple[str, ...],
        kept: tuple[str, ...],
    ) -> Provisioned:
        backend = self.backend
        report = Report(
            backend=backend.name,
            title=backend.title,
            device=backend.device,
            device_name=backend.device_name,
            precision=precision,
            origin=made.origin,
            seconds=self.engines.seconds,
            differences=made.differences,
            rows_independent=made.session.rows_independent,
            fell_back=fell_back,
            kept_float32=kept,
            compared_on=self._compared_on() if made.differences else "",
            on_cpu=self.head.layers if self.head is not None else (),
            measure=Measurement(
                self.model,
                backend,
                made.session,
                made.graph,
                signature,
                self.gate,
                precision,
                self.options.sample,
                weights_of(self.model) if self.fields is None else self.fields["weights"],
            ),
        )
        contents = partial(self._contents, made, signature, precision)
        return Provisioned(made.session, signature.with_inputs_of(self.live), report, contents)

    def _compared_on(self) -> Literal["sample", "calibration data", "random rows"]:
        if self.options.sample is not None:
            return "sample"
        return "random rows" if self.calibration is None else "calibration data"

    def _contents(self, made: Made, signature: Signature, precision: Precision) -> artifact.Contents:
        """Return what an artifact of an engine holds.

        Its golden answers are the engine's own, which were verified: the Keras model may have changed since.

        Raises:
            ExportError: if there is a head, which only TensorFlow runs.
            CacheError: if the graph is in the cache no more.
        """
        if self.head is not None:
            raise ExportError(
                f"'{self.head.model.name}' cannot be saved: TensorFlow runs {', '.join(self.head.layers)} in front of "
                "the engine, and a saved file is run without TensorFlow. Accelerate and save the model behind these "
                "layers, and give it what they make of strings.",
                layer=self.head.layers[0],
            )
        rows = self.gate.rows(made.session)
        plan = made.session.plan()
        return artifact.Contents(
            name=self.model.name,
            signature=signature,
            input_names=[spec.name for spec in self.live],
            profile=profile(signature, self.ranges),
            precision=precision,
            optimization_level=self.options.optimization_level,
            rows_independent=made.session.rows_independent,
            versions=versions(),
            graph=made.graph(),
            inputs=rows,
            outputs=made.session.run(rows),
            plans=[] if plan is None else [artifact.Plan(self.backend.identity(), plan, made.session.measured)],
        )

    def _store_record(self, key: str, record: Mapping[str, Any]) -> None:
        self.engines.store(lambda cache: cache.put_record(key, record))
