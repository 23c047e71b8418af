"""What builders have measured, kept in the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..cache import EngineCache, digest


class CachedTimings:
    """See `Timings`: kept in the cache, by TensorRT's full version, the GPU and the driver.

    Args:
        cache: the cache.
        identity: what the measurements hold for.
        store: writes to the cache where that can be done.
    """

    def __init__(
        self, cache: EngineCache, identity: Mapping[str, Any], store: Callable[[Callable[[EngineCache], None]], bool]
    ) -> None:
        self._cache = cache
        self._identity = identity
        self._store = store
        self._key = digest("timings", identity)

    def read(self) -> bytes:
        """Return what is stored; empty where nothing is."""
        entry = self._cache.get(self._key)
        return entry.payload if entry is not None else b""

    def update(self, merge: Callable[[bytes], bytes]) -> None:
        """Store what `merge` makes of what is stored now, under the lock of it."""

        def write(cache: EngineCache) -> None:
            with cache.lock(self._key):
                cache.put(self._key, merge(self.read()), {"timings_of": self._identity})

        self._store(write)
