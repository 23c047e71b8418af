"""Engine against source: relative differences per output, and whether a model's rows depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .options import Precision
from .specs import TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]
Predict = Callable[[Sequence[Array]], Sequence[Array]]

#: Largest relative L2 difference to Keras, per output, at which an engine is trusted. Chosen above what the types
#: cost ordinary networks (ResNet50: TF32 5e-5, FP16 3e-4) and far below what a broken engine shows.
LIMITS: Mapping[Precision, float] = {"fp32": 1e-4, "tf32": 2e-3, "fp16": 1e-2, "bf16": 3e-2}


@dataclass(frozen=True)
class Difference:
    """How far one output of an engine is from Keras's.

    Attributes:
        output: name of the output.
        relative_l2: ‖engine - Keras‖ / ‖Keras‖ over all samples; infinite where one has NaN or infinity and the
            other has not.
        largest: largest absolute difference of two numbers.
        limit: largest `relative_l2` that is trusted.
    """

    output: str
    relative_l2: float
    largest: float
    limit: float

    @property
    def within(self) -> bool:
        """Whether the output is trusted."""
        return self.relative_l2 <= self.limit

    def __str__(self) -> str:
        sign = "≤" if self.within else ">"
        return f"output '{self.output}': relative difference {self.relative_l2:.2g} {sign} {self.limit:.2g}"


def compare(
    expected: Sequence[Array], actual: Sequence[Array], outputs: Sequence[TensorSpec], limit: float
) -> list[Difference]:
    """Compare an engine's outputs with Keras's.

    Args:
        expected: Keras's outputs.
        actual: the engine's.
        outputs: their specs.
        limit: largest relative L2 difference that is trusted. Integers and booleans must be equal in all but that
            share of places.

    Returns:
        One `Difference` for each output.
    """
    return [
        Difference(spec.name, *_difference(np.asarray(wanted), np.asarray(got)), limit)
        for wanted, got, spec in zip(expected, actual, outputs, strict=True)
    ]


def _difference(wanted: Array, got: Array) -> tuple[float, float]:
    if wanted.shape != got.shape:
        return np.inf, np.inf
    if wanted.size == 0:
        return 0.0, 0.0
    if wanted.dtype.kind in "biu":
        # As wide floats: a difference of unsigned integers wraps around.
        return float(np.mean(wanted != got)), float(np.abs(wanted.astype(np.float64) - got.astype(np.float64)).max())
    wanted, got = wanted.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], got[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return np.inf, np.inf
    delta = np.abs(wanted[finite] - got[finite])
    norm = float(np.linalg.norm(wanted[finite]))
    distance = float(np.linalg.norm(delta))
    if distance == 0.0:
        return 0.0, 0.0
    return (distance / norm if norm else np.inf), float(delta.max())


#: Rows that `rows_depend` looks at: more only makes it slower, since each is compared with the same batch.
_ANCHORS = 4


def rows_depend(predict: Predict, samples: Sequence[Array], *, alone: bool = True) -> bool:
    """Tell whether a model's answer for a row depends on the other rows of its batch.

    Some rows are given to the source again, at the same place of a batch of the same size, but among copies of
    themselves. Same place and size, so that the source does the same arithmetic: an independent row then answers
    to the bit, or nearly so where the source's kernels are not deterministic. The first row is also given alone,
    which shows a dependence on the size of the batch; other kernels may run there, so that more is allowed.

    Differences are measured against how far the answers for different rows are apart: a model that hardly answers
    to its input at all proves nothing by answering alike.

    Args:
        predict: from flat inputs to flat outputs.
        samples: flat inputs with the same number of rows, at least 2.
        alone: whether a row may be given alone; not to a model whose batch size is fixed.

    Returns:
        Whether batches must be run as they come: rows depend on each other, or an output has not one row for each
        row of the inputs.
    """
    rows = len(samples[0])
    together = [np.asarray(output) for output in predict(samples)]
    if any(output.ndim == 0 or len(output) != rows for output in together):
        return True
    for row in range(min(rows, _ANCHORS)):
        copies = predict([np.repeat(array[row : row + 1], rows, axis=0) for array in samples])
        if any(
            _mixed(all_rows, row, np.asarray(same)[row], 1e-6) for all_rows, same in zip(together, copies, strict=True)
        ):
            return True
    if not alone:
        return False
    try:
        single = [np.asarray(output) for output in predict([array[:1] for array in samples])]
    except Exception:  # whatever a model's own code raises: it takes whole batches, and not one row of them
        return True
    return any(
        one.ndim == 0 or len(one) != 1 or _mixed(all_rows, 0, one[0], 1e-4)
        for all_rows, one in zip(together, single, strict=True)
    )


def _mixed(together: Array, row: int, other: Array, noise: float) -> bool:
    here, there = together[row].astype(np.float64), other.astype(np.float64)
    if here.shape != there.shape or not np.array_equal(np.isfinite(here), np.isfinite(there)):
        return True
    mixing = float(np.linalg.norm(np.nan_to_num(here - there)))
    spread = max(float(np.linalg.norm(np.nan_to_num(here - answer))) for answer in together.astype(np.float64))
    return mixing > 1e-3 * spread + noise * float(np.linalg.norm(np.nan_to_num(here)))


def random_samples(
    inputs: Sequence[TensorSpec], sizes: Mapping[str, Sequence[int]], rows: int, below: int | None
) -> list[Array]:
    """Return seeded random inputs: standard normal floats, integers from 0, booleans of both kinds.

    Args:
        inputs: what the model takes.
        sizes: by input name, the shape to use without its batch axis.
        rows: how many rows.
        below: integers are smaller than this; where it is `None` they are 0 and 1, and bytes go up to 255.
    """
    generator = np.random.default_rng(0)
    samples: list[Array] = []
    for spec in inputs:
        shape = (rows, *sizes[spec.name])
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "b":
            samples.append(generator.integers(0, 2, shape).astype(bool))
        elif dtype.kind in "iu":
            samples.append(generator.integers(0, below or (256 if dtype == np.uint8 else 2), shape).astype(dtype))
        else:
            samples.append(generator.standard_normal(shape).astype(dtype))
    return samples
