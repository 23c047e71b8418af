"""One call of a drop-in, which holds its engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .evaluation import Evaluator
from .face import ClosedError
from .predictor import Predictor

if TYPE_CHECKING:
    from .trt_model import TRTModel


class Call:
    """One call of a drop-in, which holds its engine: a class, as a generator costs more at each call than it does."""

    __slots__ = ("_model", "_use")

    def __init__(self, model: TRTModel) -> None:
        self._model = model

    def __enter__(self) -> tuple[Predictor | None, Evaluator | None]:
        model, self._use = self._model, None
        model._check_process()  # before the lock, which another thread may have held when this process was forked
        try:
            with model._changing:
                if model._closed:
                    raise ClosedError(model)
                following = model._following
                runs = following is None or following.may_run(model)  # which may put another engine in place
                session = model._session
                if session is None or not runs:
                    return None, None
                self._use = session.in_use()
                self._use.__enter__()
                return model._predictor, model._evaluator
        except BaseException:
            self.__exit__()  # Ctrl-C may have come after the engine was held
            raise

    def __exit__(self, *exception: object) -> None:
        if self._use is not None:
            self._use.__exit__()
