"""From a `.ktrt` file to the first prediction, in a new process that has no TensorFlow: its whole wall time, by steps.

python benchmarks/artifact.py [--backend onnxruntime] [--models ResNet50 MobileNetV2] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent))

import environment
import models
import numpy as np

FIRST_PREDICTION = """
import json, sys, time
start = time.perf_counter()
import numpy as np
import keras_trt
imported = time.perf_counter()
fast = keras_trt.load("model.ktrt", backend=sys.argv[1], cache=None, verbose=0)
loaded = time.perf_counter()
np.save("y.npy", fast.predict(np.load("x.npy")))
done = time.perf_counter()
assert not {"tensorflow", "keras"} & set(sys.modules)
report = fast.report()
print(json.dumps({
    "engine": report.title, "precision": report.precision, "origin": report.origin, "import_s": imported - start,
    "load_s": loaded - imported, "predict_s": done - loaded, "load_steps_s": dict(report.seconds),
}))
"""


def measure(name: str, backend: Any, repeats: int, folder: Path) -> list[dict[str, Any]]:

    import keras_trt

    model = models.make(name)
    images = np.random.default_rng(0).standard_normal((8, *model.input_shape[1:])).astype("float32")
    with keras_trt.accelerate(model, backend=backend, batch_sizes=(1, 8, 32), cache=None, verbose=0) as fast:
        expected = fast.predict(images, verbose=0)
        start = time.perf_counter()
        fast.save(folder / "model.ktrt")
        saved = time.perf_counter() - start
    np.save(folder / "x.npy", images)
    rows = []
    environ = environment.of_children()
    for _ in range(repeats):
        start = time.perf_counter()
        command = [sys.executable, "-c", FIRST_PREDICTION, backend]
        done = subprocess.run(command, cwd=folder, env=environ, stdout=subprocess.PIPE, text=True, check=True)
        whole = time.perf_counter() - start
        difference = float(np.linalg.norm(np.load(folder / "y.npy") - expected) / np.linalg.norm(expected))
        size = (folder / "model.ktrt").stat().st_size
        rows.append(
            {
                "model": name,
                "process_s": whole,
                "save_s": saved,
                "bytes": size,
                "difference": difference,
                **json.loads(done.stdout),
            }
        )
        print(rows[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--models", nargs="+", default=["ResNet50", "MobileNetV2"])
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    rows = []
    for name in chosen.models:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(name, chosen.backend, chosen.repeats, Path(folder))
    print("written:", environment.write("artifact", {**environment.describe("artifact.py"), "rows": rows}))


if __name__ == "__main__":
    main()
