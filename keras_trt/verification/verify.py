"""Engine against source: relative differences per output, and whether a model's rows depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..options import Precision
from ..specs import TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]
Predict = Callable[[Sequence[Array]], Sequence[Array]]

# Answers may be infinite, or so large that their squares are, which numpy warns of.
_quietly = np.errstate(over="ignore", invalid="ignore")

#: Largest relative L2 difference to Keras, per output, at which an engine is trusted. Chosen above what the types
#: cost ordinary networks (ResNet50: TF32 5e-5, FP16 3e-4) and far below what a broken engine shows.
LIMITS: Mapping[Precision, float] = {"fp32": 1e-4, "tf32": 2e-3, "fp16": 1e-2, "bf16": 3e-2, "int8": 5e-2, "fp8": 5e-2}


#: How much farther from Keras a single row may be than all of them together: rows are not rounded alike.
ROW_LIMIT = 4


@dataclass(frozen=True)
class Difference:
    """How far one output of an engine is from Keras's.

    Attributes:
        output: name of the output.
        relative_l2: ‖engine - Keras‖ / ‖Keras‖ over all samples; infinite where one has NaN or infinity and the
            other has not.
        largest: largest absolute difference of two numbers.
        limit: largest `relative_l2` that is trusted.
        cosine: of the angle between the two, 1 where they point the same way; 0 where one has NaN or infinity and the
            other has not.
        argmax: share of rows with the same largest entry along the last axis; `None` where that says nothing.
        not_finite: in how many places one has NaN or infinity and the other has not.
        worst_row: the largest relative difference of a single row, wherever it stood in a batch of whatever size.
    """

    output: str
    relative_l2: float
    largest: float
    limit: float
    cosine: float = 1.0
    argmax: float | None = None
    not_finite: int = 0
    worst_row: float = 0.0

    @property
    def within(self) -> bool:
        """Whether the output is trusted."""
        return self.relative_l2 <= self.limit and self.worst_row <= ROW_LIMIT * self.limit

    def __str__(self) -> str:
        if self.relative_l2 <= self.limit < self.worst_row:
            sign = "≤" if self.within else ">"
            what = f"relative difference of a row, in some place of a batch, {self.worst_row:.2g}"
            return f"output '{self.output}': {what} {sign} {ROW_LIMIT * self.limit:.2g}"
        sign = "≤" if self.relative_l2 <= self.limit else ">"
        places = f", NaN or infinity in {self.not_finite} places" if self.not_finite else ""
        return f"output '{self.output}': relative difference {self.relative_l2:.2g} {sign} {self.limit:.2g}{places}"


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
        _compared(spec.name, np.asarray(wanted), np.asarray(got), limit)
        for wanted, got, spec in zip(expected, actual, outputs, strict=True)
    ]


@_quietly
def _compared(name: str, wanted: Array, got: Array, limit: float) -> Difference:
    relative, largest = difference(wanted, got)
    if wanted.shape != got.shape or wanted.size == 0 or wanted.dtype.kind in "biu":
        return Difference(name, relative, largest, limit)
    unlike = np.isfinite(wanted) != np.isfinite(got)
    argmax = None
    if wanted.ndim > 1 and wanted.shape[-1] > 1:
        argmax = float(np.mean(wanted.argmax(axis=-1) == got.argmax(axis=-1)))
    return Difference(name, relative, largest, limit, _cosine(wanted, got), argmax, int(unlike.sum()))


def _cosine(wanted: Array, got: Array) -> float:
    one, other = wanted.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(other)):
        return 0.0
    one, other = one[finite], other[finite]
    sizes = float(np.linalg.norm(one)), float(np.linalg.norm(other))
    return float(one @ other) / (sizes[0] * sizes[1]) if all(sizes) else float(sizes[0] == sizes[1])


@_quietly
def usual_size(rows: Array) -> float:
    """Return the size that a row usually has: the median, which one huge row does not move, of all that are not 0."""
    sizes = [_size(row) for row in rows]
    return float(np.median([size for size in sizes if size] or [0.0]))


def _size(row: Array) -> float:
    return float(np.linalg.norm(np.nan_to_num(row.astype(np.float64), posinf=0.0, neginf=0.0)))


@_quietly
def worst_row(wanted: Array, got: Array, order: Sequence[int], usual: float | None = None) -> float:
    """Return the largest relative difference of a row, wherever it stands in a batch.

    Args:
        wanted: Keras's answers, one for each row.
        got: an engine's answers for a batch of these rows.
        order: which row stands at which place of that batch.
        usual: the size that rows usually have. Defaults to `None`: that of these.

    Returns:
        ‖engine - Keras‖ / ‖Keras‖ of the worst row; a row that is smaller than the usual is measured by the usual one.
        Of integers and booleans, which rounding may change by a whole, the share that differs in all rows together.
    """
    if got.shape != (len(order), *wanted.shape[1:]):
        return np.inf
    if wanted.size == 0:
        return 0.0
    if wanted.dtype.kind in "biu":
        return float(np.mean(wanted[list(order)] != got))
    usual = usual_size(wanted) if usual is None else usual
    worst = 0.0
    for place, row in enumerate(order):
        here, there = wanted[row].astype(np.float64), got[place].astype(np.float64)
        finite = np.isfinite(here)
        if not np.array_equal(here[~finite], there[~finite], equal_nan=True) or not np.isfinite(there[finite]).all():
            return np.inf
        distance = float(np.linalg.norm(here[finite] - there[finite]))
        if distance:
            size = max(_size(wanted[row]), usual)
            worst = max(worst, distance / size if size else np.inf)
    return worst


@_quietly
def difference(wanted: Array, got: Array) -> tuple[float, float]:
    """Return the relative L2 difference and the largest absolute one; infinite where NaN or infinity differ."""
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


def rows_depend(predict: Predict, samples: Sequence[Array], *, alone: bool = True) -> bool:
    """Tell whether a model's answer for a row depends on the other rows of its batch.

    The rows are parted in two. The rows of each part are given to the source again, at the same places of a batch of
    the same size, but among copies of themselves in place of the others. Same place and size, so that the source does
    the same arithmetic: an independent row then answers to the bit, or nearly so where the source's kernels are not
    deterministic. Both parts, as what a batch takes from a single row, such as its maximum, stays where that row does.
    All rows are also moved by one place, and the first row is given alone, which shows a dependence on the place in a
    batch and on its size; there a row may be computed in another order, so that more is allowed.

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
    together = _row_by_row(predict, samples)
    if together is None:
        return True

    def differ(order: Sequence[int], noise: float, places: Iterable[int]) -> bool:
        others = _row_by_row(predict, [array[list(order)] for array in samples])
        if others is None:
            return True
        pairs = list(zip(together, others, strict=True))
        return any(_mixed(all_rows, order[place], other[place], noise) for place in places for all_rows, other in pairs)

    for part in _parts(rows):
        order = [place if place in part else part[place % len(part)] for place in range(rows)]
        if differ(order, 1e-6, part):
            return True
    if differ([(place - 1) % rows for place in range(rows)], 1e-4, range(rows)):
        return True
    if not alone:
        return False
    try:
        return differ([0], 1e-4, [0])
    except Exception:  # whatever a model's own code raises: it takes whole batches, and not one row of them
        return True


def _parts(rows: int) -> list[list[int]]:
    """Part rows so that neither neighbours nor, in a batch of a power of two, halves or quarters are in one part."""
    parts: list[list[int]] = [[], []]
    for row in range(rows):
        parts[row.bit_count() % 2].append(row)
    return [part for part in parts if part]


def _row_by_row(predict: Predict, inputs: Sequence[Array]) -> list[Array] | None:
    """Return the outputs for some rows, or `None` where one has not one row for each."""
    outputs = [np.asarray(output) for output in predict(inputs)]
    return outputs if all(output.shape[:1] == inputs[0].shape[:1] for output in outputs) else None


@_quietly
def _mixed(together: Array, row: int, other: Array, noise: float) -> bool:
    here, there = together[row].astype(np.float64), other.astype(np.float64)
    if here.shape != there.shape or not np.array_equal(np.isfinite(here), np.isfinite(there)):
        return True
    mixing = float(np.linalg.norm(np.nan_to_num(here - there)))
    allowed = noise * float(np.linalg.norm(np.nan_to_num(here)))
    if mixing <= allowed:
        return False
    spread = max(float(np.linalg.norm(np.nan_to_num(here - answer.astype(np.float64)))) for answer in together)
    return mixing > 1e-3 * spread + allowed


def random_samples(
    inputs: Sequence[TensorSpec],
    sizes: Mapping[str, Sequence[int]],
    rows: int,
    below: int | None,
    padding: Mapping[str, float],
) -> list[Array]:
    """Return seeded random inputs: standard normal floats, integers from 0, booleans of both kinds.

    Every other row ends in padding, where steps are masked.

    Args:
        inputs: what the model takes.
        sizes: by input name, the shape to use without its batch axis.
        rows: how many rows.
        below: integers are smaller than this; where it is `None` they are 0 and 1, and bytes go up to 255.
        padding: what masked steps hold, by the kind of numbers: "i", with no axis behind that of the steps, and "f",
            with one.
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
        if dtype.kind in padding and len(shape) == (3 if dtype.kind == "f" else 2):
            for row in range(1, rows, 2):
                samples[-1][row, max(1, row * shape[1] // rows) :] = padding[dtype.kind]
    return samples
