"""Engines of typed graphs: from the cache if they are there, else built; loaded, and checked before they are kept."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from .._warn import warn
from ..backends import Backend, BuildSpec, child
from ..cache import EngineCache, Entry, nearest
from ..errors import (
    BuildError,
    CacheError,
    CudaError,
    EngineLoadError,
    FallbackWarning,
    PlanError,
    VerificationError,
)
from ..options import BuildOptions
from ..progress import Progress
from ..runtime import Session
from ..specs import Measured, ShapeRange, Signature
from ..verification.verify import Difference
from .timings import CachedTimings
from .wanted import Wanted, graph_key, profile

_logger = logging.getLogger("keras_trt")

#: The steps that may take long, as they are shown.
_SHOWN = {"export": "exporting", "build": "building", "verify": "verifying"}

#: After how many seconds of a build the log says what makes it shorter. EfficientNetB0 in fp16 takes TensorRT 8.6 more
#: than 900 on its default level, and 95 on level 0 (H200); most models take less than 200.
_LONG = 300.0

Check = Callable[[Session], tuple[Difference, ...]]
Origin = Literal["built", "cache", "refitted"]


@dataclass(frozen=True)
class Made:
    """An engine that is loaded and checked.

    Attributes:
        key: its engine key.
        session: runs it.
        origin: where it came from.
        differences: what the check found.
        graph: gives the typed graph that it was made of.
    """

    key: str
    session: Session
    origin: Origin
    differences: tuple[Difference, ...]
    graph: Callable[[], bytes]


@dataclass(frozen=True)
class _New:
    """An engine that is not in the cache yet."""

    plan: bytes
    session: Session
    origin: Origin
    differences: tuple[Difference, ...]


class Engines:
    """Makes the engines of one backend, and keeps them in a cache. The cache may fail: engines run all the same.

    Args:
        backend: builds and loads.
        cache: where engines and what builds have measured are kept, or `None`.
        options: tell how engines are built, and what is shown of it. Defaults to `None`: nothing is shown.
        title: what is shown as their name.
        keep: whether engines are kept; else only what their builds have measured is.

    Attributes:
        seconds: wall time of each step so far, by name.
    """

    def __init__(
        self,
        backend: Backend,
        cache: EngineCache | None,
        options: BuildOptions | None = None,
        title: str = "",
        *,
        keep: bool = True,
    ) -> None:
        how = options or BuildOptions(verbose=0)
        self._in_process, self._timeout = how.build == "process", how.build_timeout
        self._title, self._progress = title, Progress(title, show=bool(how.verbose))
        self.backend = backend
        self.cache = cache if keep else None
        self._measured = cache
        self.seconds: dict[str, float] = {}
        self._warned = False

    def make(self, wanted: Wanted, check: Check, manifest: Mapping[str, Any]) -> Made:
        """Return an engine: from the cache; else one of the same graph with other weights, refitted; else built.

        Args:
            wanted: what it is made of.
            check: says how far a loaded engine is from what it should answer, and raises if that is too far.
            manifest: what the cache remembers beside a new one: the `"model"`'s name, and `"fields"` where it is
                found by other things than its graph and options.

        Raises:
            BuildError, EngineLoadError, CudaError: if it cannot be had.
            Exception: what `check` raises; the engine is closed then, and not kept if it is new.
        """
        identity = self.backend.identity()
        key, options = wanted.key(identity), wanted.options(identity)
        # Its own lock: a model without a structure key has no other, and two records may lead to one engine.
        with self.one_builder(key):
            entry = self.cache.get(key) if self.cache is not None else None
            stored = None
            if entry is not None:
                independent = wanted.rows_independent
                stored = self.stored(key, entry, wanted.signature, wanted.ranges, rows_independent=independent)
            if stored is not None:
                differences = self.checked(stored, check)
                return Made(key, stored, "cache", differences, self.graph(key, wanted.graph_sha256))
            if self.cache is not None and "fields" not in manifest:  # of a model without a structure key, or of a file
                manifest = {**manifest, "fields": {"graph": wanted.graph_sha256, **options}}
                self.explain_miss(manifest["model"], manifest["fields"])
            family = wanted.family(identity) if wanted.refittable and self.cache is not None else None
            new = self._refitted(family, wanted, check) or self._built(wanted, check)
            with ExitStack() as unless_kept:
                unless_kept.callback(new.session.close)  # Ctrl-C while a large plan is written
                kept = self._keep(key, family, wanted, new, {**manifest, **options})
                unless_kept.pop_all()
        graph = self.graph(key, wanted.graph_sha256) if kept else lambda: wanted.graph
        return Made(key, new.session, new.origin, new.differences, graph)

    def _keep(self, key: str, family: str | None, wanted: Wanted, new: _New, manifest: Mapping[str, Any]) -> bool:
        """Store a new engine and its graph, and return whether both are in the cache."""
        measured = new.session.measured.to_json()
        about = {**manifest, "graph": wanted.graph_sha256, "origin": new.origin, "measured": measured}
        kept = self.store(lambda cache: cache.put(key, new.plan, about))
        if new.plan != wanted.graph:  # where they are one, as with ONNX Runtime, it is there now
            at = graph_key(wanted.graph_sha256)
            kept = kept and self.store(lambda cache: cache.put(at, wanted.graph, {"graph_of": key}))
        if family is not None and new.origin == "built":
            self.store(lambda cache: cache.put_record(family, {"engine": key}))
        return kept

    def explain_miss(self, model: str, fields: Mapping[str, Any]) -> None:
        """Say in one line why an engine is not in the cache: what differs from the nearest one that is.

        That reads all that is in the cache, which takes a second where it holds a thousand engines.

        Args:
            model: the model's name.
            fields: what the engine is found by.
        """
        if self.cache is None or not _logger.isEnabledFor(logging.INFO):
            return
        try:
            found = nearest(self.cache.items(), model, fields)
        except CacheError as error:
            _logger.info("'%s' has no engine in the cache: %s", model, error)
            return
        if found is None:
            _logger.info("'%s' has no engine in the cache: none of this model is there", model)
        else:
            why = "; ".join(found.changes) or "its record, or the engine, was deleted"
            _logger.info("'%s' has no engine in the cache: %s (nearest: %s)", model, why, found.item.key[:12])

    def stored(
        self, key: str, entry: Entry, signature: Signature, ranges: Sequence[ShapeRange], *, rows_independent: bool
    ) -> Session | None:
        """Return an engine of the cache as `load` does; one that cannot be loaded is forgotten, and `None`.

        Raises:
            EngineLoadError, CudaError: if there is no memory for it, which is no fault of its own.
        """
        known = measured_of(entry)
        try:
            with self.timed("load"):
                return self.load(entry.payload, signature, ranges, rows_independent=rows_independent, measured=known)
        except PlanError as error:
            _logger.warning("An engine in the cache cannot be loaded and is built anew: %s", error)
            self.store(lambda cache: cache.discard(key))
            return None

    def _built(self, wanted: Wanted, check: Check) -> _New:
        with self.timed("build"), self._advised(wanted.optimization_level):
            spec = BuildSpec(wanted.precision, wanted.profile, wanted.optimization_level, wanted.refittable)
            plan = self._plan(wanted.graph, spec)
        session = self._load(plan, wanted)
        return _New(plan, session, "built", self.checked(session, check))

    @contextmanager
    def _advised(self, level: int | None) -> Iterator[None]:
        """Say in the log how a build could be shorter, once it has taken long."""
        advice = "Building '%s' has taken %.0f s so far. With optimization_level=0 it takes less, for a slower engine."
        told = threading.Timer(_LONG, _logger.warning, (advice, self._title, _LONG))
        told.daemon = True
        if level != 0 and self.backend.name.startswith("tensorrt"):
            told.start()
        try:
            yield
        finally:
            told.cancel()

    def _refitted(self, family: str | None, wanted: Wanted, check: Check) -> _New | None:
        """Return an engine of the same graph with other weights, refitted and checked; `None` where there is none."""
        if family is None or self.cache is None:
            return None
        record = self.cache.get_record(family)
        base = self.cache.get(record["engine"]) if record is not None else None
        if base is None:
            return None
        try:
            with self.timed("refit"):
                plan = self.backend.refit(base.payload, wanted.graph, wanted.weights)
            session = self._load(plan, wanted, measured_of(base))  # other weights take no other time
            return _New(plan, session, "refitted", self.checked(session, check))
        except (BuildError, EngineLoadError, CudaError, VerificationError) as error:
            _logger.warning("An engine could not be refitted, and is built: %s", error)
            return None

    def _load(self, plan: bytes, wanted: Wanted, known: Measured | None = None) -> Session:
        independent = wanted.rows_independent
        with self.timed("load"):
            return self.load(plan, wanted.signature, wanted.ranges, rows_independent=independent, measured=known)

    def _plan(self, graph: bytes, spec: BuildSpec) -> bytes:
        self.backend.preflight(len(graph))  # here also for a child, which does not see what this process holds
        if self._in_process:
            return child.build(self.backend, graph, spec, self._timings(), self._timeout, self._progress.at)
        return self.backend.build(graph, spec, self._timings(), report=self._progress.at)

    def graph(self, key: str, sha256: str) -> Callable[[], bytes]:
        """Return what gets the graph of a stored engine from the cache, as it is needed for saving alone."""

        def read() -> bytes:
            for place in (graph_key(sha256), key):
                entry = self.cache.get(place) if self.cache is not None else None
                if entry is not None and hashlib.sha256(entry.payload).hexdigest() == sha256:
                    return entry.payload
            raise CacheError(
                "The graph of this engine is in the engine cache no more. Call keras_trt.accelerate again, which "
                "exports the model anew where the cache does not have it."
            )

        return read

    def load(
        self,
        plan: bytes,
        signature: Signature,
        ranges: Sequence[ShapeRange],
        *,
        rows_independent: bool,
        measured: Measured | None = None,
    ) -> Session:
        """Load a plan and take the memory that its largest batch needs.

        Args:
            plan: the plan.
            signature: inputs and outputs of the engine.
            ranges: the shapes that it was built for.
            rows_independent: whether batches may be regrouped.
            measured: what was found out before. Defaults to `None`: it is measured now.

        Raises:
            EngineLoadError, CudaError: if it cannot be used here.
        """
        self.backend.preflight(len(plan))
        engines = self.backend.load(plan)
        shapes = profile(signature, ranges)
        try:
            session = Session(engines, signature, shapes, rows_independent=rows_independent, measured=measured)
        except PlanError:
            for engine in engines:
                engine.close()
            raise
        try:
            session.reserve()  # want of memory shows here, where something else can still run the model
            if measured is None:
                session.measure()
        except BaseException:
            session.close()
            raise
        return session

    def checked(self, session: Session, check: Check) -> tuple[Difference, ...]:
        """Return what a check finds; an engine that it raises for is closed."""
        try:
            with self.timed("verify"):
                return check(session)
        except BaseException:
            session.close()
            raise

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time that a block takes to a step's, and show the step if it is one that takes long."""
        start = time.perf_counter()
        try:
            with self._progress.step(_SHOWN[step]) if step in _SHOWN else nullcontext():
                yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start

    @contextmanager
    def one_builder(self, key: str | None) -> Iterator[None]:
        """Hold the lock of a key, so that of all processes one builds; go on without where it cannot be had."""
        with ExitStack() as held:
            if key is not None and self.cache is not None:
                try:
                    with self._progress.step("waiting for another process that builds"):
                        held.enter_context(self.cache.lock(key))
                except CacheError as error:
                    self._warn_uncached(error)
            yield

    def store(self, write: Callable[[EngineCache], None]) -> bool:
        """Write to the cache, and return whether it did; where it cannot be written to, one warning says so."""
        return self._store(self.cache, write)

    def _store(self, cache: EngineCache | None, write: Callable[[EngineCache], None]) -> bool:
        if cache is None:
            return False
        try:
            write(cache)
        except CacheError as error:
            self._warn_uncached(error)
            return False
        return True

    def _timings(self) -> CachedTimings | None:
        cache = self._measured
        return None if cache is None else CachedTimings(cache, self.backend.identity(), partial(self._store, cache))

    def _warn_uncached(self, error: CacheError) -> None:
        if not self._warned:
            self._warned = True
            warn(f"The engine is not cached, so the next start builds it again: {error}", FallbackWarning)


def cache_of(options: BuildOptions) -> EngineCache | None:
    """Return the cache that is asked for; none, with a warning, for a user who has no folder for it."""
    if isinstance(options.cache, EngineCache) or options.cache is None:
        return options.cache
    if options.cache is False:
        return None
    try:
        return EngineCache(None if options.cache is True else os.fspath(options.cache))
    except CacheError as error:
        warn(f"Engines are not cached, so each start builds them again: {error}", FallbackWarning)
        return None


def measured_of(entry: Entry) -> Measured | None:
    """Return what was found out about a stored engine, or `None` where it was not measured."""
    document = entry.manifest.get("measured")
    try:
        return None if document is None else Measured.from_json(document)
    except (KeyError, TypeError, ValueError):  # as another version wrote it: it is measured again
        return None
