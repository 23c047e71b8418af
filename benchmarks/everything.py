"""All benchmarks of a host with a GPU, one after the other, the most wanted first; what is done is not done again.

python benchmarks/everything.py --folder F [--seconds 1500] [--builders 3] [--python keras-jax=/usr/bin/python3 …]

Engines take most of the time, and building disturbs what is measured: the engines of a group are built first, several
at once, and then each of its benchmarks runs alone. A run that was cut off goes on where it was. Logs are in the
folder, results in `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent))

import environment

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Job:
    """A command, of which one run that succeeds is enough.

    Attributes:
        name: of its log, and of the mark that it is done.
        command: script and arguments.
    """

    name: str
    command: tuple[str, ...]


def predict(model: str, engines: str, batches: str = "1 8 32 128", precisions: str = "fp16") -> tuple[list[Job], Job]:
    """Return what builds the engines of a table, one by one, and what measures it."""
    common = ("predict.py", model, "--folder", "{folder}/predict")
    make = Job(f"make-{model}", (*common, "--child", "make"))
    builds = [
        Job(
            f"build-{model}-{precision}-{batch}",
            (*common, "--only-build", "--precisions", precision, "--batches", batch),
        )
        for precision in precisions.split()
        for batch in reversed(batches.split())  # the largest take longest
    ]
    rest = ("--precisions", *precisions.split(), "--batches", *batches.split(), "--engines", *engines.split())
    return [make, *builds], Job(f"predict-{model}", (*common, *rest, "{pythons}"))


def single(script: str, *arguments: str, name: str = "") -> Job:
    return Job(name or script, (f"{script}.py", *arguments))


def groups() -> list[tuple[list[Job], list[Job]]]:
    """Return what is built, and then what is measured, by what is asked first."""
    # TensorFlow at the end: XLA compiles each batch size of a large model for minutes.
    keras, ours = "keras-jax keras-torch keras-tensorflow", "keras_trt tensorrt-bare limit-pcie"
    kept = ("--folder", "{folder}/precision")
    types = [
        single("precision", *kept, "--only-build", precision, name=f"build-precision-{precision}")
        for precision in ("int8", "fp16", "tf32", "fp32")
    ]
    plans = [
        single("plans", "--folder", "{folder}/plans", "--build", model, engine, name=f"build-{model}-of-{engine}")
        for model in ("ResNet50", "NASNetMobile", "ConvNeXtTiny")
        for engine in ("keras", "keras_trt")
    ]
    start = ("--backend", "tensorrt", "--models", "ResNet50", "--folder", "{folder}/start")
    found = [
        ([], [single("orders", "--folder", "{folder}/orders")]),
        ([], [single("checkpoint", "--epochs", "20", "--rows", "16384", "--build", "thread", "process")]),
        (plans, [single("plans", "--folder", "{folder}/plans")]),
        ([single("precision", *kept, "--only-build", name="make-precision"), *types], [single("precision", *kept)]),
    ]
    for model, engines, more in (
        ("MLP", f"{ours} onnxruntime {keras}", {}),
        ("ResNet50", f"{ours} keras-jax-half {keras}", {"precisions": "fp16 tf32", "batches": "1 32 128"}),
        ("MobileNetV2", f"{ours} {keras}", {"batches": "1 32 128"}),
        ("MobileNetV2-uint8", f"{ours} keras-tensorflow", {"batches": "1 32 128"}),
    ):
        builds, measures = predict(model, engines, **more)
        found.append((builds, [measures]))
    found += [
        ([], [single("copying"), single("load")]),
        ([single("start", *start, "--repeats", "0", name="build-start")], [single("start", *start, "--repeats", "5")]),
        ([], [single("refit"), single("artifact", "--backend", "tensorrt"), single("recurrent")]),
    ]
    for model in ("LSTM", "BERT", "EfficientNetB0", "ConvNeXtTiny"):
        builds, measures = predict(model, f"{ours} {keras}")
        found.append((builds, [measures]))
    return found


def run(job: Job, asked: argparse.Namespace, ends: float) -> None:
    """Run a job, if it is not done and there is time."""
    mark, left = asked.folder / f"{job.name}.done", ends - time.monotonic()
    if mark.exists() or left < 10:
        return
    command: list[str] = []
    for part in job.command:
        if part == "{pythons}":
            command += ["--python", *asked.python] if asked.python else []
        else:
            command.append(part.format(folder=asked.folder))
    began = time.monotonic()
    with (asked.folder / f"{job.name}.log").open("a") as log:
        try:
            done = subprocess.run(
                [sys.executable, FOLDER / command[0], *command[1:]],
                stdout=log, stderr=subprocess.STDOUT, env=environment.of_children(), timeout=left, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            done = -1
    if done == 0:
        mark.touch()
    says = "done" if done == 0 else "cut off" if done == -1 else f"failed with exit status {done}"
    print(f"{job.name}: {says} after {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing after that, and end")
    parser.add_argument("--builders", type=int, default=3, help="engines that are built at once")
    parser.add_argument("--python", nargs="+", default=[], metavar="ENGINE=INTERPRETER")
    parser.add_argument("--only", nargs="+", help="jobs whose names begin so")
    asked = parser.parse_args()
    asked.folder = asked.folder.absolute()
    for folder in ("plans", "precision", "predict"):
        (asked.folder / folder).mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # TensorFlow is beside TensorRT
    ends = time.monotonic() + min(asked.seconds, 1e6)
    for builds, measures in groups():
        if asked.only:
            measures = [job for job in measures if job.name.startswith(tuple(asked.only))]
            builds = builds if measures else []
        if all((asked.folder / f"{job.name}.done").exists() for job in measures):
            continue
        for job in builds:
            if job.name.startswith("make-"):
                run(job, asked, ends)
        with ThreadPoolExecutor(asked.builders) as pool:
            list(pool.map(lambda job: run(job, asked, ends), builds))
        for job in measures:
            run(job, asked, ends)


if __name__ == "__main__":
    main()
