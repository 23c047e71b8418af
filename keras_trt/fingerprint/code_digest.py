"""Hashes of Python values and of the code that they reach.

The rule of everything here: two things that could act differently never hash alike. What a user wrote is hashed by
content: bytecode, constants, defaults, closures, and every function, class and value that the bytecode reaches through
globals. What a library holds is hashed by name and version. What is neither raises `Unhashable`.
"""

from __future__ import annotations

import builtins
import collections
import dis
import enum
import functools
import hashlib
import importlib.util
import inspect
import logging
import pathlib
import re
import sys
import types
from collections.abc import Mapping
from typing import Any

from .libraries import DESCRIPTORS, importable, is_library, is_library_class, is_library_function, release
from .walk import Walk

__all__ = [
    "Digester",
    "state_of",
    "words",
]


def words(text: str) -> frozenset[str]:
    """Return the words of a text as a set."""
    return frozenset(text.split())


# These let code read what no hash of the code covers.
_READS_THE_WORLD = words(
    "builtins.eval builtins.exec builtins.compile builtins.globals builtins.open builtins.input "
    "builtins.__import__ io.open _io.open os.environ os.environb os.getenv sys.argv sys.modules sys._getframe "
    "importlib.import_module importlib.reload pathlib.Path "
    "numpy.fromfile numpy.genfromtxt numpy.load numpy.loadtxt numpy.memmap"
)
# Attributes of a class that do not change what its instances do, or repeat what is hashed elsewhere.
_CLASS_NOISE = words(
    "__abstractmethods__ __annotate__ __annotate_func__ __annotations__ __annotations_cache__ "
    "__dataclass_fields__ __dataclass_params__ __dict__ __doc__ __firstlineno__ __module__ __orig_bases__ "
    "__parameters__ __qualname__ __static_attributes__ __type_params__ __weakref__ _abc_impl"
)
_CONTAINERS: tuple[Any, ...] = (dict, list, tuple, set, frozenset, str, bytes, int, float, complex, collections.deque)
_HARMLESS_BASES = words("object Generic Protocol ABC Enum IntEnum StrEnum Flag IntFlag ReprEnum")
_SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType)
_TUPLE_GETTER: Any = type(vars(inspect.FullArgSpec)["args"])  # the descriptors of any named tuple's fields
_BY_REPR = words(
    "datetime.date datetime.datetime datetime.time datetime.timedelta decimal.Decimal fractions.Fraction "
    "uuid.UUID types.GenericAlias types.UnionType inspect.Signature"
)


class Digester(Walk):
    """Hashes values and the code that they reach."""

    def __init__(self) -> None:
        super().__init__()
        #: Names of the attributes that users' code reads, and assigns. What is written as a string may be one that
        #: `getattr` reads.
        self.loads: set[str] = set()
        self.stores: set[str] = set()
        self._later: list[tuple[type, set[str]]] = []
        self._packages: dict[str, str] = {}  # each is read once

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
        elif not self._callable(item) and not self._known(item):
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
            self._by_name("module", item.__name__, "")
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

    def _by_name(self, tag: str, module: str, qualname: str) -> None:
        if f"{module}.{qualname}" in _READS_THE_WORLD:
            self.refuse(f"the code uses {module}.{qualname}, which reads what no hash of the code covers")
        if not is_library(module):
            self.refuse(f"{module}.{qualname} is compiled, so its code cannot be hashed")
        self.put(tag, module, qualname, release(module, self._packages))

    def _callable(self, item: Any) -> bool:
        """Hash a function or something that wraps functions."""
        if isinstance(item, types.FunctionType):
            self.function(item)
        elif isinstance(item, types.MethodType):
            self.put("method")
            self.value(item.__func__)
            self.value(item.__self__)
        elif isinstance(item, types.BuiltinFunctionType):
            owner = item.__self__
            self._by_name("builtin", getattr(item, "__module__", None) or "builtins", item.__qualname__)
            if owner is not None and not isinstance(owner, types.ModuleType):
                self.value(owner)
        elif isinstance(item, DESCRIPTORS):
            self.put("descriptor", item.__name__)
            self.cls(item.__objclass__)
        elif isinstance(item, _SLOTS):
            self.put("slot", item.__name__)
        elif type(item) is _TUPLE_GETTER:  # a field of a named tuple
            self.put("field", item.__reduce__()[1][0])
        elif isinstance(item, staticmethod | classmethod):
            self.put(type(item).__name__)
            self.value(item.__func__)
        elif isinstance(item, property):
            self.put("property")
            self.value([item.fget, item.fset, item.fdel])
        elif isinstance(item, functools.cached_property):
            self.put("cached_property")
            self.value(item.func)
        elif isinstance(item, functools.partial | functools.partialmethod):
            self.put("partial")
            self.value([item.func, item.args, item.keywords])
        elif isinstance(item, functools._lru_cache_wrapper):
            self.put("cache")
            self.value(item.__wrapped__)
        elif callable(item) and (path := importable(item)):
            self._by_name("library", *path)
        else:
            return False
        return True

    def function(self, function: types.FunctionType) -> None:
        """Hash a function: a library's by name, a user's by content."""
        library = is_library_function(function)
        if library and (path := importable(function)):
            self._by_name("library", *path)
            return
        if not self.first_time(function):
            return
        with self.at(f"the function {function.__qualname__}"):
            self.put("function", library)
            if library:  # such as the closures by which TensorFlow wraps users' functions
                self._by_name("library", str(function.__globals__["__name__"]), function.__code__.co_qualname)
                self.code(function.__code__, None)
            else:
                self.code(function.__code__, function.__globals__)
            self.value([function.__defaults__, function.__kwdefaults__], soft=library)
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
                with self.at(f"its variable {name}"):
                    try:
                        content = cell.cell_contents
                    except ValueError:
                        self.put("empty")
                        continue
                    self.value(content, soft=library)
            self.value(dict(sorted(vars(function).items())), soft=library)

    def code(self, code: types.CodeType, namespace: Mapping[str, Any] | None) -> None:
        """Hash bytecode, without file names and lines, and what it reaches through `namespace`."""
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        self.put("code", code.co_name, len(code.co_consts), *counts, code.co_code, code.co_exceptiontable)
        self.put("names", *code.co_names)
        self.put("variables", *code.co_varnames)
        self.put("cells", *code.co_cellvars)
        self.put("free", *code.co_freevars)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self.code(constant, namespace)
            else:
                if isinstance(constant, str):
                    self.loads.add(constant)
                self.value(constant)
        if namespace is not None:
            self._reach(code, namespace)

    def _reach(self, code: types.CodeType, namespace: Mapping[str, Any]) -> None:
        steps = list(dis.get_instructions(code))
        modules: dict[str, types.ModuleType] = {}  # variables of this code that hold modules
        followed = 0  # attributes before this step belong to modules
        for i, step in enumerate(steps):
            name = step.argval
            if step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
                if i >= followed:
                    self.loads.add(str(name))
            elif step.opname == "STORE_ATTR":
                self.stores.add(str(name))
            elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                with self.at(f"the global {name}"):
                    self.put("global", name)
                    if name in namespace:
                        followed = self._chain(namespace[name], steps, i + 1)
                    elif hasattr(builtins, name):
                        followed = self._chain(getattr(builtins, name), steps, i + 1)
                    else:
                        self.put("missing", name)
            elif step.opname == "IMPORT_NAME":
                self._import(code, namespace, steps, i, modules)
            elif "LOAD_FAST" in step.opname or step.opname in ("LOAD_DEREF", "LOAD_CLOSURE"):
                # Python 3.13 loads two variables in one instruction; what follows is done to the second.
                loaded = name if isinstance(name, tuple) else (name,)
                for variable in loaded[:-1]:
                    self.value(modules.get(variable))
                if loaded[-1] in modules:
                    followed = self._chain(modules[loaded[-1]], steps, i + 1)
        self.put("end")

    def _chain(self, found: Any, steps: list[dis.Instruction], i: int) -> int:
        """Hash a global, following the attributes of modules as far as the code names them; return where that ends."""
        while isinstance(found, types.ModuleType) and steps[i].opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attribute = str(steps[i].argval)
            if f"{found.__name__}.{attribute}" in _READS_THE_WORLD:
                self.refuse(f"the code uses {found.__name__}.{attribute}, which no hash of it covers")
            self.put("attribute", found.__name__ if is_library(found.__name__) else "", attribute)
            missing = not hasattr(found, attribute)
            library = is_library(found.__name__)
            if library:
                self._by_name("module", found.__name__, "")
            found, i = getattr(found, attribute, None), i + 1
            if missing:
                self.put("missing")
            elif library and not isinstance(found, types.ModuleType):
                return i  # the name above says it
        self.value(found)
        return i

    def _import(
        self,
        code: types.CodeType,
        namespace: Mapping[str, Any],
        steps: list[dis.Instruction],
        i: int,
        modules: dict[str, types.ModuleType],
    ) -> None:
        """Hash what an import statement inside a function brings in."""
        level = steps[i - 2].argval or 0
        package = namespace.get("__package__") or ""
        name = importlib.util.resolve_name("." * level + steps[i].argval, package) if level else steps[i].argval
        if is_library(name):
            self._by_name("import", name, "")
        elif name not in sys.modules:
            self.refuse(f"the code of {code.co_name} imports {name}, which is not loaded")
        following = steps[i + 1]
        if following.opname == "IMPORT_FROM":
            for step in steps[i + 1 :]:
                if step.opname == "IMPORT_FROM":
                    self._imported(name, str(step.argval))
                elif not step.opname.startswith("STORE_"):
                    break
        elif following.opname == "STORE_FAST" and "." not in name and name in sys.modules:
            modules[following.argval] = sys.modules[name]
        elif not is_library(name):  # only a plain local variable can be followed to its uses
            self.refuse(f"the code of {code.co_name} imports {name} in a way that is not followed")

    def _imported(self, module: str, attribute: str) -> None:
        if f"{module}.{attribute}" in _READS_THE_WORLD:
            self.refuse(f"the code uses {module}.{attribute}, which no hash of it covers")
        if not is_library(module):
            if not hasattr(sys.modules[module], attribute):
                self.refuse(f"the code imports {module}.{attribute}, which is not loaded")
            self.value(getattr(sys.modules[module], attribute))

    def cls(self, cls: type) -> None:
        """Hash a class: a library's by name, a user's by content."""
        if is_library_class(cls):
            self._by_name("library", cls.__module__, cls.__qualname__)
        elif self.first_time(cls):
            with self.at(f"the class {cls.__name__}"):
                self.put("class", cls.__name__)
                self.value([type(cls), *cls.__bases__])
                later = self.later(cls)
                names = sorted(set(vars(cls)) - _CLASS_NOISE - later)
                if issubclass(cls, enum.Enum):  # its members stand in its namespace as descriptors of Python's own
                    self.value([(name, member.value) for name, member in cls.__members__.items()])
                    names = [name for name in names if isinstance(vars(cls)[name], types.FunctionType | property)]
                self._members(cls, names)
                self._later.append((cls, later & set(vars(cls))))

    def _members(self, cls: type, names: list[str]) -> None:
        for name in names:
            with self.at(name):
                self.put("member", name)
                self.value(vars(cls)[name])
        self.put("end")

    def rest(self) -> None:
        """Hash what counts only if some code names it, now that all code is known but for what this reaches."""
        loads = frozenset(self.loads)
        named = [(cls, sorted(names & loads)) for cls, names in self._later if names & loads]
        self._later = [(cls, names - loads) for cls, names in self._later]
        for cls, names in named:
            with self.at(f"the class {cls.__name__}"):
                self.put("named", self._seen[id(cls)][0])
                self._members(cls, names)
        if named:  # which may name others
            self.rest()

    def later(self, cls: type) -> set[str]:  # noqa: ARG002 -- for subclasses
        """Return the members of a user's class that count only if other code names them."""
        return set()

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
