"""What long work shows while it runs: a line that moves in a terminal or notebook, and seldom lines in a log file."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_CELLS = 24
_SECONDS = {True: 0.2, False: 10.0}  # between two pictures of a moving line, and between two lines of a log


class Progress:
    """Shows the steps of long work on standard output. Safe to be told from many threads.

    Args:
        title: what the work is about.
        show: whether anything is shown.
    """

    def __init__(self, title: str = "", show: bool = False) -> None:
        self._title, self._show = title, show
        self._fraction: float | None = None
        self._shown = threading.Lock()

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Show a step while the block runs, such as `"building"`. Steps within steps show the inner one."""
        out = sys.stdout  # None where a program has no console, and whatever a user has put in its place
        if not self._show or out is None:
            yield
            return
        self._fraction = None
        began, done = time.perf_counter(), threading.Event()
        moves = (hasattr(out, "isatty") and out.isatty()) or "ipykernel" in sys.modules

        def tick() -> None:
            while not done.wait(_SECONDS[moves]):
                self._print(out, moves, what, time.perf_counter() - began)

        ticker = threading.Thread(target=tick, name="keras_trt progress", daemon=True)
        ticker.start()
        try:
            yield
        finally:
            done.set()
            ticker.join()
            if moves:
                _write(out, "\r\x1b[K")

    def at(self, fraction: float) -> None:
        """Tell how much of the step is done, from 0 to 1. It never goes back."""
        self._fraction = max(self._fraction or 0.0, min(fraction, 1.0))

    def _print(self, out: TextIO, moves: bool, what: str, seconds: float) -> None:
        fraction = self._fraction
        share = "" if fraction is None else f" {fraction:.0%}"
        if moves:
            cells = round(_CELLS * (fraction or 0.0))
            bar = "" if fraction is None else f" {'━' * cells}{'─' * (_CELLS - cells)}"
            text = f"\rkeras_trt: {what} '{self._title}'{bar}{share} {seconds:.0f} s\x1b[K"
        else:
            text = f"keras_trt: {what} '{self._title}':{share} after {seconds:.0f} s\n"
        with self._shown:
            _write(out, text)


def _write(out: TextIO, text: str) -> None:
    try:
        out.write(text)
    except UnicodeEncodeError:  # neither bars nor every title are in all encodings
        out.write(text.encode("ascii", "replace").decode())
    if hasattr(out, "flush"):
        out.flush()
