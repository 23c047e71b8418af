"""Hashes of the code that a value reaches.

The rule of everything here: two things that could act differently never hash alike. What a user wrote is hashed by
content: bytecode, constants, defaults, closures, and every function, class and value that the bytecode reaches through
globals. What a library holds is hashed by name and version. What is neither raises `Unhashable`.
"""

from __future__ import annotations

import builtins
import dis
import enum
import functools
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

from .libraries import (
    DESCRIPTORS,
    READS_THE_WORLD,
    importable,
    is_library,
    is_library_class,
    is_library_function,
    words,
)
from .value_digest import ValueDigester
from .walk import Unhashable

__all__ = ["Digester", "code_key"]

# Attributes of a class that do not change what its instances do, or repeat what is hashed elsewhere.
_CLASS_NOISE = words(
    "__abstractmethods__ __annotate__ __annotate_func__ __annotations__ __annotations_cache__ "
    "__dataclass_fields__ __dataclass_params__ __dict__ __doc__ __firstlineno__ __module__ __orig_bases__ "
    "__parameters__ __qualname__ __static_attributes__ __type_params__ __weakref__ _abc_impl"
)
_SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType)
_TUPLE_GETTER: Any = type(vars(inspect.FullArgSpec)["args"])  # the descriptors of any named tuple's fields


class Digester(ValueDigester):
    """Hashes values and the code that they reach."""

    def __init__(self) -> None:
        super().__init__()
        #: Names of the attributes that users' code reads, and assigns. What is written as a string may be one that
        #: `getattr` reads.
        self.loads: set[str] = set()
        self.stores: set[str] = set()
        self._later: list[tuple[type, set[str]]] = []

    def runnable(self, item: Any) -> bool:
        """Hash a function or something that wraps functions."""
        if isinstance(item, types.FunctionType):
            self.function(item)
        elif isinstance(item, types.MethodType):
            self.put("method")
            self.value(item.__func__)
            self.value(item.__self__)
        elif isinstance(item, types.BuiltinFunctionType):
            owner = item.__self__
            self.by_name("builtin", getattr(item, "__module__", None) or "builtins", item.__qualname__)
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
            self.by_name("library", *path)
        else:
            return False
        return True

    def function(self, function: types.FunctionType) -> None:
        """Hash a function: a library's by name, a user's by content."""
        library = is_library_function(function)
        if library and (path := importable(function)):
            self.by_name("library", *path)
            return
        if not self.first_time(function):
            return
        with self.at(f"the function {function.__qualname__}"):
            self.put("function", library)
            if library:  # such as the closures by which TensorFlow wraps users' functions
                self.by_name("library", str(function.__globals__["__name__"]), function.__code__.co_qualname)
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
            if f"{found.__name__}.{attribute}" in READS_THE_WORLD:
                self.refuse(f"the code uses {found.__name__}.{attribute}, which no hash of it covers")
            self.put("attribute", found.__name__ if is_library(found.__name__) else "", attribute)
            missing = not hasattr(found, attribute)
            library = is_library(found.__name__)
            if library:
                self.by_name("module", found.__name__, "")
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
            self.by_name("import", name, "")
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
        if f"{module}.{attribute}" in READS_THE_WORLD:
            self.refuse(f"the code uses {module}.{attribute}, which no hash of it covers")
        if not is_library(module):
            if not hasattr(sys.modules[module], attribute):
                self.refuse(f"the code imports {module}.{attribute}, which is not loaded")
            self.value(getattr(sys.modules[module], attribute))

    def cls(self, cls: type) -> None:
        """Hash a class: a library's by name, a user's by content."""
        if is_library_class(cls):
            self.by_name("library", cls.__module__, cls.__qualname__)
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


def code_key(items: Iterable[Any]) -> str:
    """Return a hash of the code of functions, and of those that objects of libraries were made with.

    Args:
        items: functions, objects and names, as Keras takes losses and metrics. What else is in an object of a library
            its configuration tells.

    Returns:
        64 hexadecimal digits.

    Raises:
        Unhashable: if a function has no certain hash, or something is of a user's class, whose attributes change as it
            is used.
    """
    walk = Digester()
    try:
        for item in items:
            if item is None or isinstance(item, str):
                walk.value(item)
            elif not walk.runnable(item):
                if not is_library_class(type(item)):
                    walk.refuse(f"an object of class {type(item).__qualname__} may hold anything")
                walk.cls(type(item))
                walk.value([held for held in vars(item).values() if isinstance(held, types.FunctionType)])
    except Unhashable:
        raise
    except Exception as error:  # users' objects may raise anything; no key is always a right answer
        raise Unhashable(f"{type(error).__name__} while code was read: {error}") from error
    return walk.digest().hex()
