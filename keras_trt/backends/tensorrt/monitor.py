"""How far a build is, and Ctrl-C while it runs. TensorRT 8.6 has no progress monitor: a build is then waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..._interrupts import deferred
from ..base import Report
from .flavor import Flavor


@contextmanager
def watched(flavor: Flavor, config: Any, report: Report) -> Iterator[None]:
    """Report how far the build is that the block runs; after Ctrl-C, stop it and raise.

    TensorRT swallows what is raised in a callback, a `KeyboardInterrupt` too. So the signal sets a flag, the monitor
    asks TensorRT to stop, and the interrupt is raised when it has.

    Args:
        flavor: the TensorRT.
        config: the builder's configuration.
        report: called with the share that is done, by any thread.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
    """
    with deferred() as interrupted:
        monitor = _monitor(flavor.trt, report, interrupted)  # held here: it must outlive the build
        if monitor is not None and hasattr(config, "progress_monitor"):
            config.progress_monitor = monitor
        yield


def _monitor(trt: Any, report: Report, interrupted: threading.Event) -> Any:
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Adds up the phases of a build, each of which is a step of the one around it."""

        def __init__(self) -> None:
            super().__init__()
            self._lock = threading.Lock()
            self._phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, steps done

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._phases[phase_name] = (parent_phase, max(num_steps, 1), 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                parent, steps, _ = self._phases.get(phase_name, (None, 1, 0))
                self._phases[phase_name] = (parent, steps, step + 1)
                share = self._share(phase_name)
            report(share)
            return not interrupted.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._phases.pop(phase_name, None)

        def _share(self, phase: str) -> float:
            """Return the share of the outermost phase that is done, as seen from an inner one."""
            inner = 0.0
            name: str | None = phase
            while name is not None and name in self._phases:
                parent, steps, done = self._phases[name]
                inner, name = min((done + inner) / steps, 1.0), parent
            return inner

    return Monitor()
