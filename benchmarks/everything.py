"""All benchmarks of a host with GPUs, the most wanted first, one on each GPU; what is done is not done again.

python benchmarks/everything.py --folder F [--gpus 0 1] [--seconds 1500] [--python keras-jax=/usr/bin/python3 …]
    [--only ResNet50 pipeline …]

A GPU runs one job at a time, builds too: TensorRT chooses by what it measures, and three builds at once took longer
than one after the other. What is timed on the host waits until nothing else is (`environment.alone`). A run that was
cut off goes on where it was. Logs are in the folder, results in `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent))

import environment
from predict import OURS, backend_of

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Job:
    """A command, of which one run that succeeds is enough.

    Attributes:
        name: of its log, and of the mark that it is done.
        command: script and arguments.
        after: jobs that have ended, well or not, before it begins.
        gpus: how many GPUs it takes, where the host has so many.
        seconds: cut off after that: XLA had not compiled ResNet50 after 466 s. What `predict.py` has by then is kept.
    """

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    gpus: int = 1
    seconds: float = float("inf")


@dataclass(frozen=True)
class Running:
    """A job that runs."""

    job: Job
    process: subprocess.Popen[bytes]
    gpus: list[str]
    began: float


def predict(
    model: str, engines: str, batches: str = "1 8 32 128", more: tuple[tuple[str, str], ...] = (), *, apart: bool
) -> Iterator[Job]:
    """Yield what makes the table of a model.

    Engines are built before they are timed, `apart` for each size where there are GPUs for all: a process begins for
    half a minute.
    """
    folder, names = ("--folder", "{folder}/predict"), list[str]()

    def job(name: str, children: str, precision: str, sizes: str, after: tuple[str, ...], **limits: Any) -> Job:
        names.append(f"{model}-{name}")
        how = ("--child", *children.split(), "--precisions", precision, "--batches", *sizes.split())
        return Job(names[-1], ("predict.py", model, *folder, *how), after, **limits)

    yield Job(make := f"{model}-make", ("predict.py", model, *folder, "--child", "make"), gpus=0)
    for precision, sizes in (("fp16", batches), *more):
        each = sizes.split() if apart else [sizes]
        built = [job("-".join(("build", precision, *one.split())), "build", precision, one, (make,)) for one in each]
        yield from built
        after = tuple(one.name for one in built)
        yield job(f"keras_trt-{precision}", " ".join(OURS), precision, sizes, after)
    for engine in engines.split():
        on_host = engine == "onnxruntime"
        yield job(engine, engine, "fp16", batches, (make,), gpus=0 if on_host else 1, seconds=300)
    precisions = dict.fromkeys(("fp16", *(precision for precision, _ in more)))
    listed = ("--batches", *batches.split(), "--precisions", *precisions, "--engines", *engines.split(), *OURS)
    yield Job(f"{model}-table", ("predict.py", model, *folder, "--table", *listed), tuple(names), gpus=0)


def single(script: str, *arguments: str, gpus: int = 1, name: str = "", after: tuple[str, ...] = ()) -> Job:
    return Job(name or script, (f"{script}.py", *arguments), after, gpus)


def jobs(gpus: list[str]) -> Iterator[Job]:
    """Yield what is measured, by what is asked first."""
    keras = "keras-tensorflow keras-jax keras-torch onnxruntime"
    apart = len(gpus) > 2
    yield single("plans", "--models", "ResNet50", "ConvNeXtTiny", "--folder", "{folder}/plans")
    small = ("--models", "NASNetMobile", "--optimization-level", "2", "--folder", "{folder}/plans")
    yield single("plans", *small, name="plans-NASNetMobile")
    of_resnet = f"keras-tensorflow-without-xla keras-jax-half {keras}"
    yield from predict("ResNet50", of_resnet, "1 32 128", (("tf32", "128"),), apart=apart)
    yield from predict("MobileNetV2", keras, "1 32 128", apart=apart)
    built = tuple(f"{model}-keras_trt-fp16" for model in ("ResNet50", "MobileNetV2"))
    yield single("pipeline", "--folder", "{folder}/predict", after=built)
    yield single("load")
    yield from predict("MobileNetV2-uint8", "keras-tensorflow", "1 32 128", apart=apart)
    yield single("precision", "--folder", "{folder}/precision")
    # Side by side where there are GPUs: the training alone, and the same for each way to build.
    builds = ("process",) if len(gpus) == 2 else ("process", "thread")
    beside = ("--gpus", "{gpus}") if len(gpus) > 1 else ()
    long = ("--epochs", "6", "--steps", "3600", "--build", *builds, *beside)
    yield single("checkpoint", *long, gpus=1 + len(builds) if beside else 1)
    yield from predict("MLP", keras, apart=apart)
    for model in ("LSTM", "BERT", "EfficientNetB0", "ConvNeXtTiny"):
        yield from predict(model, f"keras-tensorflow-without-xla {keras}", apart=apart)
    yield single("copying")
    yield single(
        "start", "--backend", "tensorrt", "--models", "ResNet50", "--folder", "{folder}/start", "--repeats", "5"
    )
    yield single("refit")
    yield single("artifact", "--backend", "tensorrt")
    yield single("recurrent")


def start(job: Job, gpus: list[str], asked: argparse.Namespace) -> Running:
    """Start a job on GPUs of its own, which it is told where it takes several."""
    script, *rest = job.command
    arguments: list[str] = []
    for part in rest:
        arguments += gpus if part == "{gpus}" else [part.format(folder=asked.folder)]
    engine = arguments[arguments.index("--child") + 1] if "--child" in arguments else ""
    environ = environment.of_children() | {"PYTHONUNBUFFERED": "1", "KERAS_BACKEND": backend_of(engine)}
    if len(gpus) == 1 or engine in ("make", "onnxruntime"):  # else TensorFlow takes some of a GPU for those too
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    python = dict(one.split("=", 1) for one in asked.python).get(engine, sys.executable)
    with (asked.folder / f"{job.name}.log").open("a") as log:
        command = [python, str(FOLDER / script), *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environ, start_new_session=True)
    return Running(job, process, gpus, time.monotonic())


def run(waiting: list[Job], gpus: list[str], asked: argparse.Namespace) -> None:
    """Run jobs in their order, each as soon as there are GPUs for it and what it comes after has ended."""
    ends = time.monotonic() + asked.seconds
    free, running = list(gpus), list[Running]()
    try:
        while (waiting or running) and time.monotonic() < ends:
            for job in list(waiting):
                count = min(job.gpus, len(gpus))
                to_come = {other.name for other in [*waiting, *(one.job for one in running)]}
                if not to_come.isdisjoint(job.after):
                    continue
                if len(free) < count:
                    break  # else one that takes several would never get them
                waiting.remove(job)
                running.append(start(job, free[:count], asked))
                del free[:count]
            time.sleep(0.2)
            for one in list(running):
                if late := time.monotonic() - one.began > one.job.seconds:
                    cut_off(one)
                if late or one.process.poll() is not None:
                    running.remove(one)
                    free.extend(one.gpus)
                    tell(one, asked.folder, late=late)
    finally:  # also after Ctrl-C
        for one in running:
            cut_off(one)
            print(f"{one.job.name}: cut off after {time.monotonic() - one.began:.0f} s", flush=True)


def cut_off(one: Running) -> None:
    """End a job with all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(one.process.pid, signal.SIGKILL)
    one.process.wait()


def tell(one: Running, folder: Path, *, late: bool) -> None:
    """Say how a job ended, and mark what is done, or would be cut off again."""
    status = one.process.returncode
    if late or status == 0:
        (folder / f"{one.job.name}.done").touch()
    says = "takes too long" if late else "done" if status == 0 else f"failed with exit status {status}"
    print(f"{one.job.name}: {says} after {time.monotonic() - one.began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--gpus", nargs="+", default=["0"], help="numbers of the GPUs")
    parser.add_argument("--seconds", type=float, default=1e6, help="end after that")
    parser.add_argument("--python", nargs="+", default=[], metavar="ENGINE=INTERPRETER")
    parser.add_argument("--only", nargs="+", default=[""], help="jobs whose names begin so, in this order")
    asked = parser.parse_args()
    asked.folder = asked.folder.absolute()
    for folder in ("plans", "precision", "predict"):
        (asked.folder / folder).mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # TensorFlow is beside TensorRT
    every = list(jobs(asked.gpus))
    wanted = dict.fromkeys(job for prefix in asked.only for job in every if job.name.startswith(prefix))
    run([job for job in wanted if not (asked.folder / f"{job.name}.done").exists()], list(asked.gpus), asked)


if __name__ == "__main__":
    main()
