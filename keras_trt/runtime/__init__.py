"""Engine → arrays: how rows become the engine's batches (`session`), and how a GPU is fed (`gpu`)."""

from __future__ import annotations

from .gpu import Usage
from .pool import SLOTS
from .results import RowsDependError, deliver
from .session import Session

__all__ = ["SLOTS", "RowsDependError", "Session", "Usage", "deliver"]
