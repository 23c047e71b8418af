"""The gate before an engine is used: `verify`'s comparisons, on a model's own rows or on random ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from . import source, verify
from .errors import InputError, VerificationError
from .inputs import Array, standardize
from .options import BuildOptions, Precision
from .runtime import Session
from .specs import ShapeRange, Signature
from .verify import Difference

_logger = logging.getLogger("keras_trt")

_SAMPLE_ROWS = 4


def user_sample(options: BuildOptions, takes: Signature) -> list[Array] | None:
    """Return the flat rows of `options.sample`, or `None` where there are none.

    Raises:
        InputError: if they do not fit the model, or there is no row in them.
    """
    if options.sample is None:
        return None
    rows = takes.inputs[0].shape[0] or max(_SAMPLE_ROWS, options.batch_sizes[1])
    sample = [array[:rows] for array in standardize(options.sample, takes)]
    if len(sample[0]) == 0:
        raise InputError("`sample` needs at least one row. Received: no rows.", expected="1 or more", received=0)
    return sample


class Gate:
    """Compares engines of one model with the model itself.

    Args:
        model: a built `keras.Model`.
        takes: its inputs.
        ranges: the shapes that engines are built for, one for each input.
        sample: the user's rows, or `None` for seeded random ones.
    """

    def __init__(
        self, model: Any, takes: Signature, ranges: Sequence[ShapeRange], sample: Sequence[Array] | None
    ) -> None:
        self._model = model
        self._takes = takes
        self._ranges = ranges
        self._sample = sample

    def rows_depend(self, signature: Signature) -> bool:
        """Tell whether the model's rows depend on each other.

        Random rows are tested beside the user's: equal rows, or a single one, would hide it.

        Raises:
            VerificationError: if the model fails on random inputs and the user gave none.
        """
        fixed = signature.inputs[0].shape[0] is not None

        def depend(rows: Sequence[Array]) -> bool:
            return verify.rows_depend(
                lambda inputs: source.reference(self._model, signature, inputs), rows, alone=not fixed
            )

        try:
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
        return self._sample is not None and depend(self._sample)

    def check(self, session: Session, signature: Signature, precision: Precision) -> tuple[Difference, ...]:
        """Compare an engine with Keras, on the whole sample and on one row of it, in the way that production runs.

        Returns:
            The largest difference of each output.

        Raises:
            VerificationError: if one is above the limit of the precision.
        """
        rows = self._sample if self._sample is not None else self._random()
        worst: list[Difference] = []
        for some in (rows, [array[:1] for array in rows]):
            if session.takes(some) is not None:
                continue
            expected = source.reference(self._model, signature, some)
            # On a GPU the second run of a shape records a graph, and the third and all later ones launch it.
            for _ in range(3 if session.keeps_state else 1):
                found = verify.compare(expected, session.run(some), signature.outputs, verify.LIMITS[precision])
                pairs = zip(worst or found, found, strict=True)
                worst = [max(pair, key=lambda one: one.relative_l2) for pair in pairs]
        if not worst:
            raise VerificationError(
                f"The sample has {len(rows[0])} rows, and the engine takes none such: give another `sample`."
            )
        if bad := [str(one) for one in worst if not one.within]:
            raise VerificationError(f"the engine differs from Keras: {'; '.join(bad)}")
        return tuple(worst)

    def _random(self) -> list[Array]:
        inputs = self._takes.inputs
        sizes = {spec.name: shapes.opt[1:] for spec, shapes in zip(inputs, self._ranges, strict=True)}
        rows = inputs[0].shape[0] or _SAMPLE_ROWS
        return verify.random_samples(inputs, sizes, rows, source.integer_limit(self._model))
