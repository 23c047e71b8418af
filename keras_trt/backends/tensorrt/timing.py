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
    for blob in dict.fromkeys((stored, b"")):
        with flavor.log() as log:
            timing_cache = config.create_timing_cache(blob)
            # Never with a mismatch: measurements of another GPU choose the wrong kernels.
            taken = timing_cache is not None and config.set_timing_cache(timing_cache, False)
        if taken and not any(_REFUSED in line for line in log):
            return
        _logger.warning("%s refused a timing cache of %d bytes: %s", flavor.title, len(blob), "; ".join(log))


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
    if stored:
        with flavor.log() as log:
            try:
                combined = timing_cache.combine(config.create_timing_cache(stored), False)
            except TypeError:  # pybind's, of the null that TensorRT makes of what it cannot read
                combined = False
        if not combined:
            _logger.warning("%s could not read the timing cache that is stored: %s", flavor.title, "; ".join(log))
    plan = timing_cache.serialize()
    return stored if plan is None else bytes(plan)
