"""What libraries log, which must not be printed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def captured_log(*names: str) -> Iterator[list[str]]:
    """Collect what libraries warn of instead of printing it: what matters in it becomes our error."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    collector = Collector(level=logging.WARNING)
    under = tuple(f"{name}." for name in names)
    children = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith(under)]
    tops = [logging.getLogger(name) for name in names]
    before = [(one, one.propagate, list(one.handlers)) for one in (*tops, *children)]
    for one in tops:
        one.propagate, one.handlers = False, [collector]
    for one in children:
        one.propagate, one.handlers = True, []
    try:
        yield messages
    finally:
        for one, propagate, handlers_before in before:
            one.propagate, one.handlers = propagate, handlers_before
