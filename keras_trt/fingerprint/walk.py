"""One SHA-256 over a graph of objects, and the error that says where in it something has no hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class Unhashable(Exception):  # noqa: N818 -- a verdict that the caller handles, not an error that a user sees
    """Something has no safe hash.

    Attributes:
        reason: what it is and where it was found.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Walk:
    """Feeds values, in an encoding that no two of them share, to one SHA-256.

    Functions, classes and instances are numbered as they are met, and a second meeting writes the number. That
    resolves recursion, and keeps the time linear.
    """

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self._seen: dict[int, tuple[int, object]] = {}  # holds the objects too, so that no id is used twice
        self._open: set[int] = set()
        self._where: list[str] = []

    def digest(self) -> bytes:
        """Return the SHA-256 of everything so far."""
        return self._sha.digest()

    def put(self, tag: str, *parts: str | bytes | int) -> None:
        """Write one token."""
        data = f"{len(parts)} {len(tag)} {tag}".encode()
        for part in parts:
            encoded = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
            data += b"%d %b" % (len(encoded), encoded)
        self._sha.update(data)

    def refuse(self, why: str) -> NoReturn:
        """Raise `Unhashable` for the place where the walk is."""
        raise Unhashable(": ".join([*self._where, why]))

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Name the place where the walk is, for `refuse`."""
        self._where.append(place)
        yield
        self._where.pop()  # left standing after an exception, which names it

    def first_time(self, item: object) -> bool:
        """Number `item`; if it has a number already, write that one and return False."""
        known = self._seen.get(id(item))
        if known is not None:
            self.put("again", known[0])
            return False
        self._seen[id(item)] = (len(self._seen), item)
        return True
