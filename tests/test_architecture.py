"""What may import what, what `import keras_trt` loads, and what is public."""

from __future__ import annotations

import ast
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_trt

ROOT = Path(keras_trt.__file__).parent

#: Each layer imports from itself and the layers before it (docs/design.md says why each is where it is).
LAYERS = [
    ["_version"],
    ["findings"],
    ["errors"],
    ["_interrupts", "_files", "_garbage", "_require", "_subgraphs", "_warn"],
    ["_child"],
    ["specs", "progress"],
    ["options"],
    ["cache"],
    ["artifact"],
    ["cuda"],
    ["inputs"],
    ["layer_calls"],
    ["policies", "loading"],
    ["reference"],
    ["fingerprint"],
    ["export"],
    ["precision"],
    ["backends"],
    ["runtime"],
    ["source", "data", "head", "graph_source"],
    ["verification"],
    ["report"],
    ["model"],
    ["building"],
    ["diagnosis"],
    ["api"],
    ["compiled", "loaded"],
    ["callbacks"],
    ["cli"],
    ["__main__"],
]

HEAVY = ["tensorflow", "keras", "tensorrt", "tensorrt_rtx", "cuda", "onnx", "onnxruntime", "tf2onnx", "numpy"]


def modules() -> list[str]:
    return ["keras_trt", *(found.name for found in pkgutil.walk_packages([str(ROOT)], "keras_trt."))]


def path_of(module: str) -> Path:
    base = ROOT.parent / Path(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def layer(module: str) -> int:
    name = module.split(".")[1]
    return next(i for i, names in enumerate(LAYERS) if name in names)


def imported(module: str) -> set[str]:
    """Return the modules of keras_trt that a module imports anywhere in it, but for type checkers only."""
    source = path_of(module)
    package = module if source.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(source.read_text())
    typing_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found: set[str] = set()
    known = set(modules())
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{target}.{alias.name}"
                found.add(full if full in known else target)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("keras_trt.")}


@pytest.mark.parametrize("module", [name for name in modules() if name != "keras_trt"])
def test_a_module_imports_only_what_is_above_it(module: str) -> None:
    for other in imported(module):
        same = other.split(".")[1] == module.split(".")[1]
        assert same or layer(other) < layer(module), f"{module} imports {other}, which is not above it"


def test_each_part_is_in_one_layer() -> None:
    named = [name for names in LAYERS for name in names]
    assert sorted(named) == sorted({module.split(".")[1] for module in modules() if module != "keras_trt"})


def test_only_the_cuda_folder_touches_cuda() -> None:
    touches = re.compile(r"^\s*(?:from|import) cuda\b|cuda\.bindings|cudart", re.MULTILINE)
    found = [module for module in modules() if touches.search(path_of(module).read_text())]
    assert found
    assert all(module.startswith("keras_trt.cuda") for module in found)


def child(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_heavy() -> None:
    loaded = json.loads(child("import sys, json, keras_trt; print(json.dumps(sorted(sys.modules)))"))
    assert not {name.split(".")[0] for name in loaded} & set(HEAVY)


@pytest.mark.parametrize("module", modules())
def test_every_module_imports_where_nothing_but_numpy_is_installed(module: str) -> None:
    barred = {*HEAVY, "filelock", "platformdirs"} - {"numpy"}
    if module.startswith("keras_trt.callbacks"):
        pytest.skip("its classes extend Keras's: loaded with the first use of one")
    if module.startswith("keras_trt.export.graph"):
        barred.remove("onnx")  # its passes are written on onnx-ir; `export` loads them when it is called
    child(
        "import sys\n"
        "class Bar:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {sorted(barred)!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Bar())\n"
        f"import {module}\n"
    )


def test_public_names() -> None:
    assert keras_trt.__all__ == sorted(keras_trt.__all__)
    assert set(keras_trt.__all__) <= set(dir(keras_trt))
    rows = re.findall(r"^\| (`.*?) \|", (ROOT.parent / "docs" / "api.md").read_text(), re.MULTILINE)
    documented = [name for row in rows for name in re.findall(r"`(.*?)`", row)]
    assert sorted(documented) == sorted([*keras_trt.__all__, "Model.compile_trt", "Model.uncompile_trt"])
    for name in keras_trt.__all__:
        assert getattr(keras_trt, name) is not None
        if name != "__version__":
            assert getattr(keras_trt, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'accelerat'"):
        keras_trt.accelerat  # noqa: B018


def test_no_file_is_long() -> None:
    for module in modules():
        lines = len(path_of(module).read_text().splitlines())
        assert lines <= 450, f"{module} has {lines} lines: split it"
