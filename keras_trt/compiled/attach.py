"""What `model.compile_trt()` does: a model's own `predict` and `evaluate` run on an engine that follows its weights."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

from ..api import accelerate
from ..errors import StaleEngineError
from ..model.face import ClosedError
from ..model.trt_model import TRTModel
from ..options import BuildOptions
from ..source import ON_ENGINE, TESTS, own, placed
from .watch import Change, Watch

OnWeightChange = Literal["refit", "rebuild", "keras", "raise"]
CheckWeights = Literal["writes", "content"]

_logger = logging.getLogger("keras_trt")


def attach(
    model: Any, options: BuildOptions, on_weight_change: OnWeightChange, check_weights: CheckWeights
) -> TRTModel:
    """See `keras.Model.compile_trt`."""
    fast = follow(model, options, on_weight_change, check_weights)
    detach(model)  # only now: had it failed, an earlier engine would still be there
    methods = {method: _on_engine(model, fast, method) for method in ON_ENGINE}
    cast(_Following, fast._following).methods = methods
    vars(model).update(methods)  # not by setattr, which would make Keras and TensorFlow track them
    return fast


def follow(
    model: Any,
    options: BuildOptions,
    on_weight_change: OnWeightChange = "refit",
    check_weights: CheckWeights = "writes",
) -> TRTModel:
    """Return a drop-in that follows its model. The model's own methods stay as they are.

    Args:
        model: a `keras.Model`.
        options: as for `accelerate`.
        on_weight_change: what a call does when the model has changed since the last.
        check_weights: how that is noticed.

    Raises:
        ValueError: for a value that is not allowed, and for data that can be read but once where engines are made
            again.
        KerasTRTError: as `accelerate`.
    """
    for name, value, allowed in (
        ("on_weight_change", on_weight_change, get_args(OnWeightChange)),
        ("check_weights", check_weights, get_args(CheckWeights)),
    ):
        if value not in allowed:
            raise ValueError(f"`{name}` is one of {', '.join(map(repr, allowed))}. Received: {name}={value!r}")
    if on_weight_change in ("refit", "rebuild"):
        options.ensure_repeatable()
    # Watched from before the engine is made: what is written meanwhile is noticed.
    watch = Watch(model, check_weights, options.sample) if model.built else None
    try:
        fast = accelerate(model, options=options)
    except BaseException:
        if watch is not None:
            watch.close()
        raise
    if watch is None and fast.backend != "keras":
        watch = Watch(model, check_weights, options.sample)  # it was built by the sample
    fast._following = _Following(model, options, on_weight_change, watch)
    return fast


def detach(model: Any) -> None:
    """See `keras.Model.uncompile_trt`."""
    fast = getattr(vars(model).get(ON_ENGINE[0]), "of", None)
    if fast is not None:
        fast.close()


def _on_engine(model: Any, fast: TRTModel, method: str) -> Any:
    by_keras = own(model, method)
    # A class may have an `evaluate` of its own, which takes what it likes.
    by_engine = functools.partial(fast._test, method) if method in TESTS else getattr(fast, method)

    @functools.wraps(by_keras)
    def run(*arguments: Any, **keywords: Any) -> Any:
        # Validation inside `fit` is part of the training, for weights that live for one epoch (see EngineValidation).
        if "_use_cached_eval_dataset" in keywords:
            return by_keras(*arguments, **keywords)
        try:
            return by_engine(*arguments, **keywords)
        except ClosedError as error:
            if error.closed is not fast:
                raise
            # Another thread has since called `compile_trt` or `uncompile_trt`: what is there now answers.
            now = getattr(model, method)
            return (by_keras if now is run else now)(*arguments, **keywords)

    vars(run).update(in_place_of=placed(model, method), of=fast)
    return run


class _Following:
    """See `keras_trt.model.Following`."""

    def __init__(
        self,
        model: Any,
        options: BuildOptions,
        policy: OnWeightChange,
        watch: Watch | None,
    ) -> None:
        self._model, self._options, self._policy, self._watch = model, options, policy, watch
        self._had_engine = False
        self.methods: Mapping[str, Any] = {}  # that stand in front of the model's own

    def may_run(self, fast: TRTModel) -> bool:
        self._had_engine |= fast.backend != "keras"
        if self._watch is None or (change := self._watch.change()) is None:
            return True
        if fast.backend == "keras":
            # Other weights mend a build that failed for them, but no model that never had an engine.
            again = change == "structure" or self._had_engine
            if not again or self._policy not in ("refit", "rebuild"):
                return True
        what = f"The {change} of '{self._model.name}' changed after its engine was built"
        if self._policy == "raise":
            raise StaleEngineError(
                f'{what}. Call compile_trt again, or choose on_weight_change="refit", "rebuild" or "keras".'
            )
        if self._policy == "keras":
            return False
        try:
            self._watch.settle()  # first: what is written while the engine is made is noticed
            renew(fast, self._model, self._options, change, refit=self._policy == "refit")
        except BaseException:
            self._watch.distrust()
            raise
        return True

    def end(self) -> None:
        if self._watch is not None:
            self._watch.close()
        for name, method in self.methods.items():
            if vars(self._model).get(name) is method:  # else another has been put in front
                del vars(self._model)[name]
                if method.in_place_of is not None:
                    vars(self._model)[name] = method.in_place_of


def renew(fast: TRTModel, model: Any, options: BuildOptions, change: Change, *, refit: bool) -> None:
    """Put an engine of the model as it is now in the place of an older one.

    Args:
        fast: what runs the older engine.
        model: the Keras model.
        options: what the engine was asked for with.
        change: what of the model has changed.
        refit: whether new weights may be put into the engine that is there.
    """
    if refit and change == "weights":
        _logger.info("The weights of '%s' changed: its engine is refitted if it can be, else built anew.", model.name)
    other = accelerate(model, options=options)  # finds the engine to refit in the cache
    fast._adopt(other, same_structure=change == "weights")
