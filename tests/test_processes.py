"""`accelerate` in many processes: the second start, one build for all, kills, missing rights, a full disk.

The children run this very file: `python -m tests.test_processes NAME ARGUMENT…` calls the function of that name.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
NOBODY = 65534
BACKEND = "onnxruntime"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork, signals and POSIX rights")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.test_processes", *map(str, arguments)]


def environment() -> dict[str, str]:
    hidden = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return os.environ | hidden | {"PYTHONPATH": str(REPOSITORY)}


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=REPOSITORY,
    )


def finish(process: subprocess.Popen[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the lines that a child printed, and the JSON of the last one."""
    out, err = process.communicate(timeout=550)
    assert process.returncode == 0, f"{out}\n{err[-6000:]}"
    *lines, last = out.splitlines()
    return lines, json.loads(last)


# What the children do.


def say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def small_model(seed: int = 0, units: int = 4) -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(units),
        ]
    )


def accelerated(model: Any, cache: Any, **options: Any) -> Any:
    """Accelerate, assert that the answers are Keras's, and return the drop-in."""
    import keras_trt

    fast = keras_trt.accelerate(model, **{"backend": BACKEND, "cache": cache, "verbose": 0, **options})
    assert_right(model, fast)
    return fast


def assert_right(model: Any, fast: Any, tolerance: float = 1e-4) -> None:
    from tests.gpu import models

    rows = models.random_rows(model, 5)
    reference = model.predict(rows, verbose=0)
    models.assert_lively(reference, tolerance)
    difference = models.relative(fast.predict(rows, verbose=0), reference)
    assert difference < tolerance, difference


def say_report(fast: Any) -> None:
    report = fast.report()
    say(origin=report.origin, seconds=dict(report.seconds), tf2onnx="tf2onnx" in sys.modules, backend=report.backend)


def child_build(cache: str, path: str) -> None:
    model = small_model()
    say_report(accelerated(model, cache, verbose=1))
    if path:
        model.save(path)


def child_load(cache: str, path: str) -> None:
    import keras

    say_report(accelerated(keras.models.load_model(path), cache, verbose=1))


def child_race(cache: str, go: str) -> None:
    model = small_model()
    model.predict(model_rows(model), verbose=0)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not Path(go).exists():  # so that all begin together, however slowly they started
        time.sleep(0.001)
    say_report(accelerated(model, cache))


def model_rows(model: Any) -> Any:
    from tests.gpu import models

    return models.random_rows(model, 2)


def import_everything() -> None:
    """Import all that `accelerate` imports late; no operation runs, so that a fork is still allowed."""
    import keras
    import onnx
    import tf2onnx

    import keras_trt.api
    import keras_trt.export  # noqa: F401

    assert keras.config.backend() == "tensorflow"
    assert onnx.__version__
    assert tf2onnx.__version__


def forked(work: Any) -> tuple[int, int]:
    """Run `work` in a fork; return its process and a pipe, on which it says when it begins."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    status = 1
    try:
        work(lambda: os.write(writing, b"b"))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def child_kills(cache: str, count: str) -> None:
    import_everything()
    chance = random.Random(0)  # noqa: S311 (no secret)
    span = 0.0

    def killed_start(seed: int) -> Any:
        def work(begin: Any) -> None:
            model = small_model(seed, 4 + seed // 2)  # every second is a refit of the one before
            model.predict(model_rows(model), verbose=0)
            begin()
            accelerated(model, cache)

        return work

    def later_start(seed: int) -> Any:
        def work(begin: Any) -> None:
            signal.alarm(100)  # a lock that its dead holder still had would end this process
            model = small_model(seed, 4 + seed // 2)
            begin()
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                accelerated(model, cache)
                again = accelerated(model, cache)
            assert again.report().origin == "cache"

        return work

    killed = 0
    for number in range(1 + int(count)):
        pid, pipe = forked(killed_start(number))
        assert os.read(pipe, 1) == b"b"
        began = time.perf_counter()
        beside = forked(later_start(number)) if number % 2 else None  # some wait for the one that is killed
        if number:
            time.sleep(chance.uniform(0, span))
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if not number:  # the first lives, and shows how long it takes
            assert status == 0
            span = time.perf_counter() - began
        killed += os.WIFSIGNALED(status)
        assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
        later, later_pipe = beside or forked(later_start(number))
        assert os.waitpid(later, 0)[1] == 0, f"the start after the kill of round {number}"
        os.close(pipe)
        os.close(later_pipe)
    say(killed=killed)


def give_up_rights() -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def uncached_start(cache: Path) -> None:
    """Accelerate with a cache that cannot be written: one warning, and right answers."""
    import keras_trt

    model = small_model(units=600)  # whose engine is far larger than the small disk
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fast = accelerated(model, cache)
    assert fast.report().origin == "built"
    assert fast.backend == BACKEND
    about = [str(warning.message) for warning in caught if issubclass(warning.category, keras_trt.FallbackWarning)]
    say(warnings=about)


def child_no_rights(folder: str) -> None:
    accelerated(small_model(), None)  # imports everything: the interpreter may lie where the other user cannot read
    give_up_rights()
    uncached_start(Path(folder, "parent", "cache"))


def child_read_only(folder: str) -> None:
    import keras_trt

    model = small_model()
    cache = Path(folder, "cache")
    accelerated(model, cache)
    for path in (cache, *cache.rglob("*")):
        if os.getuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        path.chmod(0o500 if path.is_dir() else 0o400)
    give_up_rights()
    with warnings.catch_warnings():
        warnings.simplefilter("error", keras_trt.FallbackWarning)
        say_report(accelerated(model, cache))


def child_full_disk(folder: str) -> None:
    uncached_start(Path(folder, "cache"))


def child_without_tensorrt() -> None:
    sys.modules["tensorrt"] = None  # type: ignore[assignment]  # as if it were not installed
    import keras_trt

    model = small_model()
    errors = []
    for fallback in ("keras", "raise"):
        try:
            keras_trt.accelerate(model, backend="tensorrt", fallback=fallback, cache=None, verbose=0)
        except keras_trt.MissingDependencyError as error:
            errors.append([str(error), error.package, isinstance(error, ImportError)])
    rtx: list[str] = []
    for fallback in ("keras", "raise"):
        try:
            keras_trt.accelerate(model, backend="tensorrt_rtx", fallback=fallback, cache=None, verbose=0)
        except keras_trt.KerasTRTError as error:
            rtx.append(f"{type(error).__name__}: {error}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fast = accelerated(model, None, backend="auto")
    about = [str(warning.message) for warning in caught if issubclass(warning.category, keras_trt.FallbackWarning)]
    say(errors=errors, rtx=rtx, auto=fast.backend, warnings=about)


def child_resnet50_first(cache: str, path: str) -> None:
    from tests.gpu import models

    model = models.resnet50()
    model.save(path)
    import keras_trt

    fast = keras_trt.accelerate(model, backend=BACKEND, cache=cache, verbose=0)
    rows = models.images(4)
    reference = model.predict(rows, verbose=0)
    models.assert_lively(reference, 1e-4)
    say(
        origin=fast.report().origin,
        precision=fast.precision,
        seconds=dict(fast.report().seconds),
        difference=models.relative(fast.predict(rows, verbose=0), reference),
    )


def child_resnet50_second(cache: str, path: str) -> None:
    import keras

    import keras_trt

    model = keras.models.load_model(path)
    fast = keras_trt.accelerate(model, backend=BACKEND, cache=cache, verbose=0)
    say_report(fast)


# The tests.


def test_second_start_builds_and_exports_nothing(tmp_path: Path) -> None:
    cache, path = tmp_path / "cache", tmp_path / "model.keras"
    lines, first = finish(start("child_build", cache, path))
    assert first["origin"] == "built"
    assert {"export", "build", "verify"} <= set(first["seconds"])
    assert "engine built" in lines[-1]
    again = [start("child_load", cache, path), start("child_build", cache, "")]
    for process in again:
        lines, second = finish(process)
        assert second["origin"] == "cache"
        assert not {"export", "build", "verify", "precision"} & set(second["seconds"]), second
        assert second["seconds"]["total"] > 0
        assert not second["tf2onnx"]
        assert "found in the cache, nothing exported or built" in lines[-1]


@pytest.mark.parametrize("count", [4, pytest.param(16, marks=pytest.mark.long)])
def test_processes_at_once_make_one_build(tmp_path: Path, count: int) -> None:
    go = tmp_path / "go"
    processes = [start("child_race", tmp_path / "cache", go) for _ in range(count)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    go.touch()
    said = [finish(process)[1] for process in processes]
    assert sorted(one["origin"] for one in said) == ["built"] + ["cache"] * (count - 1)
    assert sum("build" in one["seconds"] for one in said) == 1
    assert sum("export" in one["seconds"] for one in said) == 1
    assert sum(one["tf2onnx"] for one in said) == 1


@pytest.mark.parametrize("count", [5, pytest.param(100, marks=pytest.mark.long)])
def test_kills_at_any_moment_leave_a_cache_that_works(tmp_path: Path, count: int) -> None:
    _, said = finish(start("child_kills", tmp_path / "cache", count))
    assert said["killed"] > count // 3  # or the kills came too late to prove anything


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="keras_trt-"))
    path.chmod(0o755)
    yield path
    for inner in (path, *path.rglob("*")):
        if inner.is_dir():
            inner.chmod(0o700)
    shutil.rmtree(path)


def assert_one_warning_about_the_cache(said: dict[str, Any], folder: Path) -> None:
    assert len(said["warnings"]) == 1, said["warnings"]
    for part in ("not cached", str(folder), "cache=", "KERAS_TRT_CACHE"):
        assert part in said["warnings"][0]


def test_cache_without_rights(open_folder: Path) -> None:
    parent = open_folder / "parent"
    parent.mkdir()
    parent.chmod(0o500)
    _, said = finish(start("child_no_rights", open_folder))
    assert_one_warning_about_the_cache(said, parent)
    assert not list(parent.iterdir())


def test_read_only_cache_still_gives_its_engine(open_folder: Path) -> None:
    _, said = finish(start("child_read_only", open_folder))
    assert said["origin"] == "cache"


def test_full_disk(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("mounting a small disk is done for Linux alone")
    disk = tmp_path / "disk"
    disk.mkdir()
    # In a mount namespace of its own: nothing stays mounted, whatever happens.
    namespace = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    mount = f"mount -t tmpfs -o size=64k tmpfs '{disk}'"
    tried = subprocess.run([*namespace, "sh", "-c", mount], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {tried.stderr.strip()}")
    process = subprocess.Popen(
        [*namespace, "sh", "-c", f'{mount} && exec "$@"', "sh", *command("child_full_disk", disk)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=REPOSITORY,
    )
    _, said = finish(process)
    assert_one_warning_about_the_cache(said, disk)
    assert "No space left" in said["warnings"][0]


def test_tensorrt_missing() -> None:
    _, said = finish(start("child_without_tensorrt"))
    assert len(said["errors"]) == 2  # whatever `fallback` is: it was asked for by name
    for message, package, is_import_error in said["errors"]:
        assert "pip install 'keras-trt[cu13]'" in message
        assert "backend 'tensorrt'" in message
        assert package == "tensorrt"
        assert is_import_error
    assert said["auto"] == BACKEND
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return
    assert len(said["rtx"]) == 2
    for message in said["rtx"]:
        assert message.startswith("EngineLoadError")
        assert "needs a GPU, and CUDA shows none" in message
        assert "onnxruntime" in message
    # TensorRT-RTX is there and cannot be used: nobody waits for a GPU that does not come without being told.
    assert len(said["warnings"]) == 1
    assert "needs a GPU" in said["warnings"][0]


@pytest.mark.long
def test_resnet50(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache, path = tmp_path / "cache", tmp_path / "resnet50.keras"
    _, first = finish(start("child_resnet50_first", cache, path))
    assert (first["origin"], first["precision"]) == ("built", "fp32")
    assert first["difference"] < 1e-4
    _, second = finish(start("child_resnet50_second", cache, path))
    assert second["origin"] == "cache"
    assert not {"export", "build", "verify"} & set(second["seconds"])
    with capsys.disabled():
        sys.stdout.write(
            f"\nResNet50: relative difference {first['difference']:.2g}; first start {first['seconds']}; "
            f"second start {second['seconds']}\n"
        )


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
