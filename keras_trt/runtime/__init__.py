"""Engine → arrays: how rows become the engine's batches (`session`), and how a GPU is fed (`gpu`)."""

from __future__ import annotations

from .session import Session

__all__ = ["Session"]
