"""Keras's own `evaluate` and `test_on_batch`, with an engine for the forward pass."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any

from ..source import own, placed
from ..specs import Signature, describe, flatten, pack
from .predictor import Predictor

#: What a test function is traced for; another loss, other metrics or another way of running need another one.
_TRACED_FOR = ("_compile_loss", "_compile_metrics", "_loss_tracker", "run_eagerly", "steps_per_execution")
#: What an `evaluate` of the model's own may call that is no part of Keras's: it would keep on the model what it traces.
_OF_THE_MODEL = ("predict", "predict_on_batch", "fit", "train_on_batch")


class Evaluator:
    """Evaluates a compiled Keras model on an engine.

    Keras's trainer does all of it (data, loss, metrics, weights, callbacks, the progress bar, and a user's own
    `test_step`), on a stand-in for the model that differs from it in one thing: calling it runs the engine.

    Losses and metrics are those of the Keras model, which hold their state, so that one evaluation runs at a time.

    Args:
        source: the Keras model.
        signature: inputs and outputs of its engines.
    """

    def __init__(self, source: Any, signature: Signature) -> None:
        self._stand_in: Any = None  # until it is needed
        self._source, self.signature = source, signature
        self._one_at_a_time = threading.RLock()
        self._only_keras: list[str] | None = None

    def run(self, method: str, predictor: Predictor, /, *arguments: Any, **keywords: Any) -> Any:
        """Return what a method of the Keras model would, `evaluate` or `test_on_batch`, with an engine's outputs."""
        with self._one_at_a_time:
            if self._only_keras is None:
                self._only_keras = list(only_keras_evaluates(self._source, self.signature))
            for why in self._only_keras:
                predictor.warn_once("evaluate", f"Keras evaluates '{self._source.name}' itself: {why}.")
                return own(self._source, method)(*arguments, **keywords)
            self._stand_in = self._stand_in or _stand_in(self._source, self.signature)
            around = self._stand_in.on(predictor)  # a callback of one evaluation may begin another
            try:
                return getattr(self._stand_in, method)(*arguments, **keywords)
            except Exception:
                if failures := self._stand_in.failures:  # TensorFlow makes an error of its own of the engine's
                    raise failures[0] from None
                raise
            finally:
                self._stand_in.on(around)


def only_keras_evaluates(model: Any, signature: Signature) -> Iterator[str]:
    """Yield why the loss of a model needs more of its forward pass than the outputs, which is all an engine gives.

    The model is traced once to see it.

    Args:
        model: a built `keras.Model`.
        signature: its inputs.
    """
    import keras
    from keras.src.backend import get_keras_mask  # public in no version

    if (backend := keras.config.backend()) != "tensorflow":
        yield f"its trainer runs on {backend!r}, which takes no engine into its steps"
        return
    import tensorflow as tf

    keywords = {"training": False} if model._call_has_training_arg else {}
    found = []

    def call(*tensors: Any) -> None:
        outputs = model(pack(signature.input_structure, tensors), **keywords)
        if any(get_keras_mask(output) is not None for output in flatten(outputs)):
            found.append("its outputs carry a mask, which its loss leaves steps out by")
        if any(layer._losses for layer in model._flatten_layers()):
            found.append("its layers add to the loss when they run (`add_loss`, `activity_regularizer`)")

    try:
        specs = [tf.TensorSpec(spec.shape, spec.dtype) for spec in signature.inputs]
        tf.function(call, autograph=False).get_concrete_function(*specs)
    finally:
        model._clear_losses()
    yield from found


def _stand_in(source: Any, signature: Signature) -> Any:
    """Return an object that is `source` to Keras's trainer, but whose call runs an engine."""
    import tensorflow as tf

    own = ("stop_evaluating", "test_function")
    specs = signature.outputs

    class StandIn:
        # For `super()` in the methods of the model's class that run on this object.
        __class__ = property(lambda _: type(source))

        def __init__(self) -> None:
            self.__dict__.update(failures=[], predictor=None, test_function=None, traced_for=None)

        def on(self, predictor: Predictor | None) -> Predictor | None:
            """Run calls on an engine from here on, and return what runs that of before."""
            before: Predictor | None = self.predictor
            self.__dict__.update(failures=[], predictor=predictor)
            return before

        def __getattr__(self, name: str) -> Any:
            method = next((vars(kind)[name] for kind in type(source).__mro__ if name in vars(kind)), None)
            if isinstance(method, FunctionType) and placed(source, name) is None and name not in _OF_THE_MODEL:
                return MethodType(method, self)
            return getattr(source, name)

        def __setattr__(self, name: str, value: Any) -> None:
            if name in own:
                self.__dict__[name] = value
            else:
                setattr(source, name, value)

        @property
        def jit_compile(self) -> bool:
            return False  # an engine is no part of an XLA program

        def make_test_function(self, force: bool = False) -> None:
            wanted = [getattr(source, name) for name in _TRACED_FOR]
            if force or self.traced_for != wanted:
                self.__dict__.update(test_function=None, traced_for=wanted)
                type(source).make_test_function(self)

        def __call__(self, x: Any, *others: Any, **keywords: Any) -> Any:
            leaves = flatten(x)
            plain = all(isinstance(leaf, tf.Tensor) for leaf in leaves)
            if others or not plain or any(value for value in keywords.values()):
                why = "the model with more than its inputs" if plain else "data that is not dense tensors"
                self.predictor.warn_once(why, f"Keras runs {why}, as in an evaluation: the engine takes neither.")
                return source(x, *others, **keywords)
            outputs = tf.numpy_function(
                _running(self, describe(x)), leaves, [tf.as_dtype(spec.dtype) for spec in specs]
            )
            outputs = [outputs] if tf.is_tensor(outputs) else outputs  # so it is outside of a graph, for one output
            for output, spec in zip(outputs, specs, strict=True):
                output.set_shape(spec.shape)
            return pack(signature.output_structure, outputs)

    return StandIn()


def _running(stand_in: Any, nesting: Any) -> Any:
    """Return what runs an engine on arrays. TensorFlow keeps it for ever, and so it keeps nothing itself."""
    held = weakref.ref(stand_in)

    def run(*arrays: Any) -> list[Any]:
        stand_in: Any = held()  # it is there: its test function calls
        try:
            return flatten(stand_in.predictor.predict_on_batch(pack(nesting, arrays)))
        except Exception as error:
            stand_in.failures.append(error)
            raise

    return run
