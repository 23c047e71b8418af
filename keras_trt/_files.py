"""Files of the user that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(target: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of another when the block has ended, with the rights that a new file has.

    Args:
        target: what is replaced; its folder must be there.

    Raises:
        OSError: if it cannot be written; the old file is then as it was.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    # Not `tempfile`, whose files only their owner can read.
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
