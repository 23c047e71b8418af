"""Ctrl-C at every moment at which Python may hear of it."""

from __future__ import annotations

import dis
import functools
import gc
import sys
from collections.abc import Callable
from types import CodeType, FrameType, ModuleType
from typing import Any


def interrupted_at(moment: int, work: Callable[[], object], *modules: ModuleType) -> bool:
    """Run `work`, with a KeyboardInterrupt at the moment of that number within the modules; tell whether it came.

    CPython looks for signals when a function begins, after a call of what is not a Python function, and where a loop
    jumps back; never between a `with` and its block where a lock is entered. Garbage is not collected meanwhile: where
    it is another test's model, its engine is closed then, and nobody hears of an interrupt in there.
    """
    names, left = {module.__file__ for module in modules}, moment
    before: dict[FrameType, str] = {}
    into_python: set[FrameType] = set()

    def look() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt

    def opcodes(frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode":
            last = before.get(frame, "")
            before[frame] = _operations(frame.f_code).get(frame.f_lasti, "")
            called = last.startswith("CALL") and frame not in into_python
            into_python.discard(frame)
            if called or last == "JUMP_BACKWARD":
                look()
        return opcodes

    def calls(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_back is not None and frame.f_code.co_name != "__init__":
            into_python.add(frame.f_back)
        if event != "call" or frame.f_code.co_filename not in names:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        look()
        return opcodes

    outer, collects = sys.gettrace(), gc.isenabled()
    gc.disable()
    sys.settrace(calls)
    try:
        work()
        assert left >= 0, "Ctrl-C was lost"
    except KeyboardInterrupt:
        assert left < 0
    finally:
        sys.settrace(outer)
        if collects:
            gc.enable()
    return left < 0


@functools.cache
def _operations(code: CodeType) -> dict[int, str]:
    return {one.offset: one.opname for one in dis.get_instructions(code)}
