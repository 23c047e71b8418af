"""The command `keras-trt`: thin over the Python calls."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, get_args

from .._version import __version__
from ..errors import CacheError, MissingDependencyError
from ..options import BackendName, Precision
from .cache import add_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: what was typed after `keras-trt`. Defaults to `None`: what was typed.

    Returns:
        The exit status: 0 where everything runs on an engine, 1 where something falls back or is refused, 2 for bad
        usage.
    """
    chosen = _parser().parse_args(arguments)
    if chosen.command == "cache":
        from .cache import run

        try:
            return run(chosen)
        except (CacheError, ValueError) as error:
            print(f"keras-trt: {error}", file=sys.stderr)  # noqa: T201 (a command)
            return 2
    from ..diagnosis import doctor

    try:
        sample = _sample(chosen.sample)
        diagnosis = doctor(
            chosen.model,
            precision=chosen.precision,
            backend=chosen.backend,
            batch_sizes=tuple(chosen.batch_sizes),
            sample=sample,
            calibration_data=sample,
            device=chosen.device,
        )
    except (TypeError, ValueError, OSError, MissingDependencyError) as error:
        print(f"keras-trt: {error}", file=sys.stderr)  # noqa: T201 (a command)
        return 2
    print(json.dumps(diagnosis.to_json(), indent=2) if chosen.json else diagnosis)  # noqa: T201 (a command)
    return 0 if diagnosis.ok else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="keras-trt", description="TensorRT for Keras models.")
    parser.add_argument("--version", action="version", version=f"keras_trt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser(
        "doctor",
        help="say what of a model will run on an engine and what will not, before any build",
        epilog="Exit status: 0 everything runs on an engine, 1 something falls back or is refused, 2 bad usage.",
    )
    doctor.add_argument("model", help="a .keras or .h5 file, or a SavedModel folder")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of a table")
    doctor.add_argument("--precision", choices=get_args(Precision), help="default: the backend's own")
    doctor.add_argument("--backend", choices=get_args(BackendName), default="auto")
    doctor.add_argument("--batch-sizes", nargs=3, type=int, default=(1, 32, 128), metavar=("MIN", "OPT", "MAX"))
    doctor.add_argument(
        "--sample",
        help="a batch of inputs: .npy, or .npz with an array for each input name; 8 bits are calibrated on it",
    )
    doctor.add_argument("--device", type=int, default=0, help="index of the GPU")
    add_parser(commands)
    return parser


def _sample(path: str | None) -> Any:
    if path is None:
        return None
    import numpy as np

    loaded = np.load(path, allow_pickle=False)
    return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
