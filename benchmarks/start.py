"""How long a start takes: `import keras_trt`, the first start of a model, and every later one in a new process.

python benchmarks/start.py [--backend onnxruntime] [--repeats 3] [--folder F]
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
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

IMPORT = "import time; start = time.perf_counter(); import keras_trt; print(time.perf_counter() - start)"


def start(path: str, backend: Any, cache: str) -> dict[str, Any]:
    """Start once, in this process."""
    begin = time.perf_counter()
    import keras
    import tensorflow  # noqa: F401 (imported here so that its time is counted here)

    import keras_trt
    import keras_trt.cuda
    import keras_trt.fingerprint

    keras_trt.accelerate  # noqa: B018 (what it needs is imported with the name)
    if backend.startswith("tensorrt"):
        importlib.import_module(backend)
        importlib.import_module("keras_trt.backends.tensorrt")
    imported = time.perf_counter()
    if backend.startswith("tensorrt"):
        with keras_trt.cuda.current_device(0):  # the first call makes CUDA's context
            keras_trt.cuda.Stream().close()
    ready = time.perf_counter()
    model = keras.saving.load_model(path, compile=False)
    made = time.perf_counter()
    fast = keras_trt.accelerate(model, backend=backend, cache=cache, verbose=0)
    done = time.perf_counter()
    report = fast.report()
    keys = {}
    for name in ("structure_key", "weights_key"):
        begin_key = time.perf_counter()
        getattr(keras_trt.fingerprint, name)(model)
        keys[name] = time.perf_counter() - begin_key
    return {
        "keys_again_s": keys,
        "engine": report.title,
        "precision": report.precision,
        "origin": report.origin,
        "import_frameworks_s": imported - begin,
        "first_cuda_call_s": ready - imported,
        "load_model_s": made - ready,
        "accelerate_s": done - made,
        "steps_s": dict(report.seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["MobileNetV2", "ResNet50"])
    parser.add_argument("--folder", type=Path, help="keeps models and engines: what is there is a later start")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.make:
        models.make(*chosen.models).save(chosen.make / "model.keras")
        print()
        return
    if chosen.one:
        print(json.dumps(start(f"{chosen.one}/model.keras", chosen.backend, f"{chosen.one}/cache")))
        return

    environ = environment.of_children()
    imports = [float(_run([sys.executable, "-c", IMPORT], environ)) for _ in range(10)]
    print(f"import keras_trt: median {statistics.median(imports) * 1e3:.0f} ms of {len(imports)}")
    rows: list[dict[str, Any]] = [
        {"what": "import keras_trt", "median_s": statistics.median(imports), "all_s": imports}
    ]
    with tempfile.TemporaryDirectory() as temporary:
        for name in chosen.models:
            folder = (chosen.folder or Path(temporary)) / f"{name}-{chosen.backend}"
            folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, __file__, "--backend", chosen.backend, "--models", name]
            if not (folder / "model.keras").exists():
                _run([*command, "--make", str(folder)], environ)
            whats = ["later start"] * chosen.repeats
            if not (folder / "cache").exists():
                whats.insert(0, "first start")
            for what in whats:
                row = {"what": what, "model": name, **json.loads(_run([*command, "--one", str(folder)], environ))}
                rows.append(row)
                print(
                    f"{name}, {what} ({row['origin']}): accelerate {row['accelerate_s']:.2f} s, beyond importing the "
                    f"frameworks {row['import_frameworks_s']:.2f} s, the first CUDA call "
                    f"{row['first_cuda_call_s']:.2f} s and loading the model {row['load_model_s']:.2f} s: "
                    + ", ".join(f"{step} {seconds:.3f}" for step, seconds in row["steps_s"].items())
                )
    print("written:", environment.write("start", {**environment.describe("start.py"), "rows": rows}))


def _run(command: list[str], environ: dict[str, str]) -> str:
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
