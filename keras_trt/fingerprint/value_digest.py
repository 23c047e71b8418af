"""Hashes of values: plain ones by content, a library's by what is known of them, objects by class and attributes.

What is code, which `code_digest` knows, is left to it: functions, classes, and what wraps them.
"""

from __future__ import annotations

import collections
import enum
import functools
import hashlib
import inspect
import logging
import pathlib
import re
import types
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from .libraries import READS_THE_WORLD, is_library, is_library_class, release, words
from .walk import Walk

__all__ = ["ValueDigester", "state_of"]

_CONTAINERS: tuple[Any, ...] = (dict, list, tuple, set, frozenset, str, bytes, int, float, complex, collections.deque)
_HARMLESS_BASES = words("object Generic Protocol ABC Enum IntEnum StrEnum Flag IntFlag ReprEnum")
_BY_REPR = words(
    "datetime.date datetime.datetime datetime.time datetime.timedelta decimal.Decimal fractions.Fraction "
    "uuid.UUID types.GenericAlias types.UnionType inspect.Signature"
)


class ValueDigester(Walk, ABC):
    """Hashes values."""

    def __init__(self) -> None:
        super().__init__()
        self._packages: dict[str, str] = {}  # each is read once

    @abstractmethod
    def code(self, code: types.CodeType, namespace: Mapping[str, Any] | None) -> None:
        """Hash bytecode."""

    @abstractmethod
    def cls(self, cls: type) -> None:
        """Hash a class."""

    @abstractmethod
    def runnable(self, item: Any) -> bool:
        """Hash a function or something that wraps functions; return False if it is neither."""

    def special(self, item: Any, soft: bool) -> bool:  # noqa: ARG002 -- for subclasses
        """Hash what a subclass knows better; return False to leave it to the general rules."""
        return False

    def opaque(self, item: Any, soft: bool) -> None:
        """Note something of a library that has no content to hash; only where something else covers it."""
        if not soft:
            self.refuse(f"a {type(item).__module__}.{type(item).__qualname__} cannot be hashed")
        self.put("opaque", type(item).__qualname__)

    def value(self, item: Any, soft: bool = False, loose: bool = False) -> None:
        """Hash any value.

        Args:
            item: the value.
            soft: the value is an attribute of an object whose configuration is hashed too: skip objects of
                libraries that have no content to hash.
            loose: take a list and a tuple for the same, as JSON does.
        """
        kind = type(item)
        if kind in (bool, float, complex, type(None), type(Ellipsis), type(NotImplemented), range):
            self.put(kind.__name__, repr(item))
        elif kind is int:
            self.put("int", hex(item))
        elif kind is slice:
            self.put("slice")
            self.value([item.start, item.stop, item.step], soft, loose)
        elif kind in (str, bytes, bytearray):
            self.put(kind.__name__, item if kind is str else bytes(item))
        elif kind in (list, dict, tuple, set, frozenset):
            self._container(item, soft, loose)
        elif self.special(item, soft):
            pass
        elif isinstance(item, enum.Enum):
            self.put("enum", str(item.name))
            self.value(item.value)
            self.cls(kind)
        elif isinstance(item, type):
            self.cls(item)
        elif isinstance(item, _CONTAINERS) and is_library_class(kind) and kind.__module__ != "numpy":
            self._container(item, soft, loose)
        elif not self.runnable(item) and not self._known(item):
            if is_library_class(kind):
                self.opaque(item, soft)
            else:
                self._instance(item)

    def _container(self, item: Any, soft: bool, loose: bool) -> None:
        if id(item) in self._open:
            self.refuse("a container holds itself")
        self._open.add(id(item))
        if isinstance(item, dict):
            self.put("dict", len(item))
            self.value(getattr(item, "default_factory", None))
            for key, child in item.items():
                self.value(key, soft, loose)
                with self.at(f"[{key!r}]"):
                    self.value(child, soft, loose)
        elif isinstance(item, list | tuple | collections.deque):
            self.put("list" if loose or isinstance(item, list) else type(item).__name__, len(item))
            for child in item:
                self.value(child, soft, loose)
        elif isinstance(item, set | frozenset):
            self._set(item)
        else:
            self.refuse(f"a {type(item).__qualname__} cannot be hashed")
        self._open.discard(id(item))

    def _set(self, item: Any) -> None:
        """Hash a set in the order of its elements' hashes, for its own order changes from process to process."""
        whole, known, parts = self._sha, len(self._seen), []
        for child in item:
            self._sha = hashlib.sha256()
            self.value(child)
            parts.append(self._sha.digest())
        self._sha = whole
        if len(self._seen) != known:
            self.refuse("a set of functions, classes or objects has no order in which they could be numbered")
        self.put("set", *sorted(parts))

    def _known(self, item: Any) -> bool:
        """Hash a value of a library's type that has a known content."""
        kind = type(item)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if kind is types.MappingProxyType:
            self.value(dict(item))
        elif kind is types.CodeType:
            self.code(item, {})
        elif isinstance(item, types.ModuleType):
            if not is_library(item.__name__):
                self.refuse(f"the module {item.__name__} is used as a value")
            self.by_name("module", item.__name__, "")
        elif isinstance(item, logging.Logger):
            self.put("logger")
        elif isinstance(item, pathlib.PurePath):
            self.put("path", str(item))
        elif isinstance(item, re.Pattern):
            self.put("pattern", item.flags)
            self.value(item.pattern)
        elif kind is types.SimpleNamespace:
            self.put("namespace")
            self.value(vars(item))
        elif kind.__module__ == "operator":  # itemgetter, attrgetter, methodcaller
            self.put("operator", kind.__name__)
            self.value(item.__reduce__()[1])
        elif kind.__module__ == "typing" or name in _BY_REPR:
            self.put("repr", name, repr(item))
        elif kind.__module__.partition(".")[0] == "numpy":
            return self._numpy(item)
        else:
            return False
        return True

    def _numpy(self, item: Any) -> bool:
        import numpy as np

        if isinstance(item, np.ma.MaskedArray):
            self.put("masked")
            self.value([item.data, np.ma.getmaskarray(item), item.fill_value])
        elif isinstance(item, np.ndarray):
            self.put("ndarray", type(item).__name__, item.dtype.name, item.dtype.str, repr(item.shape))
            self.put("fields", repr(item.dtype.descr) if item.dtype.names else "")
            if item.dtype.hasobject:
                self.value(item.tolist())
            else:
                content = np.ascontiguousarray(item).reshape(-1).view(np.uint8).data
                self.put("bytes", hashlib.sha256(content).digest())
        elif isinstance(item, np.generic):
            self.put("generic", item.dtype.str, item.tobytes())
        elif isinstance(item, np.dtype):
            self.put("dtype", item.str, repr(item.descr) if item.names else item.name)
        elif isinstance(item, np.ufunc):
            self.put("ufunc", item.__name__)
        else:
            return False
        return True

    def by_name(self, tag: str, module: str, qualname: str) -> None:
        """Hash something of a library by its name and version."""
        if f"{module}.{qualname}" in READS_THE_WORLD:
            self.refuse(f"the code uses {module}.{qualname}, which reads what no hash of the code covers")
        if not is_library(module):
            self.refuse(f"{module}.{qualname} is compiled, so its code cannot be hashed")
        self.put(tag, module, qualname, release(module, self._packages))

    def _instance(self, item: Any) -> None:
        """Hash an instance of a user's class: its class, its content and its attributes."""
        if not self.first_time(item):
            return
        kind = type(item)
        with self.at(f"an object of class {kind.__name__}"):
            for base in kind.__mro__:
                harmless = issubclass(base, _CONTAINERS) or base.__name__ in _HARMLESS_BASES
                if is_library_class(base) and not harmless and base.__module__.partition(".")[0] != "keras":
                    self.refuse(f"its state is also that of {base.__module__}.{base.__qualname__}")
            self.put("instance")
            self.cls(kind)
            for base in _CONTAINERS:
                if isinstance(item, base):
                    self.put("content")
                    self.value(base(item))
            self.attributes(item, state_of(item))

    def attributes(self, item: Any, state: Mapping[str, Any], soft: bool = False, loose: bool = False) -> None:  # noqa: ARG002
        """Hash attributes by name."""
        self.put("attributes", len(state))
        for name in sorted(state):
            with self.at(f"attribute {name}"):
                self.put("attribute", name)
                self.value(state[name], soft, loose)


def state_of(item: Any) -> dict[str, Any]:
    """Return the attributes that an object itself holds, in `__dict__` or in slots."""
    cls: type = type(item)
    state = dict(getattr(item, "__dict__", {}))
    for name in _slots(cls):
        if hasattr(item, name):
            state[name] = getattr(item, name)
    return state


@functools.lru_cache(1024)  # bounded: it keeps classes alive
def _slots(cls: type) -> tuple[str, ...]:
    """Return the names of the slots of a class and its bases."""
    return tuple(
        name for base in cls.__mro__ for name, member in vars(base).items() if inspect.ismemberdescriptor(member)
    )
