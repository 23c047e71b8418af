"""An engine that answers as a Keras model's `predict` does, and asks Keras where it cannot."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np

from .. import data
from .._warn import warn
from ..errors import FallbackWarning, InputError
from ..head import Head
from ..inputs import Array, is_arrays, standardize, standardize_out
from ..runtime import RowsDependError, Session, deliver
from ..source import own
from ..specs import Signature, flatten, pack

# These are arrays gone wrong: `standardize` says what of them, which no adapter of Keras could.
_NEVER_A_DATASET = (dict, list, tuple, str, bytes, int, float, complex, type(None))


class Predictor:
    """Runs a model's data through its engine with Keras's semantics. Safe to call from many threads.

    Args:
        source: the Keras model, or the `GraphSource` that stands for it.
        signature: inputs and outputs of its engine.
        session: runs its engine.
        head: what runs in front of the engine, if anything does.
    """

    def __init__(self, source: Any, signature: Signature, session: Session, head: Head | None = None) -> None:
        self._source = source
        self._instead = getattr(source, "title", "Keras")
        self._signature = signature if head is None else head.whole(signature)
        self._session = session
        self._head = head
        self._warned: set[str] = set()
        self._warn_lock = threading.Lock()

    @property
    def signature(self) -> Signature:
        """Inputs and outputs of the whole model."""
        return self._signature

    def predict(
        self, owner: Any, x: Any, batch_size: int | None, verbose: Any, steps: int | None, callbacks: Any
    ) -> Any:
        """Return what `keras.Model.predict` would; `owner` is the model that callbacks see."""
        steps = data.limited(steps)
        if not is_arrays(x) and not isinstance(x, _NEVER_A_DATASET):
            batches, count = data.keras_batches(x, batch_size, steps)
            standard = (standardize(batch, self._signature) for batch in batches)
            return self._each_batch(owner, standard, data.callback_list(owner, callbacks, verbose, count))
        inputs = standardize(x, self._signature)
        size = data.array_batch_size(len(inputs[0]), batch_size, steps)
        count = -(-len(inputs[0]) // size)
        if count == 0:
            return self._pack(self._run(inputs))
        watchers = data.callback_list(owner, callbacks, verbose, steps or count)
        if steps is not None:
            if steps > count:
                data.warn_ran_out()
            count = min(steps, count)
            inputs = [array[: steps * size] for array in inputs]
        if self._regroups and not callbacks:
            try:
                return self._pack(self._whole(inputs, size, watchers))
            except RowsDependError:
                pass  # what was not seen when the engine was made is known now
        cut = ([array[i * size : (i + 1) * size] for array in inputs] for i in range(count))
        return self._each_batch(owner, cut, watchers)

    def predict_on_batch(self, x: Any, out: Any = None) -> Any:
        """Return what `keras.Model.predict_on_batch` would; in `out`, where that is given."""
        inputs = standardize(x, self._signature)
        if out is None:
            return self._pack(self._run(inputs))
        self._run(inputs, out=standardize_out(out, self._signature.outputs, len(inputs[0])))
        return out

    @property
    def _regroups(self) -> bool:
        """Whether rows may be put into other batches than they came in."""
        return self._session.rows_independent and (self._head is None or self._head.rows_independent)

    @property
    def _steps_per_execution(self) -> int:
        """How many batches Keras runs between two calls of callbacks."""
        return getattr(self._source, "steps_per_execution", None) or 1

    def takes_the_place_of(self, other: Predictor) -> None:
        """Warn of nothing that another one has warned of, whose model is the same but for the values of weights."""
        self._warned = other._warned

    def warn_once(self, kind: str, message: str) -> None:
        """Warn that something runs otherwise than asked, the first time that this kind of thing does."""
        with self._warn_lock:
            if kind in self._warned:
                return
            self._warned.add(kind)
        warn(message, FallbackWarning)

    def _whole(self, inputs: Sequence[Array], size: int, watchers: Any) -> list[Any]:
        """Run independent rows in the engine's own batches; the progress bar still counts the user's."""
        if watchers is not None:
            watchers.on_predict_begin()
        shown = 0

        def progress(done: int) -> None:
            nonlocal shown
            finished = -(-done // size) if done == len(inputs[0]) else done // size
            for step in range(shown, finished):
                watchers.on_predict_batch_begin(step)
                watchers.on_predict_batch_end(step)
            shown = finished

        outputs = self._answers(inputs, None if watchers is None else progress)
        if not self._regroups:
            raise RowsDependError("Another thread has seen it.")
        if watchers is not None:
            watchers.on_predict_end()
        return outputs

    def _each_batch(self, owner: Any, batches: Iterable[Sequence[Array]], watchers: Any) -> Any:
        """Run batches as they come, and join their outputs as Keras does."""
        parts: list[list[Any]] = [[] for _ in self._signature.outputs]
        owner.stop_predicting = False
        if watchers is not None:
            watchers.on_predict_begin()
        step, remaining = 0, iter(batches)
        while group := list(islice(remaining, self._steps_per_execution)):
            if watchers is not None:
                watchers.on_predict_batch_begin(step)
            step += self._steps_per_execution
            done = [self._run(batch) for batch in group]
            for part, *outputs in zip(parts, *done, strict=True):
                part += outputs
            if watchers is not None:
                joined = [data.concatenate(list(outputs)) for outputs in zip(*done, strict=True)]
                watchers.on_predict_batch_end(step - 1, {"outputs": self._pack(joined)})
            if owner.stop_predicting:
                break
        if watchers is not None:
            watchers.on_predict_end()
        if not parts[0]:
            raise ValueError("The data has no batch to predict. It must give at least one.")
        return self._pack([data.concatenate(part) for part in parts])

    def _run(self, inputs: Sequence[Array], out: Sequence[Any] | None = None) -> list[Any]:
        """Return flat outputs for one batch of the user's: from the engine, or from Keras where it cannot."""
        try:
            return self._answers(inputs, out=out)
        except RowsDependError:
            return self._answers(inputs, out=out)  # as one batch, from now on

    def _answers(
        self,
        inputs: Sequence[Array],
        progress: Callable[[int], None] | None = None,
        out: Sequence[Any] | None = None,
    ) -> list[Any]:
        """Return flat outputs for standardized inputs: from the engine, or from Keras where it cannot.

        Raises:
            RowsDependError: once, where the rows are seen to depend on each other.
            InputError: if Keras alone could run them, and there is no Keras model.
        """
        if len(inputs[0]) == 0:
            return self._nothing(inputs)
        if self._head is not None and self._regroups and len(inputs[0]) > (largest := self._session.profile.batch[2]):
            parts = self._in_parts(inputs, largest, progress)
            return parts if out is None else deliver(parts, out)
        ready = inputs if self._head is None else self._head(inputs)
        objection = self._session.takes(ready)
        if objection is None:
            return list(self._session.run(ready, progress, out))
        if objection.other_type is not None and self._instead != "Keras":
            raise InputError(
                f"'{self._source.name}' cannot run this batch: {objection.text}. There is no Keras model to run it.",
                input_name=objection.other_type,
                expected={spec.name: spec.dtype for spec in self._signature.inputs},
                received={
                    spec.name: str(array.dtype) for spec, array in zip(self._signature.inputs, inputs, strict=True)
                },
            )
        self.warn_once(objection.kind, f"{self._instead} runs a batch that the engine cannot: {objection.text}.")
        outputs = self._by_keras(inputs)
        if progress is not None:
            progress(len(inputs[0]))
        return outputs if out is None else deliver([np.asarray(output) for output in outputs], out)

    def _in_parts(self, inputs: Sequence[Array], size: int, progress: Callable[[int], None] | None) -> list[Any]:
        """Run as many rows at a time as the engine takes: what the head gives for all rows may not fit into memory."""
        parts = []
        for start in range(0, len(inputs[0]), size):
            parts.append(self._answers([array[start : start + size] for array in inputs]))
            if progress is not None:
                progress(min(start + size, len(inputs[0])))
        return [data.concatenate(list(part)) for part in zip(*parts, strict=True)]

    def _nothing(self, inputs: Sequence[Array]) -> list[Any]:
        """Return the outputs for no rows: no engine runs an empty batch."""
        outputs = self._signature.outputs
        if not self._session.rows_independent or any(axis is None for spec in outputs for axis in spec.shape[1:]):
            return self._by_keras(inputs)
        return [np.empty((0, *(axis or 0 for axis in spec.shape[1:])), spec.dtype) for spec in outputs]

    def _by_keras(self, inputs: Sequence[Array]) -> list[Any]:
        on_host = [np.asarray(array) for array in inputs]
        return flatten(own(self._source, "predict_on_batch")(pack(self._signature.input_structure, on_host)))

    def _pack(self, outputs: Sequence[Any]) -> Any:
        return pack(self._signature.output_structure, outputs)
