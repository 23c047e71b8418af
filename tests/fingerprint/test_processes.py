"""The same keys in every process, and in whichever folder Keras is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from ..models import keras

SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import keras
from keras import layers as kl
from keras_trt.fingerprint import structure_key, weights_key
class Pick(kl.Layer):
    names = {{"a", "b", "c"}}
    def call(self, x):
        for name in ("a", "b"):
            if name in {{"a", "b", "c", "d"}} and name in self.names:
                x = x * 2.0
        return x
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((4,)), kl.Dense(3), Pick(), kl.Dropout(0.5)])
print(structure_key(model), weights_key(model))
"""


def test_same_in_every_process() -> None:
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(root=root)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in ("0", "1234")
    ]
    results = [process.communicate(timeout=300) for process in running]
    keys = {out.split()[-2:][0] + out.split()[-1] for out, _ in results if out.split()}
    assert [process.returncode for process in running] == [0, 0], results[0][1][-2000:]
    assert len(keys) == 1


def test_import_is_light() -> None:
    code = (
        "import sys, keras_trt.fingerprint.code_digest; print([m for m in ('keras', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_keras_may_be_installed_in_any_folder(tmp_path: Any) -> None:
    """As by `pip install --target`: Keras's own code is told by its release there too."""
    import importlib.metadata
    import shutil
    from pathlib import Path

    metadata = next(
        Path(str(file.locate())).parent
        for file in importlib.metadata.files("keras") or ()
        if file.name == "METADATA" and str(file).count("/") == 1
    )
    for folder in (Path(keras.__file__).parent, metadata):
        shutil.copytree(folder, tmp_path / folder.name)
    code = (
        "import keras\nfrom keras_trt.fingerprint import structure_key\n"
        "model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation='tanh')])\n"
        "print(keras.__file__)\nprint(structure_key(model))\n"
    )
    keys = set()
    for path in ([], [str(tmp_path)]):
        search = os.pathsep.join([*path, str(Path.cwd())])
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": search, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        where, key = done.stdout.splitlines()[-2:]
        assert where.startswith(str(tmp_path)) == bool(path)
        keys.add(key)
    assert len(keys) == 1
