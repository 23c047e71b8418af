"""Builds in a process of its own: a builder that crashes or hangs is an error, not the end of the program.

The parent writes the graph and what is asked for into a folder; the child, `python -m keras_trt.backends.child FOLDER`,
writes the plan or the error there, and prints the share that is done.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import _child
from ..errors import BuildError, KerasTRTError
from ..specs import OptimizationProfile
from .base import Backend, BuildSpec, Report, Timings

_GRAPH, _ASKED, _PLAN, _TIMINGS = "graph.onnx", "asked.json", "plan", "timings"


def build(
    backend: Backend, graph: bytes, spec: BuildSpec, timings: Timings | None, timeout: float | None, report: Report
) -> bytes:
    """Build a plan in a child process.

    Args:
        backend: what builds.
        graph: the typed ONNX graph.
        spec: what to build for.
        timings: where what is measured is kept.
        timeout: seconds after which the child is killed, or `None`.
        report: called with the share that is done.

    Raises:
        BuildError: as the backend; if the child crashes, takes too long, or cannot be started.
    """
    with _child.shared_folder("build", BuildError) as folder:
        (folder / _GRAPH).write_bytes(graph)
        asked = {
            "backend": backend.name,
            "device": int(backend.device.rpartition(":")[2].partition(",")[0]) if ":" in backend.device else 0,
            "precision": spec.precision,
            "profile": spec.profile.to_json(),
            "optimization_level": spec.optimization_level,
            "refittable": spec.refittable,
        }
        known = b"" if timings is None else timings.read()
        if timings is not None:
            (folder / _TIMINGS).write_bytes(known)
        (folder / _ASKED).write_text(json.dumps(asked))
        _run(folder, timeout, report)
        _child.raise_told(folder)
        if timings is not None and (measured := (folder / _TIMINGS).read_bytes()) != known:
            # What others have measured meanwhile is lost, and measured again by who needs it.
            timings.update(lambda _: measured)
        return (folder / _PLAN).read_bytes()


def _run(folder: Path, timeout: float | None, report: Report) -> None:
    def listen(line: str) -> None:
        with contextlib.suppress(ValueError):  # what a library prints
            report(float(line))

    try:
        code, log = _child.run(__name__, folder, timeout=timeout, on_line=listen)
    except subprocess.TimeoutExpired:
        raise BuildError(f"The build took longer than {timeout} s and was ended (see `build_timeout`).") from None
    if code or not ((folder / _PLAN).exists() or _child.has_told(folder)):
        raise BuildError(f"The process that builds the engine ended with status {code}.", log=log)


def _tell(share: float) -> None:
    print(share, flush=True)  # noqa: T201 (the parent listens)


class _Timings:
    """See `Timings`: in a file of the folder that parent and child share."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> bytes:
        return self._path.read_bytes()

    def update(self, merge: Callable[[bytes], bytes]) -> None:
        self._path.write_bytes(merge(self.read()))


def main(folder: Path) -> None:
    """Do in the child what the parent asks for."""
    from . import choose

    asked: dict[str, Any] = json.loads((folder / _ASKED).read_text())
    profile = OptimizationProfile.from_json(asked["profile"])
    spec = BuildSpec(asked["precision"], profile, asked["optimization_level"], asked["refittable"])
    timings = _Timings(folder / _TIMINGS) if (folder / _TIMINGS).exists() else None
    try:
        backend, _ = choose(asked["backend"], [asked["device"]])
        plan = backend.build((folder / _GRAPH).read_bytes(), spec, timings, report=_tell)
    except KerasTRTError as error:
        _child.tell(folder, error)
        return
    part = folder / f"{_PLAN}.part"
    part.write_bytes(plan)
    part.replace(folder / _PLAN)


if __name__ == "__main__":
    _child.end_with_parent(Path(sys.argv[1]))
    main(Path(sys.argv[1]))
