"""The life of a drop-in: from a damaged cache, with other weights, after `close` and after a fork."""

from __future__ import annotations

import copy
import logging
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from ..models import CASES, accelerate, floats, same
from .test_data import WAYS


def test_a_corrupt_plan_is_built_again(cache: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = CASES["sequential"].build()
    x = floats(4)(20)
    expected = model.predict(x, verbose=0)
    assert accelerate(model, cache=cache).report().origin == "built"
    assert accelerate(model, cache=cache).report().origin == "cache"
    payloads = [path for path in (cache.path / "payloads").rglob("*") if path.is_file()]
    assert len(payloads) == 2  # the plan, and the export without its weights
    for payload in payloads:
        content = bytearray(payload.read_bytes())
        content[len(content) // 2] ^= 0xFF
        payload.chmod(0o600)
        payload.write_bytes(content)
    with caplog.at_level(logging.WARNING, "keras_trt"):
        fast = accelerate(model, cache=cache)
    assert fast.report().origin == "built"
    same(expected, fast.predict(x, verbose=0))
    fast = accelerate(model, cache=cache)
    assert fast.report().origin == "cache"
    same(expected, fast.predict(x, verbose=0))


@pytest.mark.parametrize("sample", [None, floats(4)(8)], ids=["found by its record", "found by its graph"])
def test_a_whole_entry_that_holds_no_plan_is_built_again(sample: Any, cache: Any, caplog: Any) -> None:
    model = CASES["sequential"].build()
    x = floats(4)(20)
    expected = model.predict(x, verbose=0)
    assert accelerate(model, cache=cache).report().origin == "built"
    (engine,) = (item for item in cache.items() if item.kind == "entry" and "graph" in item.manifest)
    cache.put(engine.key, b"what another version wrote", engine.manifest)
    with caplog.at_level(logging.WARNING, "keras_trt"):
        fast = accelerate(model, cache=cache, sample=sample)  # another sample has a record of its own
    assert [record.levelname for record in caplog.records if "cannot be loaded and is built" in record.getMessage()]
    assert fast.report().origin == "built"
    same(expected, fast.predict(x, verbose=0))
    assert accelerate(model, cache=cache).report().origin == "cache"


def test_the_users_cache_is_taken_from_the_environment(tmp_path: Path) -> None:
    model = CASES["sequential"].build()
    assert accelerate(model, cache=True).report().origin == "built"
    assert list((tmp_path / "user-cache" / "payloads").rglob("*"))
    assert accelerate(model, cache=tmp_path / "user-cache").report().origin == "cache"


def test_other_weights_are_another_engine(cache: Any) -> None:
    model = CASES["sequential"].build()
    x = floats(4)(20)
    accelerate(model, cache=cache)
    model.set_weights([weights + 0.5 for weights in model.get_weights()])
    fast = accelerate(model, cache=cache)
    assert fast.report().origin == "refitted"
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))


@pytest.mark.parametrize("way", WAYS)
def test_use_after_close(way: str) -> None:
    fast = accelerate(CASES["sequential"].build())
    with fast as entered:
        assert entered is fast
        fast.predict(floats(4)(3), verbose=0)
    with pytest.raises(RuntimeError, match="closed"):
        WAYS[way](fast, floats(4)(3))
    fast.close()  # again, without harm


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore")
import numpy as np, keras, keras_trt
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
fast = keras_trt.accelerate(model, backend="onnxruntime", cache=None, verbose=0)
x = np.ones((2, 4), np.float32)
fast.predict(x, verbose=0)
child = os.fork()
if child == 0:
    said = []
    for use in (lambda: fast.predict(x), lambda: fast.predict_on_batch(x), lambda: fast(x)):
        try:
            use()
        except RuntimeError as error:
            said.append(str(error))
    fast.close()
    os.write(1, repr(said).encode())
    os._exit(0 if len(said) == 3 and all("fork" in text for text in said) else 1)
_, status = os.waitpid(child, 0)
assert fast.predict(x, verbose=0).shape == (2, 3)  # the parent's engine is as it was
os._exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this system does not fork")
def test_use_after_fork() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORK)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_drop_in_is_not_copied(way: Any) -> None:
    fast = accelerate(CASES["sequential"].build())
    with pytest.raises(TypeError, match=r"not copied or pickled.*`save`"):
        way(fast)
    assert "onnxruntime" in repr(fast)
    fast.close()
    assert "closed" in repr(fast)
