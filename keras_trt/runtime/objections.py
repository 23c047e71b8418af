"""What an engine cannot run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..backends.base import Array
from ..cuda import DeviceArray
from ..specs import OptimizationProfile, TensorSpec


@dataclass(frozen=True)
class Objection:
    """Why an engine cannot run a batch.

    Attributes:
        kind: the same for all batches that are refused for the same cause.
        text: the cause, with this batch's figures.
        other_type: name of the input whose type is not the engine's. Keras alone takes that: a graph, which says its
            types, takes no other either. `None` where the cause is another one.
    """

    kind: str
    text: str
    other_type: str | None = None


def objection(
    inputs: Sequence[Array | DeviceArray],
    specs: Sequence[TensorSpec],
    profile: OptimizationProfile,
    *,
    rows_independent: bool,
) -> Objection | None:
    """Return why an engine cannot run `inputs`, or `None` if it can.

    Args:
        inputs: standardized arrays with one number of rows.
        specs: of the engine's inputs, in their order.
        profile: the shapes that it was built for.
        rows_independent: whether its batches can be cut and padded.
    """
    rows, (smallest, _, largest) = len(inputs[0]), profile.batch
    if not rows_independent and not smallest <= rows <= largest:
        return Objection(
            "rows",
            f"its rows depend on each other, so a batch of {rows} cannot be cut or padded to the engine's "
            f"{smallest} to {largest} rows (see `batch_sizes`)",
        )
    for spec, array in zip(specs, inputs, strict=True):
        if array.dtype != spec.dtype:
            return Objection(
                f"type {spec.name}",
                f"input '{spec.name}' has the type {array.dtype}, and as the model does not say its types the "
                f"engine was made for {spec.dtype} (give a `sample` with its types when it is made)",
                spec.name,
            )
        allowed = profile.shapes[spec.name]
        for axis in range(1, array.ndim):
            if not allowed.min[axis] <= array.shape[axis] <= allowed.max[axis]:
                return Objection(
                    f"axis {axis} {spec.name}",
                    f"axis {axis} of input '{spec.name}' has {array.shape[axis]} entries, and the engine was built "
                    f"for {allowed.min[axis]} to {allowed.max[axis]} (see `profiles`)",
                )
    return None
