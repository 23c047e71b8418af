"""What was noticed about a model: one sentence, which errors and `doctor` both say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Action = Literal["repaired", "split", "kept", "falls back", "refused"]


@dataclass(frozen=True)
class Finding:
    """Something about a model that an engine does not simply run.

    Attributes:
        problem: what is the matter, in the words of the error or warning that `accelerate` would give.
        layer: path of the Keras layer, or name of the input, that it is about; `None` for the model as a whole.
        action: what will be done. `"repaired"`: the engine runs it in another form. `"split"`: it runs outside of the
            engine, which runs the rest. `"kept"`: the engine runs it as it is, at a cost. `"falls back"`: something
            else runs than was asked for. `"refused"`: `accelerate` raises.
        cost: what that costs, and what can be done about it.

    Example:
    >>> [finding.layer for finding in keras_trt.doctor(model) if finding.action == "falls back"]
    ['spectrum']
    """

    problem: str
    layer: str | None = None
    action: Action = "falls back"
    cost: str = "Keras runs the whole model"

    @property
    def on_engine(self) -> bool:
        """Whether an engine runs the model all the same, as it was asked for."""
        return self.action in ("repaired", "split", "kept")
