"""Work in a process of its own, which ends when the program does, by whatever means.

The parent writes what it asks for into a folder; the child, `python -m MODULE FOLDER`, writes what it made, or its
error, there. The child's input ends when the parent does, and then it ends too.
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from . import errors
from ._interrupts import deferred
from .errors import KerasTRTError

_ERROR, _LOG = "error.json", "log"


@contextmanager
def shared_folder(what: str, error: type[KerasTRTError]) -> Iterator[Path]:
    """Give a folder that parent and child share, for as long as the block runs.

    Args:
        what: the work that the child does, such as `"build"`.
        error: what is raised where the system has no room for the folder, or starts no process.

    Raises:
        KerasTRTError: in place of an `OSError`.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f"keras_trt-{what}-") as name:
            yield Path(name)
    except OSError as refused:  # said without the folder's name, which is another each time
        raise error(f"No process of its own can do the {what}: {refused.strerror or refused}.") from refused


def run(
    module: str,
    folder: Path,
    *,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = lambda _: None,
) -> tuple[int, str]:
    """Run a module of this package in a child process, and wait for its end.

    Args:
        module: its dotted name.
        folder: what parent and child share.
        timeout: seconds after which the child is killed. Defaults to `None`.
        environment: variables that are others in the child. Defaults to `None`.
        on_line: called with each line that the child prints.

    Returns:
        The exit status, and the end of what the child wrote to standard error.

    Raises:
        subprocess.TimeoutExpired: if it takes too long.
    """
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join([root, *_looked_in()])
    # -P: not with the folder that happens to be the current one in front of all modules.
    command = [sys.executable, "-P", "-m", module, str(folder)]
    with (folder / _LOG).open("w+b") as log:
        with contextlib.ExitStack() as ending:
            with deferred():  # an interrupt before all is in place would leave the child running
                child = ending.enter_context(
                    subprocess.Popen(  # noqa: S603 (a module of this package)
                        command,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
                        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the child
                        text=True,
                    )
                )
                ending.callback(child.wait)  # after Ctrl-C its own end does not
                listener = threading.Thread(target=_listen, args=(child.stdout, on_line), daemon=True)
                listener.start()
                ending.callback(listener.join)
                ending.callback(child.kill)
            code = child.wait(timeout)
        log.seek(0)
        return code, log.read()[-4000:].decode(errors="replace").strip()


def _looked_in() -> Iterator[str]:
    """Yield where Python looks for modules here, whatever has changed it."""
    for entry in sys.path:
        if isinstance(entry, str):  # a `Path`, say, is passed over by Python too
            with contextlib.suppress(FileNotFoundError):  # the current folder may have been deleted
                # Empty is the current folder, where `python -c` and notebooks look.
                yield entry or str(Path.cwd())


def _listen(lines: IO[str] | None, on_line: Callable[[str], None]) -> None:
    for line in lines or ():
        on_line(line)


def tell(folder: Path, error: KerasTRTError) -> None:
    """Write an error, in the child."""
    about = {name: vars(error)[name] for name in ("log", "name", "nodes", "package") if vars(error).get(name)}
    message = str(error.args[0])
    if "log" in about:  # which a BuildError puts into its message
        message = message.removesuffix(f"\nThe builder's log:\n{about['log']}")
    told = {"kind": type(error).__name__, "message": message, "about": about}
    (folder / _ERROR).write_text(json.dumps({**told, "notes": getattr(error, "__notes__", [])}))


def has_told(folder: Path) -> bool:
    """Tell whether the child has written an error."""
    return (folder / _ERROR).exists()


def raise_told(folder: Path) -> None:
    """Raise the error that the child has written, if there is one."""
    if not has_told(folder):
        return
    error = json.loads((folder / _ERROR).read_text())
    raised = getattr(errors, error["kind"])(error["message"], **error["about"])
    for note in error["notes"]:
        raised.add_note(note)
    raise raised


def end_with_parent(folder: Path) -> None:
    """Let this process, a child, end when its parent does."""
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()


def _end_with_parent(folder: Path) -> None:
    os.read(0, 1)  # nothing is written to it; not by `sys.stdin`, whose lock would be held when Python ends
    shutil.rmtree(folder, ignore_errors=True)  # which is as much as a killed parent leaves to be done
    os._exit(1)  # not by an exception: the main thread is at work
