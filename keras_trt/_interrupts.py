"""Ctrl-C at a moment when an exception would do harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deferred() -> Iterator[threading.Event]:
    """Let Ctrl-C set the event that is given while the block runs, and raise when the block has ended.

    Only the main thread hears of signals; in another this does nothing. Nor does it where a program ignores Ctrl-C or
    has a handler of its own.

    Raises:
        KeyboardInterrupt: after the block, in place of what it raises, if Ctrl-C came while it ran.
    """
    interrupted = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupted
        return
    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if interrupted.is_set():
            raise KeyboardInterrupt
