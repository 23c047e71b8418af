"""`compile_trt` and `uncompile_trt` on every Keras model, without importing Keras: now, or as soon as someone does."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ..model.trt_model import TRTModel
    from ..options import BuildOptions

_HOME = "keras.src.models.model"  # of `Model`, in every Keras 3


def compile_trt(  # noqa: D417 (`self` is the model)
    self: Any,
    *,
    on_weight_change: Literal["refit", "rebuild", "keras", "raise"] = "refit",
    check_weights: Literal["writes", "content"] = "writes",
    options: BuildOptions | None = None,
    **keywords: Any,
) -> TRTModel:
    """Let this model's `predict`, `predict_on_batch`, `evaluate` and `test_on_batch` run on TensorRT.

    The engine is built, verified and cached as by `keras_trt.accelerate`, and follows the weights: after training,
    `set_weights`, `load_weights` or an assignment, the next call notices. Saving, cloning and pickling the model,
    its configuration and its training are as before; validation inside `fit` is Keras's.

    A second call takes the place of the first. If it fails, the first stays.

    Args:
        on_weight_change: what the next call does once the weights have changed: `"refit"` puts them into the engine,
            or builds another where that is not possible; `"rebuild"` builds another; `"keras"` runs Keras until the
            weights are those of the engine again; `"raise"` raises. Defaults to `"refit"`.
        check_weights: `"writes"` looks at what says that weights were written; `"content"` compares all weights at
            every call, which also finds what a `tf.function` writes into single variables. Defaults to `"writes"`.
        options: a `keras_trt.BuildOptions`. Defaults to `None`: its defaults.
        **keywords: fields of `keras_trt.BuildOptions`, put over `options`.

    Returns:
        The `TRTModel`. As a context manager it ends what this call began; so do its `close` and `uncompile_trt`.

    Raises:
        TypeError, ValueError: for an unknown option or value.
        StaleEngineError: from a later call, with `on_weight_change="raise"`.
        KerasTRTError: as `keras_trt.accelerate`.

    Example:
    >>> model.compile_trt(precision="fp16")
    >>> model.predict(images)
    """
    from ..options import BuildOptions
    from .attach import attach

    return attach(self, BuildOptions.of(options, keywords), on_weight_change, check_weights)


def uncompile_trt(self: Any) -> None:
    """Give this model's own `predict` and `evaluate` back, and free the engine that `compile_trt` made.

    Does nothing to a model without one.

    Example:
    >>> model.uncompile_trt()
    """
    from .attach import detach

    detach(self)


def install() -> None:
    """Put both on `keras.Model` now if it is there, and else when it is imported."""
    module = sys.modules.get(_HOME)
    if hasattr(module, "Model"):
        _put_on(module)
    elif not any(isinstance(finder, _AfterKeras) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterKeras())


def _put_on(module: Any) -> None:
    module.Model.compile_trt, module.Model.uncompile_trt = compile_trt, uncompile_trt


class _AfterKeras:
    """A finder that finds nothing itself: it lets the others find Keras's module, and acts once that has run."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != _HOME:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        loader: Any = spec.loader if spec is not None else None
        if hasattr(loader, "exec_module"):
            run = loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                _put_on(module)

            loader.exec_module = exec_module
        return spec
