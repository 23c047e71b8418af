"""The gate before an engine is used: `verify`'s comparisons, on a model's own rows or on random ones."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from .. import policies, source
from ..errors import InputError, KerasTRTError, VerificationError
from ..head import Head
from ..inputs import Array, standardize
from ..options import BuildOptions, Precision
from ..reference import Reference, reference, under_its_policy
from ..runtime import RowsDependError, Session
from ..specs import ShapeRange, Signature
from . import verify
from .verify import Difference

_logger = logging.getLogger("keras_trt")

_SAMPLE_ROWS = 4


def user_sample(
    options: BuildOptions, takes: Signature, otherwise: Sequence[Array] | None = None
) -> list[Array] | None:
    """Return the flat rows of `options.sample`, or as many of `otherwise` where there are none.

    Raises:
        InputError: if they do not fit the model, or there are too few.
    """
    if options.sample is None and otherwise is None:
        return None
    sample = _finite(otherwise or ()) if options.sample is None else standardize(options.sample, takes)
    fixed, received = _fixed_batch(takes), len(sample[0])
    if received < (fixed or 1):
        raise InputError(
            f"`sample` needs at least {fixed or 1} rows. Received: {received}.", expected=fixed or 1, received=received
        )
    optimum = options.batch_sizes[1] if options.profiles is None else options.profiles.batch[1]
    rows = fixed or max(_SAMPLE_ROWS, optimum)
    return [np.asarray(array[:rows]) for array in sample]  # rows that lie on a GPU too


def _finite(rows: Sequence[Array]) -> list[Array]:
    """Return the rows without NaN and infinity, which hardly any model answers with numbers; all where there are none.

    What is wrong with them is nothing that engines in other precisions are to be blamed for.
    """
    good = np.ones(len(rows[0]), bool)
    for array in rows:
        if array.dtype.kind == "f":
            good &= np.isfinite(array).reshape(len(array), -1).all(axis=1)
    return [array[good] for array in rows] if good.any() else list(rows)


def _fixed_batch(takes: Signature) -> int | None:
    return next((spec.shape[0] for spec in takes.inputs if spec.shape[0] is not None), None)


class Gate:
    """Compares engines of one model with the model itself.

    Args:
        model: a built `keras.Model`.
        takes: its inputs.
        ranges: the shapes that engines are built for, one for each input.
        sample: the user's rows, or `None` for seeded random ones.
        head: runs in front of `model`, the tail; `sample` is then what the head takes.
        structure: the structure key of `model`, under which its graph is kept for the next gate. Defaults to `None`:
            it is not.
    """

    def __init__(
        self,
        model: Any,
        takes: Signature,
        ranges: Sequence[ShapeRange],
        sample: Sequence[Array] | None,
        head: Head | None = None,
        structure: str | None = None,
    ) -> None:
        self._model = model
        self._answers = Reference(model, structure)
        self._takes = takes
        self._ranges = ranges
        self._sample = sample
        self._head = head if sample is not None else None

    def rows_depend(self, signature: Signature) -> bool:
        """Tell whether the model's rows depend on each other.

        Random rows are tested beside the user's: equal rows, or a single one, would hide it.

        Raises:
            VerificationError: if the model fails on random inputs and the user gave none.
        """
        fixed = _fixed_batch(self._takes) is not None

        def depend(rows: Sequence[Array]) -> bool:
            return verify.rows_depend(partial(self._answers, signature), rows, alone=not fixed)

        try:
            # Some at once, though an engine may take one: what Keras gives them is what counts.
            if depend(self._random()):
                return True
        except Exception as error:  # a model's own code may refuse random inputs in any way
            if self._sample is None:
                raise VerificationError(
                    f"The model fails on random inputs ({type(error).__name__}: {error}). Pass a batch of real ones, "
                    "`sample=`, to verify the engine with."
                ) from error
            _logger.info("Batches are run as they come, since the model fails on random inputs: %s", error)
            return True
        if self._sample is None:
            return False
        with _failures("The model fails on the sample"):
            return depend(self._through_head(self._sample))

    @property
    def is_other_in_a_graph(self) -> bool:
        """Whether the model, for what it was asked so far, answers otherwise where it is traced."""
        return self._answers.is_other_in_a_graph

    def ensure_answers(self, signature: Signature, *, independent: bool) -> None:
        """Refuse rows that prove nothing: all that is nothing is equal, and NaN is equal to NaN.

        Args:
            signature: inputs and outputs of the model.
            independent: whether its rows are; outputs whose sizes depend on the data are of those that are not.

        Raises:
            VerificationError: if the model leaves an output empty for them, or has no number in it.
        """
        with _failures("The model fails on the sample"):
            answers = self._expected(signature, self._sample if self._sample is not None else self._random())
        found = list(zip((spec.name for spec in signature.outputs), answers, strict=True))
        empty = [] if independent else [name for name, one in found if not one.size]
        odd = [name for name, one in found if one.size and not np.isfinite(one).any()]
        if empty or odd:
            raise VerificationError(
                f"The model answers {'random rows' if self._sample is None else 'the sample'} with nothing "
                f"{'' if empty else 'but NaN or infinity '}in {', '.join(map(repr, empty or odd))}, so that no engine "
                "can be compared with it. Pass rows, `sample=`, that it answers with something."
            )

    def ensure_same_in_float32(self, signature: Signature) -> None:
        """Refuse a model that answers otherwise in float32, as it is exported and compared, than under its policies.

        What half precision rounds off is no matter, nor where it overflows. A model that fails under its own policies,
        as where a device lacks an operator in half, has no answers of its own to differ from.

        Raises:
            VerificationError: if an output differs.
        """
        model = self._model if self._head is None else self._head.model
        if not (types := policies.half_types(model)):
            return
        given = self._sample if self._sample is not None else self._random()
        rows = [array[: self._usual_rows()] for array in given]
        whole = signature if self._head is None else self._head.whole(signature)
        try:
            own = under_its_policy(model, whole, rows)
        except Exception as error:
            _logger.info("'%s' fails under its dtype policies, and is not compared with itself: %s", model.name, error)
            return
        with _failures("The model fails on the sample"):
            full = self._expected(signature, rows)
        own = [np.where(np.isfinite(one), one, other) for one, other in zip(own, full, strict=True)]
        # As far as a single row of an engine in that type may be: there are but few.
        limit = verify.ROW_LIMIT * verify.LIMITS["bf16" if "bfloat16" in types else "fp16"]
        if bad := [str(one) for one in verify.compare(own, full, whole.outputs, limit) if not one.within]:
            raise VerificationError(
                f"'{model.name}' answers otherwise in float32 than under its dtype policies: {'; '.join(bad)}"
            )

    def check(self, session: Session, signature: Signature, precision: Precision) -> tuple[Difference, ...]:
        """Compare an engine with Keras, on the whole sample and on one row of it, in the way that production runs.

        Where rows do not depend on each other, they are then put into other places of other batches: of the optimum
        and the largest size, and into a tail of one row. Without a GPU, whose kernels differ by size, they only change
        places.

        With a head, on a sample, it is the whole model whose answers count, and the head runs in front of the engine.

        Returns:
            The largest difference of each output.

        Raises:
            VerificationError: if one is above the limit of the precision.
        """
        rows = self._compared(session)
        count = len(rows[0])
        alone = [] if _fixed_batch(self._takes) is not None or count == 1 else [[array[:1] for array in rows]]
        worst: list[Difference] = []
        answers: list[Array] = []
        for given in [rows, *alone]:
            some = self._through_head(given)
            if session.takes(some) is not None:
                continue
            try:
                expected = self._expected(signature, given)
            except Exception as error:  # a model's own code
                if worst:
                    continue  # a model that takes whole batches, and not one row of them
                raise VerificationError(f"The model fails on the sample ({type(error).__name__}: {error})") from error
            answers = answers or expected
            # On a GPU the second run of a shape records a graph, and the third and all later ones launch it.
            for _ in range(3 if session.keeps_state else 1):
                with _failures("The engine fails on the sample", InputError):
                    actual = session.run(some)
                if (shapes := [one.shape for one in actual]) != [one.shape for one in expected]:
                    instead = f"{[one.shape for one in expected]} for {len(given[0])} rows"
                    raise _other_shapes(f"Outputs of shapes {shapes} instead of {instead}")
                found = _by_rows(expected, actual, answers, len(given[0]))
                if expected is answers:
                    whole = verify.compare(expected, actual, signature.outputs, verify.LIMITS[precision])
                    worst = [
                        max(pair, key=lambda one: one.relative_l2) for pair in zip(worst or whole, whole, strict=True)
                    ]
                worst = _with_rows(worst, found)
        if not worst:
            raise VerificationError(
                f"The sample has {count} rows, and the engine takes none such: give another `sample`."
            )
        if session.rows_independent:
            worst = self._in_other_places(session, answers, worst)
        if bad := [str(one) for one in worst if not one.within]:
            raise VerificationError(f"the engine differs from Keras: {'; '.join(bad)}")
        return tuple(worst)

    def _in_other_places(
        self, session: Session, answers: Sequence[Array], found: Sequence[Difference]
    ) -> list[Difference]:
        """Return the differences with the worst row of each output, in any place of batches of other sizes."""
        rows, worst = self.rows(session), list(found)
        count = len(rows[0])
        _, optimum, largest = session.profile.batch
        for size in (optimum, largest + 1) if session.keeps_state else (count,):
            order = [(place + 1) % count for place in range(size)]
            for _ in range(3 if session.keeps_state else 1):  # as in `check`
                with _failures("The engine fails on the sample", InputError):
                    got = session.run([array[order] for array in rows])
                worst = _with_rows(worst, [verify.worst_row(*pair, order) for pair in zip(answers, got, strict=True)])
        return worst

    def rows(self, session: Session | None = None) -> list[Array]:
        """Return the rows that engines are compared on, as an engine takes them: this one, or any."""
        return list(self._through_head(self._compared(session)))

    def _compared(self, session: Session | None) -> Sequence[Array]:
        rows = self._sample if self._sample is not None else self._random()
        if session is None or session.rows_independent:
            return rows
        return [array[: session.profile.batch[2]] for array in rows]  # whole batches only

    def _through_head(self, rows: Sequence[Array]) -> Sequence[Array]:
        return rows if self._head is None else self._head(rows)

    def _expected(self, signature: Signature, rows: Sequence[Array]) -> list[Array]:
        if self._head is None:
            return self._answers(signature, rows)
        return reference(self._head.model, self._head.whole(signature), rows)

    def _random(self) -> list[Array]:
        inputs = self._takes.inputs
        sizes = {spec.name: shapes.opt[1:] for spec, shapes in zip(inputs, self._ranges, strict=True)}
        limit, padding = source.integer_limit(self._model), source.padding(self._model)
        return verify.random_samples(inputs, sizes, self._usual_rows(), limit, padding)

    def _usual_rows(self) -> int:
        return _fixed_batch(self._takes) or max(_SAMPLE_ROWS, self._ranges[0].min[0])


def _by_rows(expected: Sequence[Array], actual: Sequence[Array], usual: Sequence[Array], count: int) -> list[float]:
    """Return the worst row of each output that has rows; the usual size of a row is that of other ones."""
    return [
        verify.worst_row(wanted, got, range(count), verify.usual_size(others))
        if wanted.ndim and len(wanted) == count
        else verify.difference(wanted, got)[0]
        for wanted, got, others in zip(expected, actual, usual, strict=True)
    ]


def _with_rows(found: Sequence[Difference], rows: Sequence[float]) -> list[Difference]:
    return [replace(one, worst_row=max(one.worst_row, row)) for one, row in zip(found, rows, strict=True)]


def _other_shapes(what: object) -> VerificationError:
    return VerificationError(
        f"the engine differs from Keras: {what}. The number of rows is `None` in `x.shape` where a graph is traced, as "
        "other open sizes are; `keras.ops.shape(x)` has them."
    )


@contextmanager
def _failures(what: str, *ours: type[KerasTRTError]) -> Iterator[None]:
    """Make a `VerificationError` of what a model's own code or a backend raises; of ours those that are named."""
    try:
        yield
    except RowsDependError as error:  # those of the model do not
        raise _other_shapes(error) from error
    except Exception as error:
        if isinstance(error, KerasTRTError) and not isinstance(error, ours):
            raise
        # TensorFlow's are in colours, over many lines.
        said = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
        raise VerificationError(f"{what} ({type(error).__name__}: {said})") from error
