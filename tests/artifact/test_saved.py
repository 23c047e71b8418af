"""`.ktrt` files: what `save` writes `load` runs, with the base install alone."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

import keras_trt

from ..models import CASES, accelerate, keras, kl, pair, rows_differ, same
from .helpers import PACKAGE, load


@pytest.mark.parametrize("name", ["nested inputs", "dict outputs", "fixed batch", "uint8", "subclassed", "reversed"])
def test_what_is_loaded_answers_as_the_model(name: str, tmp_path: Path) -> None:
    model, fast = pair(name)
    x = CASES[name].data(10)
    expected = model.predict(x, verbose=0)
    rows_differ(expected)
    fast.save(tmp_path / "model.ktrt")
    loaded = load(tmp_path / "model.ktrt")
    assert loaded.report().origin == "artifact"
    assert loaded.report().rows_independent == fast.report().rows_independent
    assert all(difference.within for difference in loaded.report().differences)
    same(expected, loaded.predict(x, verbose=0))
    same(model.predict_on_batch(x), loaded.predict_on_batch(x))


def test_half_precision(tmp_path: Path) -> None:
    model = CASES["image"].build()
    x = CASES["image"].data(10)
    accelerate(model, precision="fp16").save(tmp_path / "model.ktrt")
    loaded = load(tmp_path / "model.ktrt")
    assert loaded.precision == "fp16"
    expected = model.predict(x, verbose=0)
    assert np.linalg.norm(loaded.predict(x, verbose=0) - expected) < 1e-2 * np.linalg.norm(expected)


def test_bfloat16_without_tensorflow(tmp_path: Path) -> None:
    """Outside of TensorFlow numpy knows no bfloat16 of its own."""
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, dtype="mixed_bfloat16")])
    accelerate(model).save(tmp_path / "model.ktrt")
    code = (
        "import numpy as np, keras_trt\n"
        "fast = keras_trt.load('model.ktrt', backend='onnxruntime', verbose=0)\n"
        "print(fast.predict(np.ones((2, 4), 'float32')).dtype)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        check=False,
    )
    assert (done.stdout, done.stderr) == ("bfloat16\n", "")


def test_from_a_warm_start_and_without_a_cache(tmp_path: Path) -> None:
    model = CASES["sequential"].build()
    cache = tmp_path / "cache"
    written = []
    for place in (None, cache, cache):
        fast = accelerate(model, cache=place)
        fast.save(tmp_path / "model.ktrt")
        written.append((fast.report().origin, (tmp_path / "model.ktrt").read_bytes()))
    assert [origin for origin, _ in written] == ["built", "built", "cache"]
    assert len({data for _, data in written}) == 1  # the same to the byte
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_graph_that_the_cache_has_lost(tmp_path: Path) -> None:
    import shutil

    model = CASES["sequential"].build()
    accelerate(model, cache=tmp_path / "cache")
    fast = accelerate(model, cache=tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(keras_trt.CacheError, match=r"keras_trt\.accelerate again"):
        fast.save(tmp_path / "model.ktrt")
    assert not (tmp_path / "model.ktrt").exists()


def base_install(folder: Path) -> None:
    """Link what `pip install keras-trt` brings, and nothing else, into a folder."""
    waiting, done = ["keras-trt"], set()
    while waiting:
        name = waiting.pop()
        if name in done:
            continue
        done.add(name)
        distribution = importlib.metadata.distribution(name)
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            target = Path(str(distribution.locate_file(top)))
            if name != "keras-trt" and not (folder / top).exists():
                (folder / top).symlink_to(target)
    (folder / "keras_trt").symlink_to(PACKAGE)


def test_the_base_install_alone_loads_it(tmp_path: Path) -> None:
    base = tmp_path / "packages"
    base.mkdir()
    base_install(base)
    model, fast = pair("nested inputs")
    x = CASES["nested inputs"].data(10)
    fast.save(tmp_path / "model.ktrt")
    np.savez(tmp_path / "x.npz", one=x["one"], pair_0=x["pair"][0], pair_1=x["pair"][1])
    code = f"""
import json, sys, warnings
warnings.simplefilter("error")
sys.path.insert(0, {str(base)!r})
import importlib.util
assert not any(importlib.util.find_spec(name) for name in ("tensorflow", "keras", "tensorrt_rtx", "tf2onnx", "onnx_ir"))
import numpy as np
import keras_trt
data = np.load("x.npz")
fast = keras_trt.load("model.ktrt", cache=None)
x = {{"one": data["one"], "pair": [data["pair_0"], data["pair_1"]]}}
np.savez("y.npz", *[fast.predict(x), fast.predict_on_batch(x), np.asarray(fast(x))])
fast.save("again.ktrt")
try:
    fast.predict(iter([x]))
except keras_trt.MissingDependencyError as error:
    assert "keras-trt[tensorflow]" in str(error), error
else:
    raise AssertionError("a generator needs Keras's adapters")
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "keras_trt: ONNX Runtime" in done.stdout
    assert not {"tensorflow", "keras"} & set(json.loads(done.stdout.splitlines()[-1]))
    expected = model.predict(x, verbose=0)
    rows_differ(expected)
    for answer in np.load(tmp_path / "y.npz").values():
        same(expected, answer)
    assert (tmp_path / "again.ktrt").read_bytes() == (tmp_path / "model.ktrt").read_bytes()


@pytest.mark.long
def test_an_empty_environment_loads_it(tmp_path: Path) -> None:
    """What `pip install keras-trt` puts into a new environment is enough: nothing of this one can be seen there."""
    model, fast = pair("dict outputs")
    x = CASES["dict outputs"].data(10)
    fast.save(tmp_path / "model.ktrt")
    np.save(tmp_path / "x.npy", x)
    run = {
        "check": True,
        "cwd": tmp_path,
        "timeout": 500,
        "env": {k: v for k, v in os.environ.items() if "PYTHON" not in k},
    }
    subprocess.run([sys.executable, "-m", "venv", "empty"], **run)  # type: ignore[call-overload]
    python = str(tmp_path / "empty" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(PACKAGE.parent)], **run)  # type: ignore[call-overload]
    code = (
        "import numpy as np, keras_trt\n"
        "fast = keras_trt.load('model.ktrt', cache='cache')\n"
        "np.savez('y.npz', **fast.predict(np.load('x.npy')))\n"
    )
    subprocess.run([python, "-W", "error", "-c", code], **run)  # type: ignore[call-overload]
    names = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, **run).stdout  # type: ignore[call-overload]
    assert not {"tensorflow", "keras", "tensorrt"} & set(names.split())
    expected = model.predict(x, verbose=0)
    for name, answer in np.load(tmp_path / "y.npz").items():
        same(expected[name], answer)


def test_others_may_read_what_is_saved(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        model = CASES["sequential"].build()
        keras_trt.export_onnx(model, tmp_path / "model.onnx")
        with accelerate(model) as fast:
            fast.save(tmp_path / "model.ktrt")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("model.onnx", "model.ktrt")] == [0o644] * 2
