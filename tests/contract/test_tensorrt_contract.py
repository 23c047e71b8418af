"""keras_trt's TensorRT backend uses no name, and no form of a call, that some supported TensorRT lacks."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from . import bindings
from .bindings import Names, Release
from .checks import problems, union, unknown_guards
from .uses import TENSORRT, Found, find

BACKEND = Path(__file__).parents[2] / "keras_trt" / "backends" / "tensorrt"

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the stand-in for the TensorRT libraries is made for Linux on x86-64",
)


def parameter(release: Release) -> object:
    marks = [pytest.mark.skip(reason=release.left_out)] if release.left_out else []
    return pytest.param(release, id=release.label, marks=marks)


@pytest.fixture(scope="session")
def names_of_versions() -> dict[Release, Names]:
    return bindings.all_names(bindings.TENSORRT)


@pytest.fixture(scope="session")
def known(names_of_versions: dict[Release, Names]) -> Names:
    return union(names_of_versions.values())


@pytest.fixture(scope="session")
def found(known: Names) -> Found:
    sources = {str(path.relative_to(BACKEND)): path.read_text() for path in sorted(BACKEND.rglob("*.py"))}
    return find(sources, TENSORRT, known)


def test_backend_keeps_to_the_conventions(found: Found) -> None:
    assert not found.broken, "\n".join(found.broken)


def test_uses_are_found(found: Found) -> None:
    # If the finder stopped to see the source, every other test here would pass.
    paths = {use.path for use in found.uses}
    assert {"Builder.build_serialized_network", "OnnxParser.parse", "ICudaEngine.num_io_tensors"} <= paths
    assert {"IExecutionContext.execute_async_v3", "IBuilderConfig.set_flag", "BuilderFlag.TF32"} <= paths
    callbacks = {"reallocate_output", "reallocate_output_async", "notify_shape"}
    assert {f"IOutputAllocator.{name}" for name in callbacks} <= paths
    assert any(use.guarded for use in found.uses)
    assert any(use.call and use.call.positional for use in found.uses)


@pytest.mark.parametrize("release", [parameter(release) for release in bindings.TENSORRT])
def test_every_use_works_with(release: Release, found: Found, names_of_versions: dict[Release, Names]) -> None:
    failures = problems(found.uses, names_of_versions[release])
    assert not failures, "\n".join(failures)


def test_guarded_names_exist_in_some_version(found: Found, known: Names) -> None:
    failures = unknown_guards(found.uses, known)
    left_out = [release.label for release in bindings.TENSORRT if release.left_out]
    assert not failures, "\n".join([*failures, f"(not looked at: {left_out})" if left_out else ""])
