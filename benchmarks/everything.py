"""All benchmarks of a host with a GPU, one after the other, the most wanted first; what is done is not done again.

python benchmarks/everything.py --folder F [--seconds 1500] [--python keras-jax=/usr/bin/python3 …] [--only pipeline …]

Each job runs alone, builds too: TensorRT chooses by what it measures, and three builds at once took longer than one
after the other. A run that was cut off goes on where it was. Logs are in the folder, results in `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
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


def predict(model: str, engines: str, batches: str = "1 8 32 128", precisions: str = "fp16") -> Job:
    """Return what prints the table of a model."""
    command = ("predict.py", model, "--folder", "{folder}/predict", "--precisions", *precisions.split())
    more = ("--batches", *batches.split(), "--engines", *engines.split(), "{pythons}")
    return Job(f"predict-{model}", (*command, *more))


def single(script: str, *arguments: str) -> Job:
    return Job(script, (f"{script}.py", *arguments))


def jobs() -> list[Job]:
    """Return what is measured, by what is asked first."""
    # TensorFlow at the end: XLA compiles each batch size of a large model for minutes.
    keras, ours = "keras-jax keras-torch keras-tensorflow", "keras_trt tensorrt-bare limit-pcie onnxruntime"
    start = ("--backend", "tensorrt", "--models", "ResNet50", "--folder", "{folder}/start", "--repeats", "5")
    return [
        single("pipeline", "--folder", "{folder}/predict"),
        single("copying"),
        predict("MobileNetV2", f"{ours} {keras}", "1 32 128"),
        predict("ResNet50", f"{ours} keras-jax-half {keras}", "1 32 128", "fp16 tf32"),
        single("checkpoint", "--epochs", "20", "--rows", "16384", "--build", "thread", "process"),
        single("precision", "--folder", "{folder}/precision"),
        single("plans", "--folder", "{folder}/plans"),
        predict("MLP", f"{ours} {keras}"),
        single("load"),
        predict("MobileNetV2-uint8", f"{ours} keras-tensorflow", "1 32 128"),
        *(predict(model, f"{ours} {keras}") for model in ("LSTM", "BERT", "EfficientNetB0", "ConvNeXtTiny")),
        single("start", *start),
        single("refit"),
        single("artifact", "--backend", "tensorrt"),
        single("recurrent"),
    ]


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
        process = subprocess.Popen(
            [sys.executable, FOLDER / command[0], *command[1:]],
            stdout=log, stderr=subprocess.STDOUT, env=environment.of_children(), start_new_session=True,
        )  # fmt: skip
        try:
            done = process.wait(left)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
            done = -1
    if done == 0:
        mark.touch()
    says = "done" if done == 0 else "cut off" if done == -1 else f"failed with exit status {done}"
    print(f"{job.name}: {says} after {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing after that, and end")
    parser.add_argument("--python", nargs="+", default=[], metavar="ENGINE=INTERPRETER")
    parser.add_argument("--only", nargs="+", help="jobs whose names begin so")
    asked = parser.parse_args()
    asked.folder = asked.folder.absolute()
    for folder in ("plans", "precision", "predict"):
        (asked.folder / folder).mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # TensorFlow is beside TensorRT
    ends = time.monotonic() + min(asked.seconds, 1e6)
    for job in jobs():
        if not asked.only or job.name.startswith(tuple(asked.only)):
            run(job, asked, ends)


if __name__ == "__main__":
    main()
