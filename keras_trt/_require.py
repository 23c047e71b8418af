"""Imports of optional packages, with an error that says what to install."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import MissingDependencyError


def require(module: str, *, package: str, extra: str, purpose: str) -> ModuleType:
    """Import and return `module`.

    Args:
        module: the dotted name to import.
        package: the package's name on the index.
        extra: the extra of keras-trt that brings it.
        purpose: what needs it, for the message: "Exporting a Keras model needs …".

    Raises:
        MissingDependencyError: if it is not installed, or fails while it is imported.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a library that the package loads by itself is missing
        raise MissingDependencyError(
            f"{purpose} needs {package}, and importing it failed: {error}. "
            f"Install it with `pip install 'keras-trt[{extra}]'`.",
            package=package,
        ) from error
