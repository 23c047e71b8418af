"""What the expressions of a source hold, as far as a bindings library is concerned. Part of uses.py."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from .bindings import Names
from .signatures import class_path, returned_class

# The parameters of the functions and classes of a source, by name; None where two of one name differ.
Parameters = dict[str, list[str] | None]


@dataclass(frozen=True)
class Library:
    """How a bindings module and its objects are called in the source."""

    variable: str
    modules: tuple[str, ...]
    objects: dict[str, str]  # the name of a variable: the class of what it holds
    own: tuple[str, ...] = ()  # variables with attributes that are keras_trt's own, whatever their names


@dataclass(frozen=True)
class Held:
    """What an expression holds: the module, a class, an object of a class, or something else that has a name."""

    what: str  # "module", "class", "object" or "other"
    path: str  # of an object: its class
    given: frozenset[str] = frozenset()
    of_object: bool = False


class Expressions:
    """What is known at one place of a source."""

    def __init__(self, library: Library, known: Names) -> None:
        self.library, self.known = library, known
        self.given: frozenset[str] = frozenset()  # the names known to exist at this place
        self.held: dict[str, Held] = {}  # local variables that hold something of the library
        self.tests: dict[str, frozenset[str]] = {}  # local variables that are true only if these names exist
        self.literals: dict[str, list[ast.expr]] = {}  # variables: the expressions they may stand for

    # -- What an expression holds --------------------------------------------------------------------------------

    def what(self, node: ast.expr) -> Held | None:
        """What an expression holds, if it is of the library."""
        if isinstance(node, ast.Name):
            return self.named(node.id) or self.held.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.what(node.value)
            if owner and owner.what != "other":
                return self.member(owner, node.attr)
            if isinstance(node.value, ast.Name) and node.value.id in self.library.own:
                return None
            return self.named(node.attr.lstrip("_"))
        if isinstance(node, ast.Call):
            return self.result(node)
        if isinstance(node, ast.Subscript):
            return self.element(self.what(node.value))
        if isinstance(node, ast.NamedExpr):
            return self.what(node.value)
        if isinstance(node, ast.IfExp):
            for branch, truth in ((node.body, True), (node.orelse, False)):
                if held := self.what(branch):
                    return replace(held, given=held.given | self.known_if(node.test, truth))
        return None

    def named(self, name: str) -> Held | None:
        """What the conventions say that a name holds."""
        if name == self.library.variable:
            return Held("module", "")
        return Held("object", self.library.objects[name]) if name in self.library.objects else None

    def member(self, owner: Held, name: str) -> Held:
        path = join(owner, name)
        entry = self.known.get(path, {"kind": "unknown"})
        if entry["kind"] == "class":
            return Held("class", class_path(entry["is"]) or path, owner.given)
        if entry["kind"] == "property":
            path_of_class = self.returned(path)
        else:
            path_of_class = class_path(entry["is"]) if entry["kind"] == "value" else None
        if path_of_class:
            return Held("object", path_of_class, owner.given)
        return Held("other", path, owner.given, of_object=owner.what == "object")

    def result(self, node: ast.Call) -> Held | None:
        """What a call returns."""
        if isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) >= 2:
            owner, names = self.what(node.args[0]), self.texts(node.args[1])
            if owner is None or owner.what == "other" or not names:
                return None
            held = self.member(owner, next((name for name in names if join(owner, name) in self.known), names[0]))
            asked = [join(owner, name) for name in names] if len(names) == 1 and len(node.args) == 3 else []
            return replace(held, given=held.given | frozenset(asked))
        function = self.what(node.func)
        if function and function.what == "class":
            return Held("object", function.path, function.given)
        path = self.returned(function.path) if function and function.what == "other" else None
        return Held("object", path, function.given) if function and path else None

    def element(self, owner: Held | None) -> Held | None:
        """What indexing or iterating over an object yields."""
        path = self.returned(f"{owner.path}.__getitem__") if owner and owner.what == "object" else None
        return Held("object", path, owner.given) if owner and path else None

    def returned(self, path: str) -> str | None:
        """The class that a function or property returns."""
        signatures = self.known.get(path, {}).get("signatures", [])
        return next(filter(None, map(returned_class, signatures)), None)

    def is_a(self, path: str, base: str) -> bool:
        return path == base or any(class_path(full) == base for full in self.known.get(path, {}).get("bases", []))

    # -- Which names exist where a test holds ---------------------------------------------------------------------

    def known_if(self, test: ast.expr, truth: bool) -> frozenset[str]:
        """The names that exist if `test` turns out as `truth`."""
        nothing: frozenset[str] = frozenset()
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return self.known_if(test.operand, not truth)
        if isinstance(test, ast.BoolOp):
            if isinstance(test.op, ast.And) == truth:
                return nothing.union(*(self.known_if(value, truth) for value in test.values))
            return nothing
        if isinstance(test, ast.Compare):  # x is None, x is not None
            is_not = isinstance(test.ops[0], ast.IsNot)
            none = isinstance(test.comparators[0], ast.Constant) and test.comparators[0].value is None
            if not (none and isinstance(test.ops[0], ast.Is | ast.IsNot) and is_not == truth):
                return nothing
        elif not truth:
            return nothing
        elif isinstance(test, ast.Name) and test.id in self.tests:
            return self.tests[test.id]
        elif isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id == "hasattr":
            owner, names = self.what(test.args[0]), self.texts(test.args[1])
            if owner and owner.what != "other" and len(names) == 1:
                return owner.given | {join(owner, names[0])}
            return nothing
        held = self.what(test.left if isinstance(test, ast.Compare) else test)
        return held.given if held else nothing

    # -- Literals ------------------------------------------------------------------------------------------------

    def texts(self, node: ast.expr) -> list[str]:
        """The strings that an expression may be; empty if that is not known."""
        if isinstance(node, ast.Constant):
            return [node.value] if isinstance(node.value, str) else []
        if isinstance(node, ast.IfExp):
            parts = [node.body, node.orelse]
        elif isinstance(node, ast.Name):
            parts = self.literals.get(node.id, [])
        elif isinstance(node, ast.Subscript):
            parts = self.values(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            parts = [*self.values(node.func.value), *node.args[1:]]
        else:
            return []
        found = [self.texts(part) for part in parts]
        return [text for texts in found for text in texts] if all(found) else []

    def values(self, node: ast.expr) -> list[ast.expr]:
        """What indexing a literal may yield."""
        literals = self.literals.get(node.id, []) if isinstance(node, ast.Name) else [node]
        return [
            value for one in literals for value in (one.values if isinstance(one, ast.Dict) else self.elements(one))
        ]

    def elements(self, node: ast.expr) -> list[ast.expr]:
        """What iterating over a literal yields; empty if that is not known."""
        if isinstance(node, ast.Name):
            return [element for literal in self.literals.get(node.id, []) for element in self.elements(literal)]
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            return node.elts
        if isinstance(node, ast.Dict):
            return [key for key in node.keys if key]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args:
            owner = node.func.value
            literals = self.literals.get(owner.id, []) if isinstance(owner, ast.Name) else [owner]
            dicts = [literal for literal in literals if isinstance(literal, ast.Dict)]
            if node.func.attr == "items":
                pairs = [pair for one in dicts for pair in zip(one.keys, one.values, strict=True)]
                return [ast.Tuple([key, value]) for key, value in pairs if key]
            return self.values(owner) if node.func.attr == "values" else self.elements(owner)
        return []

    def bind(self, target: ast.expr, elements: list[ast.expr]) -> None:
        """Notes what a loop variable may stand for."""
        if isinstance(target, ast.Name):
            self.literals[target.id] = elements
        elif isinstance(target, ast.Tuple):
            rows = [row.elts for row in elements if isinstance(row, ast.Tuple) and len(row.elts) == len(target.elts)]
            for index, part in enumerate(target.elts):
                self.bind(part, [row[index] for row in rows])


def join(owner: Held, name: str) -> str:
    return f"{owner.path}.{name}" if owner.path else name


def leaves(body: list[ast.stmt]) -> bool:
    """Whether what follows the `if` with this body does not run after it."""
    return isinstance(body[-1], ast.Return | ast.Raise | ast.Continue | ast.Break)


def times_set(scope: ast.AST) -> Counter[str]:
    """How often each variable of a scope is set; a parameter is set once by the call."""
    times: Counter[str] = Counter()
    for node in _own(scope):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            times[node.id] += 1
        elif isinstance(node, ast.arg):
            times[node.arg] += 1
    return times


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a scope without those of the functions in it."""
    for node in ast.iter_child_nodes(scope):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _own(node)


def parameters_of(trees: Iterable[ast.Module]) -> Parameters:
    """What the functions and classes of some sources call their positional parameters."""
    found: Parameters = {}

    def add(name: str, parameters: list[str]) -> None:
        found[name] = parameters if found.get(name, parameters) == parameters else None

    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
            add(node.name, names[1:] if names[:1] in (["self"], ["cls"]) else names)
        elif isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                    add(node.name, [argument.arg for argument in part.args.args[1:]])
            if node.decorator_list:  # a dataclass takes its fields
                fields = [part.target for part in node.body if isinstance(part, ast.AnnAssign)]
                add(node.name, [target.id for target in fields if isinstance(target, ast.Name)])
    return found
