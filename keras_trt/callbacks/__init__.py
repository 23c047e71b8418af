"""Callbacks of `keras.Model.fit` that make and use engines. These modules import Keras, whose classes they extend."""

from __future__ import annotations

from .checkpoint import EngineCheckpoint
from .validation import EngineValidation

__all__ = ["EngineCheckpoint", "EngineValidation"]
