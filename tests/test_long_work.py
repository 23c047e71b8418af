"""Progress that shows, and builds in a process of their own that may crash, hang or be interrupted."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import keras_trt
from keras_trt import progress
from keras_trt._interrupts import deferred
from keras_trt._require import require
from keras_trt.backends import BuildSpec, child
from keras_trt.backends.onnxruntime import OnnxRuntimeBackend
from keras_trt.building import engines
from keras_trt.cache import EngineCache
from keras_trt.progress import Progress
from keras_trt.specs import OptimizationProfile, ShapeRange

from .models import CASES, accelerate, floats, recorded, same, warns_once

# A build in a process.


def builders() -> list[psutil.Process]:
    """The processes that build for this one."""
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended
            if "keras_trt.backends.child" in process.cmdline():
                found.append(process)
    return found


def test_a_process_builds_what_a_thread_builds(cache: EngineCache) -> None:
    model, x = CASES["sequential"].build(), floats(4)(40)
    fast = accelerate(model, build="process", cache=cache)
    assert fast.report().origin == "built"
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))
    assert accelerate(model, cache=cache).report().origin == "cache", "how it is built is no part of the key"


def test_a_builder_that_crashes_is_an_error_and_keras_runs() -> None:
    model, x = CASES["sequential"].build(), floats(4)(40)
    stop = threading.Event()

    def crash() -> None:
        while not stop.is_set():
            for process in builders():
                process.send_signal(signal.SIGSEGV)
            time.sleep(0.01)

    killer = threading.Thread(target=crash)
    killer.start()
    try:
        with pytest.raises(keras_trt.BuildError, match="ended with status -11"):
            accelerate(model, build="process", fallback="raise")
        with recorded() as records:
            fast = accelerate(model, build="process")
    finally:
        stop.set()
        killer.join()
    warns_once(records, "ended with status")
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))


def test_a_build_that_takes_too_long_is_ended() -> None:
    with pytest.raises(keras_trt.BuildError, match=r"longer than 0.05 s and was ended \(see `build_timeout`\)"):
        accelerate(CASES["sequential"].build(), build="process", build_timeout=0.05, fallback="raise")
    assert not builders()


@pytest.mark.parametrize(("level", "seconds", "said"), [(None, 0.05, 1), (2, 0.05, 1), (0, 0.05, 0), (None, 60.0, 0)])
def test_the_log_says_what_makes_a_long_build_shorter(
    level: int | None, seconds: float, said: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build = OnnxRuntimeBackend.build

    def slow(*arguments: Any, **how: Any) -> bytes:
        time.sleep(0.3)
        return build(*arguments, **how)

    monkeypatch.setattr(engines, "_LONG", seconds)
    monkeypatch.setattr(OnnxRuntimeBackend, "build", slow)
    accelerate(CASES["sequential"].build(), optimization_level=level)
    assert "optimization_level=0" not in caplog.text, "ONNX Runtime has no such levels"
    monkeypatch.setattr(OnnxRuntimeBackend, "name", "tensorrt")
    accelerate(CASES["sequential"].build(), optimization_level=level)
    assert caplog.text.count("With optimization_level=0 it takes less") == said
    for timer in (thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)):
        timer.join(5)
        assert not timer.is_alive(), "a build that is done leaves none"


def test_errors_of_the_child_are_those_of_the_backend() -> None:
    profile = OptimizationProfile({"x": ShapeRange((1, 2), (1, 2), (1, 2))})
    with pytest.raises(keras_trt.UnsupportedOperatorError, match="ONNX Runtime refused the graph"):
        child.build(OnnxRuntimeBackend(), b"no graph", BuildSpec("fp32", profile), None, 60, lambda _: None)


def test_the_child_tells_what_belongs_to_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> bytes:
        error = keras_trt.UnsupportedOperatorError("No such operator.", log="line", nodes=["a", "b"])
        error.add_note("The GPU has 3 MiB free.")
        raise error

    profile = OptimizationProfile({"x": ShapeRange((1, 2), (1, 2), (1, 2))})
    # The child's half in this process, so that a backend can be made to refuse.
    monkeypatch.setattr(OnnxRuntimeBackend, "build", refuse)
    monkeypatch.setattr(child, "_run", lambda folder, *_: child.main(folder))
    with pytest.raises(keras_trt.UnsupportedOperatorError) as caught:
        child.build(OnnxRuntimeBackend(), b"", BuildSpec("fp32", profile), None, 60, lambda _: None)
    assert caught.value.nodes == ("a", "b")
    assert str(caught.value).count("line") == 1
    assert caught.value.__notes__ == ["The GPU has 3 MiB free."]


def test_the_child_tells_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(*_: Any, **__: Any) -> bytes:
        require("no_such_module", package="no-such-package", extra="cu13", purpose="A build")
        return b""

    profile = OptimizationProfile({"x": ShapeRange((1, 2), (1, 2), (1, 2))})
    monkeypatch.setattr(OnnxRuntimeBackend, "build", lacks)
    monkeypatch.setattr(child, "_run", lambda folder, *_: child.main(folder))
    with pytest.raises(keras_trt.MissingDependencyError, match="pip install") as caught:
        child.build(OnnxRuntimeBackend(), b"", BuildSpec("fp32", profile), None, 60, lambda _: None)
    assert caught.value.package == "no-such-package"


def test_what_python_passes_over_on_its_path_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A `Path`, and the current folder where there is none any more."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(sys, "path", ["", tmp_path, *sys.path])
    assert accelerate(CASES["sequential"].build(), build="process", fallback="raise").report().origin == "built"


@pytest.mark.parametrize("lacks", ["a folder", "an interpreter"])
def test_where_no_process_can_be_had_keras_runs(lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if lacks == "a folder":
        monkeypatch.setattr(tempfile, "tempdir", "/none/such")
    else:
        monkeypatch.setattr(sys, "executable", "")
    model, x = CASES["sequential"].build(), floats(4)(40)
    with recorded() as records:
        fast = accelerate(model, build="process")
    warns_once(records, "No process of its own can do the build")
    assert "keras_trt-build-" not in str(records[-1].message), "the same reason is said in the same words"
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))


def test_ctrl_c_ends_the_child() -> None:
    def interrupt() -> None:
        for _ in range(2000):
            if found := builders():
                found[0].suspend()  # else it might be done before the signal comes
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.005)

    profile = OptimizationProfile({"x": ShapeRange((1, 2), (1, 2), (1, 2))})
    watcher = threading.Thread(target=interrupt)
    watcher.start()
    with pytest.raises(KeyboardInterrupt):
        child.build(OnnxRuntimeBackend(), bytes(10), BuildSpec("fp32", profile), None, 60, lambda _: None)
    watcher.join()
    assert not builders()


KILLED = """
    import contextlib, psutil, threading
    from keras_trt.backends import BuildSpec, child
    from keras_trt.backends.onnxruntime import OnnxRuntimeBackend
    from keras_trt.specs import OptimizationProfile, ShapeRange

    def hold():
        while True:
            for one in psutil.Process().children():
                with contextlib.suppress(psutil.NoSuchProcess):  # another one, which has ended
                    if "keras_trt.backends.child" in one.cmdline():
                        one.suspend()
                        print(one.pid, one.cmdline()[-1], flush=True)
                        return

    threading.Thread(target=hold).start()
    profile = OptimizationProfile({"x": ShapeRange((1, 2), (1, 2), (1, 2))})
    child.build(OnnxRuntimeBackend(), bytes(10), BuildSpec("fp32", profile), None, None, lambda _: None)
"""


def test_a_killed_program_leaves_no_builder() -> None:
    program = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED)], stdout=subprocess.PIPE, text=True)
    with program:
        assert program.stdout is not None
        pid, folder = program.stdout.readline().split()
        builder = psutil.Process(int(pid))
        program.kill()
    builder.resume()
    builder.wait(60)
    assert not Path(folder).exists()


def test_what_a_program_makes_of_ctrl_c_is_left_to_it() -> None:
    """It may ignore it, as behind `nohup`, or end its training after this epoch."""
    told: list[int] = []
    handlers: list[Any] = [signal.SIG_IGN, lambda number, _: told.append(number)]
    before = signal.getsignal(signal.SIGINT)
    for handler in handlers:
        signal.signal(signal.SIGINT, handler)
        try:
            with deferred() as interrupted:
                os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is handler
        finally:
            signal.signal(signal.SIGINT, before)
        assert not interrupted.is_set()
    assert told == [signal.SIGINT]


@pytest.mark.parametrize(
    "options", [{"build": "fork"}, {"build_timeout": 5}, {"build": "process", "build_timeout": 0}], ids=str
)
def test_wrong_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`build"):
        keras_trt.BuildOptions(**options)


# What shows.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS", {True: 0.01, False: 0.01})


@pytest.mark.usefixtures("quick")
def test_a_terminal_has_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    shown = Progress("digits", show=True)
    with shown.step("building"):
        _until(out, "building 'digits' 0 s")
        shown.at(0.5)
        shown.at(0.25)  # never back
        _until(out, "━━━━━━━━━━━━──────────── 50% 0 s")
    assert out.getvalue().endswith("\r\x1b[K")
    assert "\n" not in out.getvalue()


@pytest.mark.usefixtures("quick")
def test_a_log_file_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    shown = Progress("digits", show=True)
    with shown.step("building"):
        shown.at(0.4)
        _until(out, "keras_trt: building 'digits': 40% after 0 s\n")
    assert not set("\r\x1b━") & set(out.getvalue())


def test_short_work_and_silence_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    for show, stream in ((True, io.StringIO()), (False, Terminal())):
        monkeypatch.setattr(sys, "stdout", stream)
        with Progress("digits", show=show).step("building"):
            pass
        assert stream.getvalue() == ""


@pytest.mark.usefixtures("quick")
def test_who_waits_for_another_builder_says_so(monkeypatch: pytest.MonkeyPatch, cache: EngineCache) -> None:
    model = CASES["sequential"].build()
    accelerate(model, cache=cache).close()
    keys = [path.stem for path in (cache.path / "locks").glob("*.lock") if path.stem != "store"]
    cache.prune(0)
    monkeypatch.setattr(sys, "stdout", out := Tee())
    with contextlib.ExitStack() as held:
        for key in keys:
            held.enter_context(cache.lock(key))
        thread = threading.Thread(target=lambda: accelerate(model, cache=cache, verbose=1).close())
        thread.start()
        _until(out, f"keras_trt: waiting for another process that builds '{model.name}': after")
    thread.join(60)
    assert not thread.is_alive()


class Tee:
    """As users write them: what is printed goes to a file too."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def getvalue(self) -> str:
        return self.text


@pytest.mark.usefixtures("quick")
def test_what_a_user_puts_in_place_of_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", out := Tee())
    with Progress("digits", show=True).step("building"):
        _until(out, "keras_trt: building 'digits': after 0 s\n")
    monkeypatch.setattr(sys, "stdout", None)  # as under pythonw
    with Progress("digits", show=True).step("building"):
        pass


@pytest.mark.usefixtures("quick")
def test_a_terminal_that_cannot_show_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ascii(Terminal):
        def write(self, text: str) -> int:
            return super().write(text.encode("ascii").decode())

    monkeypatch.setattr(sys, "stdout", out := Ascii())
    shown = Progress("digits", show=True)
    with shown.step("building"):
        shown.at(0.5)
        _until(out, "???????????????????????? 50% 0 s")


@pytest.mark.usefixtures("quick")
def test_accelerate_shows_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CASES["image"].build()
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    accelerate(model, verbose=1)
    assert f"exporting '{model.name}'" in out.getvalue()
    last = out.getvalue().rpartition("\r\x1b[K")[2]  # the line that moves is gone, and the report is left
    assert last.startswith("keras_trt: ONNX Runtime")
    assert last.endswith("\n")
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    accelerate(model, verbose=0)
    assert out.getvalue() == ""
    assert np.isfinite(model.predict(floats(8, 8, 3)(2), verbose=0)).all()


def _until(out: io.StringIO | Tee, text: str) -> None:
    for _ in range(1000):
        if text in out.getvalue():
            return
        time.sleep(0.01)
    raise AssertionError(f"{text!r} is not in {out.getvalue()!r}")
