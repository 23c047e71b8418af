"""A verified engine for a model: from the cache if it is there, else exported, built, verified and stored.

Warm start: structure key + weights key + what is asked for → record → engine key → plan. Neither TensorFlow is
traced nor anything exported. A model that has no structure key is exported at each start, and its engine is found
by the digest of the graph.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import errors, fingerprint
from ._version import __version__
from ._warn import warn
from .backends import Backend, BuildSpec
from .cache import EngineCache, digest
from .calibration import calibration_rows
from .errors import (
    BuildError,
    CacheError,
    FallbackWarning,
    KerasTRTError,
    PlanError,
    PrecisionError,
    UnsupportedOperatorError,
    VerificationError,
)
from .export import ExportedModel, export
from .export.signature import input_signature
from .gate import Gate, user_sample
from .head import Head
from .ladder import Ladder, Rung, lacks
from .options import BuildOptions, Precision, shapes_for
from .precision import Quantization, calibrate
from .report import Report
from .runtime import Session
from .specs import OptimizationProfile, ShapeRange, Signature, TensorSpec
from .verify import Difference

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
    """

    session: Session
    signature: Signature
    report: Report


def provision(
    model: Any, backend: Backend, options: BuildOptions, cache: EngineCache | None, head: Head | None = None
) -> Provisioned:
    """Return a verified engine for a model.

    Args:
        model: a built `keras.Model`; with a head, the tail of one.
        backend: what builds and runs it.
        options: what is asked for.
        cache: where engines are kept, or `None`.
        head: what runs in front of the engine, if anything does.

    Raises:
        ExportError, BuildError, EngineLoadError, CudaError: if no engine can be had.
        VerificationError: if none is close enough to Keras; with `fallback="raise"`, if the one asked for is not.
        InputError: if the sample does not fit the model.
        ValueError: if a size of an input is not known.
    """
    return _Provision(model, backend, options, cache, head).run()


@dataclass
class _Provision:
    model: Any
    backend: Backend
    options: BuildOptions
    cache: EngineCache | None
    head: Head | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    warned_uncached: bool = False

    def run(self) -> Provisioned:
        with self._timed("total"):
            self.takes: Signature = input_signature(self.model, self.options.sample)
            self.live: tuple[TensorSpec, ...] = self.takes.inputs
            whole = self.takes if self.head is None else self.head.signature
            calibration = calibration_rows(self.options, whole)
            # Where 8 bits are compared with Keras on other rows than they are made for, they are far from it.
            given = user_sample(self.options, whole, calibration)
            self.calibration = calibration if calibration is None or self.head is None else self.head(calibration)
            self.sample = given if given is None or self.head is None else self.head(given)
            self.ranges: tuple[ShapeRange, ...] = shapes_for(self.live, self.options, self.sample)
            self.gate = Gate(self.model, self.takes, self.ranges, given, self.head)
            self.asked: Precision = self.options.precision or self.backend.default_precision
            with self._timed("keys"):
                key = self._record_key()
            ready = self._warm(key)
            if ready is None:
                with self._one_builder(key):
                    ready = self._warm(key) or self._cold(key)  # another process may have built it meanwhile
        # `total` is known only now; the report holds the same dict.
        return ready

    # Keys.

    def _record_key(self) -> str | None:
        if self.cache is None:
            return None
        try:
            structure, weights = fingerprint.structure_key(self.model), fingerprint.weights_key(self.model)
        except fingerprint.Unhashable as reason:
            _logger.info("'%s' is exported at each start: %s", self.model.name, reason)
            return None
        return digest(
            "record",
            {
                "structure": structure,
                "weights": weights,
                "inputs": [[list(spec.shape), spec.dtype] for spec in self.live],
                "input_structure": self.takes.input_structure,
                "types_guessed": self.takes.types_guessed,
                "calibration": [_digest_of(self.calibration), self.options.calibration_method],
                "sample": _digest_of(self.sample),  # an engine is trusted on the rows that it was compared on
                **self._engine_options(self.asked),
                "versions": _versions(),
            },
        )

    def _engine_key(self, graph: bytes, precision: Precision) -> str:
        return digest("engine", {"onnx": hashlib.sha256(graph).hexdigest(), **self._engine_options(precision)})

    def _engine_options(self, precision: Precision) -> dict[str, Any]:
        """Return all but the graph that an engine depends on. Inputs are told by place: names may be generated."""
        return {
            "precision": precision,
            "shapes": [[list(r.min), list(r.opt), list(r.max)] for r in self.ranges],
            "optimization_level": self.options.optimization_level,
            "keras_trt": __version__,
            "backend": self.backend.identity(),
        }

    # Warm.

    def _warm(self, key: str | None) -> Provisioned | None:
        if key is None or self.cache is None:
            return None
        record = self.cache.get_record(key)
        if record is None:
            return None
        fell_back = tuple(why for _, why in record["fell_back"])
        if fell_back and self.options.fallback == "raise":
            kind, why = record["fell_back"][0]
            raise getattr(errors, kind)(f"{why} (as seen when the engine was built)")
        entry = self.cache.get(record["engine"])
        if entry is None:
            return None
        signature = Signature.from_json(record["signature"])
        try:
            with self._timed("load"):
                session = self._load(entry.payload, signature, rows_independent=record["rows_independent"])
        except PlanError as error:
            _logger.warning("An engine in the cache cannot be loaded and is built anew: %s", error)
            self._store(lambda cache: cache.discard(record["engine"]))
            return None
        differences = tuple(Difference(**one) for one in record["differences"])
        if self.options.verify and not differences:
            try:
                differences = self._verified(session, signature, record["precision"])
            except VerificationError:
                return None  # it was stored unverified; the ladder goes on from here
            self._store_record(key, {**record, "differences": [vars(one) for one in differences]})
        kept = tuple(record.get("kept_float32", ()))
        return self._ready(session, signature, record["precision"], "cache", differences, fell_back, kept)

    # Cold.

    def _cold(self, key: str | None) -> Provisioned:
        with self._timed("export"):
            exported = export(self.model, self.options.sample)
        with self._timed("verify"):
            independent = not self.gate.rows_depend(exported.signature)
        fell_back: list[tuple[str, str]] = []  # error class and reason
        failures: list[KerasTRTError] = []
        ladder = Ladder(self.asked, self._quantization(exported))
        for rung in ladder:
            if (why := lacks(self.backend, rung.precision)) is not None:
                if rung.precision == self.asked:
                    self._refuse_precision(why)
                fell_back.append(("PrecisionError", why))
                continue
            try:
                return self._build_one(key, exported, rung, independent, fell_back)
            except UnsupportedOperatorError:
                raise  # no other precision would help
            except (VerificationError, BuildError) as error:
                if self.options.fallback == "raise":
                    raise
                failures.append(error)
                kept = rung.layers(self.model)
                form = f"{rung.precision} but for {', '.join(kept)}" if kept else rung.precision
                fell_back.append((type(error).__name__, f"{form}: {error}"))
                if isinstance(error, VerificationError):
                    ladder.failed(rung, exported, self.gate.rows())
        if all(isinstance(error, BuildError) for error in failures):
            raise failures[-1]
        reasons = "; ".join(why for _, why in fell_back)
        raise VerificationError(f"No engine of '{self.model.name}' is close enough to Keras: {reasons}")

    def _refuse_precision(self, why: str) -> None:
        if self.options.fallback == "raise":
            raise PrecisionError(
                f"{why}. Received: precision={self.asked!r}, allowed: {', '.join(self.backend.precisions)}."
            )

    def _quantization(self, exported: ExportedModel) -> Quantization | None:
        if self.calibration is None or lacks(self.backend, self.asked):
            return None
        feeds = {spec.name: rows for spec, rows in zip(exported.signature.inputs, self.calibration, strict=True)}
        # For floats of 8 bits no range is finer than another.
        method = "minmax" if self.asked == "fp8" else self.options.calibration_method
        with self._timed("calibrate"):
            return Quantization(self.backend.beside_8_bits, calibrate(exported.onnx, feeds, method))

    def _build_one(
        self,
        key: str | None,
        exported: ExportedModel,
        rung: Rung,
        independent: bool,
        fell_back: Sequence[tuple[str, str]],
    ) -> Provisioned:
        precision = rung.precision
        with self._timed("precision"):
            graph = rung.graph(exported)
        kept = rung.layers(self.model)
        engine_key = self._engine_key(graph, precision)
        signature = exported.signature
        # Its own lock: a model without a structure key has no other, and two records may lead to one engine.
        with self._one_builder(engine_key):
            entry = self.cache.get(engine_key) if self.cache is not None else None
            if entry is None:
                with self._timed("build"):
                    plan = self.backend.build(graph, self._spec(signature, precision))
            else:
                plan = entry.payload
            with self._timed("load"):
                session = self._load(plan, signature, rows_independent=independent)
            differences = self._verified(session, signature, precision) if self.options.verify else ()
            if entry is None:
                manifest = {
                    "model": self.model.name,
                    "signature": signature.to_json(),
                    **self._engine_options(precision),
                    "versions": _versions(),
                }
                self._store(lambda cache: cache.put(engine_key, plan, manifest))
        if key is not None and all(kind in _LASTING for kind, _ in fell_back):
            record = {
                "engine": engine_key,
                "precision": precision,
                "signature": signature.to_json(),
                "rows_independent": independent,
                "differences": [vars(one) for one in differences],
                "fell_back": list(fell_back),
                "kept_float32": list(kept),
            }
            self._store_record(key, record)
        origin = "built" if entry is None else "cache"
        reasons = tuple(why for _, why in fell_back)
        return self._ready(session, signature, precision, origin, differences, reasons, kept)

    # Parts of both.

    def _load(self, plan: bytes, signature: Signature, *, rows_independent: bool) -> Session:
        engine = self.backend.load(plan)
        session = Session(engine, signature, self._profile(signature), rows_independent=rows_independent)
        try:
            session.reserve()  # want of memory shows here, where Keras can still run the model instead
        except BaseException:
            session.close()
            raise
        return session

    def _profile(self, signature: Signature) -> OptimizationProfile:
        return OptimizationProfile(
            {spec.name: shapes for spec, shapes in zip(signature.inputs, self.ranges, strict=True)}
        )

    def _spec(self, signature: Signature, precision: Precision) -> BuildSpec:
        return BuildSpec(precision, self._profile(signature), self.options.optimization_level)

    def _verified(self, session: Session, signature: Signature, precision: Precision) -> tuple[Difference, ...]:
        """Return how far the engine is from Keras; an engine that is too far is closed."""
        try:
            with self._timed("verify"):
                return self.gate.check(session, signature, precision)
        except BaseException:
            session.close()
            raise

    def _ready(
        self,
        session: Session,
        signature: Signature,
        precision: Precision,
        origin: Any,
        differences: tuple[Difference, ...],
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
            origin=origin,
            seconds=self.seconds,
            differences=differences,
            rows_independent=session.rows_independent,
            fell_back=fell_back,
            kept_float32=kept,
            on_cpu=self.head.layers if self.head is not None else (),
        )
        return Provisioned(session, signature.with_inputs_of(self.live), report)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start

    # The cache may fail; the engine runs all the same.

    @contextmanager
    def _one_builder(self, key: str | None) -> Iterator[None]:
        """Hold the lock of a key, so that of all processes one builds; go on without where it cannot be had."""
        with ExitStack() as held:
            if key is not None and self.cache is not None:
                try:
                    held.enter_context(self.cache.lock(key))
                except CacheError as error:
                    self._warn_uncached(error)
            yield

    def _store_record(self, key: str, record: Mapping[str, Any]) -> None:
        self._store(lambda cache: cache.put_record(key, record))

    def _store(self, write: Any) -> None:
        if self.cache is None:
            return
        try:
            write(self.cache)
        except CacheError as error:
            self._warn_uncached(error)

    def _warn_uncached(self, error: CacheError) -> None:
        if not self.warned_uncached:
            self.warned_uncached = True
            warn(f"The engine is not cached, so the next start builds it again: {error}", FallbackWarning)


def _digest_of(rows: Sequence[np.ndarray[Any, Any]] | None) -> str | None:
    if rows is None:
        return None
    arrays = [np.ascontiguousarray(array) for array in rows]
    return digest("sample", {"arrays": [[array.dtype.name, list(array.shape), array.tobytes()] for array in arrays]})


def _versions() -> dict[str, str]:
    """Return the versions of all that shapes a graph between Keras and the engine."""
    found = {name: _version(name) for name in ("keras", "tf2onnx", "onnx", "onnxruntime", "numpy")}
    tensorflow = next((v for v in map(_version, ("tensorflow", "tensorflow-cpu", "tf-nightly")) if v), "")
    return {"keras_trt": __version__, "tensorflow": tensorflow, **found}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
