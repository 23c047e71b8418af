"""The timing cache: what a builder has measured, so that the next one need not. TensorRT-RTX measures nothing.

It makes builds faster and changes no result, so that nothing here fails a build: what TensorRT refuses is logged.
"""

from __future__ import annotations

import logging
from typing import Any

from .flavor import Flavor

_logger = logging.getLogger("keras_trt.tensorrt")

# What 8.6 logs, at level error, of a cache that it then does without; no return value says so.
_REFUSED = "timing cache will not be used"


def attach(flavor: Flavor, config: Any, stored: bytes) -> None:
    """Let a build use what earlier ones measured, and keep what it measures itself.

    Args:
        flavor: the TensorRT.
        config: the builder's configuration.
        stored: a serialized timing cache; empty for none. One that TensorRT refuses counts as none.
    """
    timing_cache = _read(flavor, config, stored) if stored else None
    # Never with a mismatch: measurements of another GPU choose the wrong kernels.
    if timing_cache is None or not config.set_timing_cache(timing_cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def merged(flavor: Flavor, config: Any, stored: bytes) -> bytes:
    """Return what a build has measured together with what others have.

    Args:
        flavor: the TensorRT.
        config: the configuration of a build that is done.
        stored: what lies in the cache now; empty for nothing. It is returned as it is where there is nothing to add.
    """
    timing_cache = config.get_timing_cache()
    if timing_cache is None:
        return stored
    other = _read(flavor, config, stored) if stored else None
    if other is not None:
        timing_cache.combine(other, False)
    plan = timing_cache.serialize()
    return stored if plan is None else bytes(plan)


def _read(flavor: Flavor, config: Any, stored: bytes) -> Any:
    """Return a timing cache, or `None` where TensorRT cannot read it.

    It may be that of another version or GPU. 8.6.0 was seen to refuse all that it had written itself, on an H100:
    NVIDIA/TensorRT#3566.
    """
    with flavor.log() as log:
        try:
            timing_cache = config.create_timing_cache(stored)
        except TypeError:  # pybind's, of the null that TensorRT makes of what it cannot read
            timing_cache = None
    if timing_cache is not None and not any(_REFUSED in line for line in log):
        return timing_cache
    # Not a warning: it costs time alone, and nobody can do anything about it.
    _logger.info("%s cannot read a timing cache of %d bytes: %s", flavor.title, len(stored), "; ".join(log))
    return None
