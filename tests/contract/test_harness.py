"""The contract tests can fail: what they must report is reported, on small sources and made-up bindings."""

from __future__ import annotations

import textwrap

import pytest

from .bindings import Names
from .checks import problems, union, unknown_guards
from .signatures import Call, accepted, parse
from .uses import CUDA, TENSORRT, Found, find

PREFIX = "tensorrt_bindings.tensorrt"


def a_class(name: str, *bases: str) -> dict[str, object]:
    return {"kind": "class", "is": f"{PREFIX}.{name}", "bases": [f"{PREFIX}.{base}" for base in bases]}


def a_function(name: str, parameters: str, returns: str = "bool") -> dict[str, object]:
    return {"kind": "function", "signatures": [f"{name}({parameters}) -> {returns}"]}


def a_property(returns: str = "int", settable: bool = False) -> dict[str, object]:
    return {"kind": "property", "signatures": [f"(arg0: {PREFIX}.Any) -> {returns}"], "get": True, "set": settable}


VALUE = {"kind": "value", "is": f"{PREFIX}.BuilderFlag"}
OLD: Names = {
    **{name: a_class(name) for name in ("Builder", "BuilderFlag", "ICudaEngine", "IBuilderConfig", "ILogger")},
    "Logger": a_class("Logger", "ILogger"),
    "Logger.__init__": a_function("__init__", "self: Logger, severity: S = 2", "None"),
    "ILogger.log": a_function("log", "self: ILogger, severity: S, message: str", "None"),
    "Builder.__init__": a_function("__init__", "self: Builder, logger: ILogger", "None"),
    "Builder.create_builder_config": a_function("create_builder_config", "self: B", f"{PREFIX}.IBuilderConfig"),
    "Builder.build": a_function("build", "self: B, network: N, config: C = None", f"{PREFIX}.ICudaEngine"),
    "BuilderFlag.TF32": VALUE,
    "BuilderFlag.name": a_property("str"),
    "IBuilderConfig.set_flag": a_function("set_flag", "self: C, flag: F", "None"),
    "IBuilderConfig.level": a_property(settable=True),
    "ICudaEngine.num_io_tensors": a_property(),
    "ICudaEngine.old_size": a_property(),
    "BuilderFlag.FP16": VALUE,
}
NEW: Names = {
    **{path: entry for path, entry in OLD.items() if path not in ("ICudaEngine.old_size", "BuilderFlag.FP16")},
    "Preview": a_class("Preview"),
    "Preview.SHARING": VALUE,
    "IBuilderConfig.set_preview": a_function("set_preview", "self: C, feature: P, value: bool", "None"),
    "ICudaEngine.new_size": a_property(),
}
KNOWN = union([OLD, NEW])


def look(source: str) -> Found:
    return find({"sample.py": textwrap.dedent(source)}, TENSORRT, KNOWN)


def failures(source: str) -> list[str]:
    """All that the contract tests would report, without the places."""
    found = look(source)
    reported = [
        *found.broken,
        *problems(found.uses, OLD),
        *problems(found.uses, NEW),
        *unknown_guards(found.uses, KNOWN),
    ]
    return sorted({report.partition(": ")[2] for report in reported})


@pytest.mark.parametrize(
    "source",
    [
        "trt.Builder(logger).create_builder_config().set_flag(trt.BuilderFlag.TF32)",
        "self._engine.num_io_tensors + slot.engine.num_io_tensors",
        "flag = getattr(trt.BuilderFlag, 'FP16', None)\nif flag is not None:\n    config.set_flag(flag)",
        "size = engine.new_size if hasattr(engine, 'new_size') else 0",
        "size = engine.old_size if not hasattr(engine, 'new_size') and hasattr(engine, 'old_size') else 0",
        "hasattr(config, 'set_preview') and config.set_preview(trt.Preview.SHARING, True)",
        "if hasattr(trt, 'Preview') and hasattr(trt.Preview, 'SHARING'):\n    trt.Preview.SHARING",
        """
        def sharing(trt, config):
            if not hasattr(trt, "Preview"):
                return
            config.set_preview(trt.Preview.SHARING, True)
        """,
        """
        NAMES = {"half": "FP16", "tf32": "TF32"}
        for name in ("FP16", "TF32"):
            getattr(trt.BuilderFlag, name, None)
        flags = [getattr(trt.BuilderFlag, name, None) for _, name in NAMES.items()]
        one = getattr(trt.BuilderFlag, NAMES[precision], None)
        """,
        "config.level = 3",
        "builder.build(network, config=config)",
        "builder.build(*arguments)",
        "trt.BuilderFlag.TF32.name",
        "logger = trt.Logger(anything)",
        "class Mine(trt.ILogger):\n    def log(self, severity, text): ...\n    def more(self): ...",
        "_logger.error('the logger of Python')\nspec.engine.made_up",
    ],
)
def test_what_works_passes(source: str) -> None:
    assert failures(source) == []


@pytest.mark.parametrize(
    ("source", "report"),
    [
        ("trt.BuilderFlag.MADE_UP", "BuilderFlag.MADE_UP does not exist"),
        ("self.trt.MadeUp", "MadeUp does not exist"),
        ("engine.made_up", "ICudaEngine.made_up does not exist"),
        ("slot._engine.made_up(1)", "ICudaEngine.made_up does not exist"),
        ("builder.build(network).made_up", "ICudaEngine.made_up does not exist"),
        ("getattr(engine, 'made_up')", "ICudaEngine.made_up does not exist"),
        ("trt.BuilderFlag.FP16", "BuilderFlag.FP16 does not exist"),
        ("if not hasattr(engine, 'new_size'):\n    engine.new_size", "ICudaEngine.new_size does not exist"),
        ("if hasattr(engine, 'new_size'):\n    pass\nengine.new_size", "ICudaEngine.new_size does not exist"),
        ("if hasattr(trt, 'Preview'):\n    trt.Preview.MADE_UP", "Preview.MADE_UP does not exist"),
        # Guarded, but in no version.
        ("getattr(trt.BuilderFlag, 'MADE_UP', None)", "BuilderFlag.MADE_UP is in no version"),
        ("hasattr(trt, 'MadeUp')", "MadeUp is in no version"),
        (
            "for name in ('FP16', 'MADE_UP'):\n    getattr(trt.BuilderFlag, name, None)",
            "BuilderFlag.MADE_UP is in no version",
        ),
        # Calls and assignments.
        ("engine.num_io_tensors()", "ICudaEngine.num_io_tensors is called, and is no function"),
        ("engine.num_io_tensors = 1", "ICudaEngine.num_io_tensors is set, and is read-only"),
        ("setattr(engine, 'num_io_tensors', 1)", "ICudaEngine.num_io_tensors is set, and is read-only"),
    ],
)
def test_what_fails_is_reported(source: str, report: str) -> None:
    assert report in failures(source)


@pytest.mark.parametrize(
    "call",
    [
        "builder.build()",
        "builder.build(1, 2, 3)",
        "builder.build(network, made_up=1)",
        "builder.build(config=config)",
        "builder.build(network, network=network)",
        "trt.Builder()",
        "trt.Builder(logger, 1)",
        "build = builder.build\nbuild()",
        "class Mine(trt.ILogger):\n    def log(self, text): ...",
    ],
)
def test_a_call_that_does_not_fit_is_reported(call: str) -> None:
    assert any("fits none of" in failure for failure in failures(call)), failures(call)


@pytest.mark.parametrize(
    "source",
    [
        "import tensorrt",
        "import tensorrt_rtx as rtx",
        "from tensorrt import Builder",
        "from . import engine",
        "tensorrt = importlib.import_module('tensorrt')",
        "rtx = self.trt",
        "self.flag = trt.BuilderFlag",
        "member(trt.BuilderFlag, 'FP16')",
        "getattr(trt.BuilderFlag, asked, None)",
        "e = builder.build(network)",
        "config = builder.build(network)",
        "self.model = slot.engine",
        "run(model=engine)",
        "def run(model): ...\nrun(engine)",
    ],
)
def test_a_broken_convention_is_reported(source: str) -> None:
    assert look(source).broken


def test_the_place_is_reported() -> None:
    assert problems(look("\n\nengine.made_up").uses, NEW) == ["sample.py:3: ICudaEngine.made_up does not exist"]


def test_cuda_arguments_are_counted() -> None:
    names: Names = {"cudaMalloc": {"kind": "function", "signatures": ["cudaMalloc(size_t size)"]}}
    right = find({"sample.py": "check(cudart.cudaMalloc(1))"}, CUDA, names)
    wrong = find({"sample.py": "check(cudart.cudaMalloc(1, 2))\ncudart.cudaMaloc"}, CUDA, names)
    assert problems(right.uses, names) == []
    assert len(problems(wrong.uses, names)) == 2


@pytest.mark.parametrize(
    ("signature", "names", "required"),
    [
        ("parse(self: tensorrt.P, model: buffer, path: str = None) -> bool", ("model", "path"), 1),
        ("f(self: T, arg0: int, arg1: List[Tuple[int, str]]) -> None", (None, None), 2),
        ("f(self: T, callback: Callable[[int], bool] = <A.B: 0>, name: str = 'a') -> None", ("callback", "name"), 0),
        ("f(self: T, first: int, /, second: int) -> None", (None, "second"), 2),
        ("cudaMemcpyAsync(dst, src, size_t count, kind: Kind, stream)", ("dst", "src", "count", "kind", "stream"), 5),
        ("cudaChooseDevice(cudaDeviceProp prop: Optional[cudaDeviceProp])", ("prop",), 1),
        ("f()", (), 0),
    ],
)
def test_signatures_are_read(signature: str, names: tuple[str | None, ...], required: int) -> None:
    read = parse(signature)
    assert read is not None
    assert (read.names, read.required) == (names, required)


def test_one_overload_is_enough() -> None:
    overloads = ["f(self: T, strategy: S) -> C", "f(self: T, *, runtime_config: R) -> C"]
    assert accepted(overloads, Call(1), of_object=True)
    assert accepted(overloads, Call(0, ("runtime_config",)), of_object=True)
    assert not accepted(overloads, Call(0), of_object=True)
    assert not accepted(overloads, Call(2), of_object=True)
    assert accepted(["not a signature"], Call(9), of_object=True)  # it cannot be read: the check is skipped
