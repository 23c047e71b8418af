"""What other processes do in the tests of many: `python -m tests.processes.children NAME ARGUMENT…`."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

NOBODY = 65534
BACKEND = "onnxruntime"


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


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
