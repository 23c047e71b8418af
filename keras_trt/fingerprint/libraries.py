"""What of a program is a library's, known by its name and version, and what is a user's, known by its content."""

from __future__ import annotations

import dis
import functools
import hashlib
import os
import pathlib
import sys
import sysconfig
import types
from typing import Any

__all__ = [
    "DESCRIPTORS",
    "READS_THE_WORLD",
    "importable",
    "is_library",
    "is_library_class",
    "is_library_function",
    "release",
    "stored_names",
    "words",
]


def words(text: str) -> frozenset[str]:
    """Return the words of a text as a set."""
    return frozenset(text.split())


#: These let code read what no hash of the code covers.
READS_THE_WORLD = words(
    "builtins.eval builtins.exec builtins.compile builtins.globals builtins.open builtins.input "
    "builtins.__import__ io.open _io.open os.environ os.environb os.getenv sys.argv sys.modules sys._getframe "
    "importlib.import_module importlib.reload pathlib.Path "
    "numpy.fromfile numpy.genfromtxt numpy.load numpy.loadtxt numpy.memmap"
)
#: Methods that are written in C.
DESCRIPTORS = (types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType)
_LIBRARIES = frozenset({"builtins", "keras", "keras_trt", "numpy", "tensorflow"}) | sys.stdlib_module_names
_STANDARD_FOLDERS = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}


@functools.cache
def _library_folders(search_path: tuple[str, ...]) -> tuple[str, ...]:
    """Return the folders that distributions are installed in: each holds what an installer writes down of them.

    Not only `site-packages`: `pip install --target` and images of containers have others.
    """
    installed = {entry for entry in search_path if entry and any(pathlib.Path(entry).glob("*.dist-info"))}
    return tuple(os.path.join(os.path.realpath(path), "") for path in _STANDARD_FOLDERS | installed)  # noqa: PTH118


def _in_library_folder(path: str) -> bool:
    known = "site-packages" in path or "dist-packages" in path
    return known or os.path.realpath(path).startswith(_library_folders(tuple(sys.path)))


def is_library(module: str) -> bool:
    """Whether `module` belongs to Python, to Keras, TensorFlow or NumPy, or to an installed distribution."""
    if module.partition(".")[0] in _LIBRARIES:
        return True
    path = getattr(sys.modules.get(module), "__file__", None)
    return path is not None and _in_library_folder(path)


@functools.cache
def _content(path: str, modified: int) -> bytes:  # noqa: ARG001 -- a changed file is read again
    return hashlib.sha256(pathlib.Path(path).read_bytes()).digest()


def _sources(path: str) -> str:
    """Return the digest of a module's source file, and for a package of all below it."""
    file = pathlib.Path(path)
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    whole = hashlib.sha256()
    for one in files:
        whole.update(f"{one.relative_to(file.parent).as_posix()}|".encode("utf-8", "surrogatepass"))
        whole.update(_content(str(one), one.stat().st_mtime_ns))
    return whole.hexdigest()


def release(module: str, known: dict[str, str]) -> str:
    """Return what tells one release of a library's module from the next.

    Args:
        module: its name.
        known: digests of packages by their files; what is not in it is added.
    """
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return sys.version.partition(" ")[0]
    version = str(getattr(sys.modules.get(top), "__version__", ""))
    if top in _LIBRARIES:
        return version
    # Other distributions may have no version, or change without a new one, in whichever of their files.
    parts = module.split(".")
    names = (".".join(parts[:end]) for end in range(1, len(parts) + 1))  # a namespace package has no file of its own
    path = next(filter(None, (getattr(sys.modules.get(name), "__file__", None) for name in names)), "")
    if path.endswith(".py") and os.path.isfile(path):  # noqa: PTH113
        if path not in known:
            known[path] = _sources(path)
        return f"{version} {known[path]}"
    return version


def _symbol(module: str, qualname: str) -> Any:
    """Return what is importable as `module.qualname`, or `None`."""
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def importable(item: Any) -> tuple[str, str] | None:
    """Return module and name of something that a library offers under a name."""
    module, name = getattr(item, "__module__", None), getattr(item, "__qualname__", None)
    if isinstance(module, str) and isinstance(name, str) and is_library(module) and _symbol(module, name) is item:
        return module, name
    return None


def is_library_class(cls: type) -> bool:
    """Whether a class is one of a library."""
    if not cls.__flags__ & (1 << 9):  # Py_TPFLAGS_HEAPTYPE: a class that is written in C
        return True
    # So is a heap type whose methods are C's; it may be importable under no name, as locks are.
    if any(isinstance(item, DESCRIPTORS) for item in vars(cls).values()):
        return True
    # A class made by exec() may call itself part of `builtins`, so its name alone is no proof.
    if not is_library(cls.__module__):
        return False
    if _symbol(cls.__module__, cls.__qualname__) is cls:
        return True
    functions = [item for item in vars(cls).values() if isinstance(item, types.FunctionType)]
    return bool(functions) and all(is_library_function(function) for function in functions)


def is_library_function(function: Any) -> bool:
    """Whether a function's code is a library's."""
    if not isinstance(function, types.FunctionType):
        return False
    # Not by `__module__`: functools.wraps copies it from library functions to users' functions.
    module = str(function.__globals__.get("__name__"))
    namespace = getattr(sys.modules.get(module), "__dict__", None)
    return (
        namespace is function.__globals__ and is_library(module) and _in_library_folder(function.__code__.co_filename)
    )


_STORE_ATTR = dis.opmap["STORE_ATTR"]


@functools.cache
def stored_names(cls: type) -> frozenset[str]:
    """Return the attributes that the methods of `cls`, without those of its bases, assign on their own instance."""
    names: set[str] = set()
    todo: list[Any] = [*vars(cls).values()]
    seen: set[int] = set()
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        for part in ("__func__", "fget", "fset", "__wrapped__", "__code__"):
            todo.append(getattr(item, part, None))
        if isinstance(item, types.CodeType):
            todo.extend(item.co_consts)
            if _STORE_ATTR not in item.co_code[::2]:  # taking instructions apart is slow, and few methods store
                continue
            previous: Any = None
            for step in dis.get_instructions(item):
                if step.opname == "STORE_ATTR" and previous in ("self", "obj", "instance"):
                    names.add(str(step.argval))
                # Python 3.13 loads two variables in one instruction; the last is the target.
                previous = step.argval[-1] if isinstance(step.argval, tuple) and step.argval else step.argval
    return frozenset(names)
