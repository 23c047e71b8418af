"""Imports one bindings module and writes what it holds as JSON. Run by bindings.py in a process of its own.

    python -I -S child.py FOLDER MODULE OUTPUT [MORE_FOLDERS...]

The output maps every public name ("Builder", "Builder.create_network", "ILogger.Severity.ERROR") to its kind (class,
function, property or value), its signatures as the docstrings tell them, and what is known of its type.
"""

import importlib
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

# The special methods that are kept: how objects are made, and what indexing them yields.
KEPT = {"__init__", "__getitem__", "__len__", "__members__", "__version__"}


def is_kept(name: str) -> bool:
    return not name.startswith("_") or name in KEPT


def signatures(name: str, value: object) -> list[str]:
    """The signature lines of a docstring; overloaded functions number theirs."""
    lines = (getattr(value, "__doc__", None) or "").strip().splitlines()
    numbered = [line for line in lines if re.match(rf"\d+\. {re.escape(name)}\(", line)]
    if numbered:
        return [line.split(". ", 1)[1] for line in numbered]
    if lines and lines[0].startswith((f"{name}(", "(")):
        return [lines[0]]
    if inspect.isfunction(value):  # written in Python: no signature in the docstring
        return [name + str(inspect.signature(value))]
    return []


def full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def add(names: dict[str, dict[str, Any]], path: str, value: Any, depth: int = 0) -> None:
    """Describes `value`, and what it holds where it is a class."""
    name = path.rpartition(".")[2]
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if inspect.ismodule(value):
        return
    if isinstance(value, type):
        names[path] = {"kind": "class", "is": full_name(value), "bases": [full_name(c) for c in value.__mro__[1:]]}
        if depth < 2:
            for member in filter(is_kept, dir(value)):
                add(names, f"{path}.{member}", inspect.getattr_static(value, member), depth + 1)
            # What TensorRT calls need not be bound: the docstring of the class then says how it is written.
            for method, parameters in re.findall(r"^\s+def (\w+)(\(self.*\)):", value.__doc__ or "", re.MULTILINE):
                if is_kept(method):
                    names.setdefault(f"{path}.{method}", {"kind": "function", "signatures": [method + parameters]})
    elif isinstance(value, property):
        getter = signatures("", value.fget)
        names[path] = {"kind": "property", "signatures": getter, "get": bool(value.fget), "set": bool(value.fset)}
    elif callable(value) or type(value).__name__ == "instancemethod":
        names[path] = {"kind": "function", "signatures": signatures(name, value)}
    else:
        names[path] = {"kind": "value", "is": full_name(type(value))}


def main(folder: str, module: str, output: str, *more: str) -> None:
    sys.path[:] = [folder, *sys.path, *more]
    loaded = importlib.import_module(module)
    names: dict[str, dict[str, Any]] = {}
    for name in filter(is_kept, dir(loaded)):
        add(names, name, getattr(loaded, name))
    Path(output).write_text(json.dumps(names))


if __name__ == "__main__":
    main(*sys.argv[1:])
