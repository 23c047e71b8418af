"""Builds in a process of its own: a builder that crashes or hangs is an error, not the end of the program.

The parent writes the graph and what is asked for into a folder; the child, `python -m keras_trt.backends.child FOLDER`,
writes the plan or the error there, and prints the share that is done. Its input ends when the parent does, by whatever
means, and then it ends too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from .. import errors
from .._interrupts import deferred
from ..errors import BuildError, KerasTRTError
from ..specs import OptimizationProfile
from .base import Backend, BuildSpec, Report, Timings

_GRAPH, _ASKED, _PLAN, _ERROR, _TIMINGS = "graph.onnx", "asked.json", "plan", "error.json", "timings"


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
        BuildError: as the backend; if the child crashes; if it takes too long.
    """
    with tempfile.TemporaryDirectory(prefix="keras_trt-build-") as name:
        folder = Path(name)
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
        if (folder / _ERROR).exists():
            error = json.loads((folder / _ERROR).read_text())
            raised = getattr(errors, error["kind"])(error["message"], **error["about"])
            for note in error["notes"]:
                raised.add_note(note)
            raise raised
        if timings is not None and (measured := (folder / _TIMINGS).read_bytes()) != known:
            # What others have measured meanwhile is lost, and measured again by who needs it.
            timings.update(lambda _: measured)
        return (folder / _PLAN).read_bytes()


def _run(folder: Path, timeout: float | None, report: Report) -> None:
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, *sys.path]))  # as here, whatever has changed it
    # -P: not with the folder that happens to be the current one in front of all modules.
    command = [sys.executable, "-P", "-m", "keras_trt.backends.child", str(folder)]
    with (folder / "log").open("w+b") as log:
        with contextlib.ExitStack() as ending:
            with deferred():  # an interrupt before all is in place would leave the child running
                child = ending.enter_context(
                    subprocess.Popen(  # noqa: S603 (this very module)
                        command,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        env={**os.environ, "PYTHONPATH": path},
                        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the child
                        text=True,
                    )
                )
                ending.callback(child.wait)  # after Ctrl-C its own end does not
                listener = threading.Thread(target=_listen, args=(child.stdout, report), daemon=True)
                listener.start()
                ending.callback(listener.join)
                ending.callback(child.kill)
            try:
                code = child.wait(timeout)
            except subprocess.TimeoutExpired:
                raise BuildError(
                    f"The build took longer than {timeout} s and was ended (see `build_timeout`)."
                ) from None
        if code or not ((folder / _PLAN).exists() or (folder / _ERROR).exists()):
            log.seek(0)
            tail = log.read()[-4000:].decode(errors="replace").strip()
            raise BuildError(f"The process that builds the engine ended with status {code}.", log=tail)


def _listen(lines: IO[str] | None, report: Report) -> None:
    for line in lines or ():
        with contextlib.suppress(ValueError):  # what a library prints
            report(float(line))


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
        about = {name: vars(error)[name] for name in ("log", "name", "nodes", "package") if vars(error).get(name)}
        message = str(error.args[0])
        if "log" in about:  # which a BuildError puts into its message
            message = message.removesuffix(f"\nThe builder's log:\n{about['log']}")
        told = {"kind": type(error).__name__, "message": message, "about": about}
        (folder / _ERROR).write_text(json.dumps({**told, "notes": getattr(error, "__notes__", [])}))
        return
    part = folder / f"{_PLAN}.part"
    part.write_bytes(plan)
    part.replace(folder / _PLAN)


def _end_with_parent(folder: Path) -> None:
    os.read(0, 1)  # nothing is written to it; not by `sys.stdin`, whose lock would be held when Python ends
    shutil.rmtree(folder, ignore_errors=True)  # which is as much as a killed parent leaves to be done
    os._exit(1)  # not by an exception: the main thread is in the builder


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, args=(Path(sys.argv[1]),), daemon=True).start()
    main(Path(sys.argv[1]))
