"""Finds, in the source of keras_trt, every use of a name that the TensorRT (or CUDA) bindings must have.

That is possible because the source keeps to a few conventions, and what breaks them is found too:

- The module is always held in a variable or attribute of one name, `trt` (`cudart` for CUDA).
- Its objects are held in variables and parameters of fixed names (TENSORRT.objects), and in attributes of these names
  with or without a leading underscore. Nothing else has these names, but for the attributes of `spec`.
- A name that some version lacks is asked for by `getattr(x, "NAME", default)`, or used where `hasattr(x, "NAME")` is
  known to be true: in the body of the `if`, in the conditional expression, after `and`, or after an
  `if not hasattr(x, "NAME"):` that leaves the block. Such names are literals, or loop variables (or lookups) over
  literals. A name that is put together at run time is looked for in the `__members__` of its enum.
- Classes of the module are written out (`trt.BuilderFlag`), or held in a local variable that is set once. They are not
  passed on to functions.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from .bindings import Names
from .expressions import Expressions, Held, Library, Parameters, join, leaves, parameters_of, times_set
from .signatures import Call

TENSORRT = Library(
    variable="trt",
    modules=("tensorrt", "tensorrt_rtx"),
    objects={
        "logger": "ILogger",
        "builder": "Builder",
        "network": "INetworkDefinition",
        "config": "IBuilderConfig",
        "parser": "OnnxParser",
        "parser_error": "ParserError",
        "profile": "IOptimizationProfile",
        "layer": "ILayer",
        "tensor": "ITensor",
        "weights": "Weights",
        "plan": "IHostMemory",
        "timing_cache": "ITimingCache",
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
        "inspector": "EngineInspector",
        "refitter": "Refitter",
        "parser_refitter": "OnnxParserRefitter",
        "runtime_config": "IRuntimeConfig",
        "runtime_cache": "IRuntimeCache",
        "serialization_config": "ISerializationConfig",
    },
    own=("spec",),
)
CUDA = Library("cudart", ("cuda.bindings.runtime", "cuda.cudart"), {"properties": "cudaDeviceProp"})
CUDA_UTILS = Library("native", ("cuda.bindings.utils",), {})


@dataclass(frozen=True)
class Use:
    """One use of a name, such as "Builder.create_network" or "BuilderFlag.TF32".

    It must exist wherever all names in `given` do; one that is in its own `given` is guarded.
    """

    path: str
    where: str
    given: frozenset[str] = frozenset()
    call: Call | None = None
    of_object: bool = True
    stored: bool = False

    @property
    def guarded(self) -> bool:
        return self.path in self.given


@dataclass
class Found:
    """The uses, and the places that break the conventions (as "file:line: what")."""

    uses: list[Use] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def find(sources: dict[str, str], library: Library, known: Names) -> Found:
    """The uses in all sources (by file name). `known` holds the names of all versions: it tells types."""
    found = Found()
    trees = {name: ast.parse(source) for name, source in sources.items()}
    parameters = parameters_of(trees.values())
    for name, tree in trees.items():
        _Finder(name, library, known, found, parameters).file(tree)
    return found


class _Finder(Expressions):
    """Walks one file and notes what it uses."""

    def __init__(self, name: str, library: Library, known: Names, found: Found, parameters: Parameters) -> None:
        super().__init__(library, known)
        self.name, self.found, self.parameters = name, found, parameters
        self.times: Counter[str] = Counter()  # how often a variable is set in this scope

    def breaks(self, node: ast.AST, what: str) -> None:
        self.found.broken.append(f"{self.place(node)}: {what}")

    def place(self, node: ast.AST) -> str:
        return f"{self.name}:{getattr(node, 'lineno', 0)}"

    @contextmanager
    def where(self, names: frozenset[str]) -> Iterator[None]:
        """A stretch of the source where these names are known to exist."""
        before, self.given = self.given, self.given | names
        yield
        self.given = before

    def file(self, tree: ast.Module) -> None:
        self.times = times_set(tree)
        self.block(tree.body)

    # -- Statements ----------------------------------------------------------------------------------------------

    def block(self, body: list[ast.stmt]) -> None:
        before = self.given
        for statement in body:
            self.visit(statement)
            if isinstance(statement, ast.If) and not statement.orelse and leaves(statement.body):
                self.given |= self.known_if(statement.test, False)
            elif isinstance(statement, ast.Assert):
                self.given |= self.known_if(statement.test, True)
        self.given = before

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            self.branches(node)
        elif isinstance(node, ast.BoolOp):
            gained: frozenset[str] = frozenset()
            for value in node.values:
                with self.where(gained):
                    self.visit(value)
                gained |= self.known_if(value, isinstance(node.op, ast.And))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            self.function(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            self.imports(node)
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            self.comprehension(node)
        else:
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr | ast.For | ast.withitem):
                self.assignment(node)
            elif isinstance(node, ast.Attribute):
                self.use(node)
            elif isinstance(node, ast.Call):
                self.call(node)
            elif isinstance(node, ast.ClassDef):
                self.overrides(node)
            for _, value in ast.iter_fields(node):
                if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                    self.block(value)
                else:
                    for child in value if isinstance(value, list) else [value]:
                        if isinstance(child, ast.AST):
                            self.visit(child)

    def branches(self, node: ast.If | ast.While | ast.IfExp) -> None:
        self.visit(node.test)
        for branch, truth in ((node.body, True), (node.orelse, False)):
            with self.where(self.known_if(node.test, truth)):
                if isinstance(branch, list):
                    self.block(branch)
                else:
                    self.visit(branch)

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        saved = self.held.copy(), self.tests.copy(), self.literals.copy(), self.times
        self.times = times_set(node)
        for own in self.times:  # hides what it was outside
            for variables in (self.held, self.tests, self.literals):
                variables.pop(own, None)
        if not isinstance(node, ast.Lambda):
            for outside in (*node.decorator_list, node.returns):
                if outside is not None:
                    self.visit(outside)
        self.visit(node.args)
        if isinstance(node, ast.Lambda):
            self.visit(node.body)
        else:
            self.block(node.body)
        self.held, self.tests, self.literals, self.times = saved

    def comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        before, literals = self.given, self.literals.copy()
        for part in node.generators:
            self.visit(part.iter)
            self.iterates(node, part.target, part.iter)
            for test in part.ifs:
                self.visit(test)
                self.given |= self.known_if(test, True)
        for result in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self.visit(result)
        self.given, self.literals = before, literals

    def imports(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            bound = alias.asname or alias.name.partition(".")[0]
            source = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) and node.module else alias.name
            if source in self.library.modules:
                if bound != self.library.variable:
                    self.breaks(node, f"{source} is imported as {bound}, not as {self.library.variable}")
            elif source.startswith(tuple(f"{module}." for module in self.library.modules)):
                self.breaks(node, f"{source} is imported by itself; write {self.library.variable}.NAME out")
            elif bound in self.library.objects:
                self.breaks(node, f"the import of {bound} takes the name of a {self.library.objects[bound]}")

    def assignment(self, node: ast.Assign | ast.AnnAssign | ast.NamedExpr | ast.For | ast.withitem) -> None:
        if isinstance(node, ast.For):
            self.iterates(node, node.target, node.iter)
            return
        value = node.context_expr if isinstance(node, ast.withitem) else node.value
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        targets = [node.optional_vars] if isinstance(node, ast.withitem) else targets
        for target in targets:
            if value is not None and isinstance(target, ast.Name | ast.Attribute):
                self.holds(node, target, value)

    def iterates(self, node: ast.AST, target: ast.expr, over: ast.expr) -> None:
        self.bind(target, self.elements(over))
        if isinstance(target, ast.Name):
            self.check_holder(node, target.id, self.element(self.what(over)))

    def holds(self, node: ast.AST, target: ast.Name | ast.Attribute, value: ast.expr) -> None:
        """Checks the name of what holds `value`, and remembers local variables."""
        name = target.id if isinstance(target, ast.Name) else target.attr.lstrip("_")
        held = self.what(value)
        if not (isinstance(target, ast.Attribute) and self.what(target.value)):  # not an attribute of the library's
            self.check_holder(node, name, held, value)
        if isinstance(target, ast.Name) and self.times[name] == 1:
            self.literals[name] = [value]
            if held:
                self.held[name] = replace(held, given=held.given | self.given)
            if asked := self.known_if(value, True):
                self.tests[name] = asked
        elif held and held.what == "class":
            self.breaks(node, f"{held.path} is held in {name}; write {self.library.variable}.{held.path} out")

    def check_holder(self, node: ast.AST, name: str, held: Held | None, value: ast.expr | None = None) -> None:
        expected = self.library.objects.get(name)
        imported = isinstance(value, ast.Call) and any(
            isinstance(argument, ast.Constant) and argument.value in self.library.modules for argument in value.args
        )
        if imported or (held and held.what == "module"):
            if name != self.library.variable:
                self.breaks(node, f"the module is held in {name}, not in {self.library.variable}")
        elif held and held.what == "object" and expected != held.path:
            if expected and not self.is_a(held.path, expected):
                self.breaks(node, f"{name} holds a {held.path}; the name is for a {expected}")
            elif not expected and held.path in self.library.objects.values():
                right = next(name for name, path in self.library.objects.items() if path == held.path)
                self.breaks(node, f"a {held.path} is held in {name}, not in {right}")

    # -- Uses ----------------------------------------------------------------------------------------------------

    def use(self, node: ast.Attribute, call: Call | None = None) -> None:
        owner = self.what(node.value)
        if owner and owner.what in ("module", "class", "object"):
            path = join(owner, node.attr)
            stored = isinstance(node.ctx, ast.Store)
            given = self.given | owner.given
            use = Use(path, self.place(node), given, call, owner.what == "object", stored)
            self.found.uses.append(use)

    def call(self, node: ast.Call) -> None:
        function, arguments = node.func, node.args
        given_name = function.id if isinstance(function, ast.Name) else ""
        if given_name in ("getattr", "hasattr", "setattr", "delattr") and len(arguments) >= 2:
            owner = self.what(arguments[0])
            if owner and owner.what in ("module", "class", "object"):
                names = self.texts(arguments[1])
                if not names:
                    self.breaks(node, f"{given_name} on {owner.path or 'the module'} with a name that is no literal")
                plain = given_name in ("setattr", "delattr") or (given_name == "getattr" and len(arguments) == 2)
                for path in (join(owner, name) for name in names):
                    given = self.given | owner.given | (frozenset() if plain else {path})
                    self.found.uses.append(Use(path, self.place(node), given, stored=given_name == "setattr"))
            return
        held = self.what(function)
        if held and held.what in ("class", "other"):
            complete = not any(isinstance(argument, ast.Starred) for argument in arguments)
            keywords = tuple(keyword.arg for keyword in node.keywords if keyword.arg)
            complete = complete and len(keywords) == len(node.keywords)
            positional = sum(not isinstance(argument, ast.Starred) for argument in arguments)
            path = held.path if held.what == "other" else f"{held.path}.__init__"
            of_object = held.of_object or held.what == "class"
            given, made = self.given | held.given, Call(positional, keywords, complete)
            self.found.uses.append(Use(path, self.place(node), given, made, of_object))
        if not held and given_name not in ("isinstance", "issubclass"):
            self.passes(node)

    def overrides(self, node: ast.ClassDef) -> None:
        """A method that the library calls must take the arguments that it passes, in each version that has it."""
        for base in filter(None, map(self.what, node.bases)):
            for method in node.body:
                path = f"{base.path}.{getattr(method, 'name', '')}"
                if isinstance(method, ast.FunctionDef) and path in self.known and method.name != "__init__":
                    call = Call(len(method.args.args) - len(method.args.defaults) - 1)
                    given = self.given | base.given | {path}
                    self.found.uses.append(Use(path, self.place(method), given, call))

    def passes(self, node: ast.Call) -> None:
        """Checks what is passed to a function that is not the library's."""
        called = str(getattr(node.func, "attr", getattr(node.func, "id", "")))
        parameters = zip(self.parameters.get(called) or [], node.args, strict=False)
        by_name = [(keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg]
        for name, value in (*parameters, *by_name):
            self.check_holder(node, name, self.what(value), value)
        for value in (*node.args, *(keyword.value for keyword in node.keywords)):
            if (passed := self.what(value)) and passed.what == "class":
                self.breaks(node, f"{passed.path} is passed on, so that uses of its names cannot be seen")
