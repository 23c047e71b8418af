"""keras_trt.cuda uses no name, and no number of arguments, that some supported cuda-python lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import bindings, uses
from .bindings import Release
from .checks import problems, union
from .expressions import Library

FOLDER = Path(__file__).parents[2] / "keras_trt" / "cuda"
# The variable `cudart` holds cuda.bindings.runtime, and `native` cuda.bindings.utils.
MODULES = [(bindings.CUDA, uses.CUDA), (bindings.CUDA_UTILS, uses.CUDA_UTILS)]


def find(library: Library, known: bindings.Names) -> uses.Found:
    sources = {str(path.relative_to(FOLDER)): path.read_text() for path in sorted(FOLDER.rglob("*.py"))}
    return uses.find(sources, library, known)


@pytest.mark.parametrize(
    ("release", "library"),
    [pytest.param(release, library, id=release.label) for releases, library in MODULES for release in releases],
)
def test_every_use_works_with(release: Release, library: Library) -> None:
    names = bindings.names(release)
    found = find(library, names)
    failures = found.broken + problems(found.uses, names)
    assert not failures, "\n".join(failures)


def test_uses_are_found() -> None:
    found = find(uses.CUDA, union(bindings.all_names(bindings.CUDA).values()))
    paths = {use.path for use in found.uses}
    assert {"cudaMalloc", "cudaMemcpyKind.cudaMemcpyHostToDevice", "cudaStreamBeginCapture"} <= paths
    assert any(use.call and use.call.positional == 5 for use in found.uses if use.path == "cudaMemcpyAsync")
