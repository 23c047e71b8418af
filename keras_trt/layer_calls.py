"""Layers that are called otherwise for a while, in one thread: others that use the model meanwhile notice nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(calls: Iterable[tuple[Any, str, Callable[..., Any] | None]]) -> Iterator[None]:
    """Let methods of layers be others in this thread while the block runs.

    Args:
        calls: for each a layer, the name of its method, and what stands for that; `None` leaves it. So does a user's
            own function in the method's place.
    """
    done: list[tuple[Any, str]] = []
    try:
        for layer, name, call in calls:
            if call is not None and name not in vars(layer):
                # Past Keras's own `__setattr__`, which would track it; seen before the method of the class.
                vars(layer)[name] = _in_this_thread(call, getattr(layer, name))
                done.append((layer, name))
        yield
    finally:
        for layer, name in done:
            del vars(layer)[name]


def _in_this_thread(call: Callable[..., Any], otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """Return what calls `call` in this thread, and `otherwise` in those that use the model meanwhile."""
    thread = threading.get_ident()

    def chosen(*args: Any, **kwargs: Any) -> Any:
        return (call if threading.get_ident() == thread else otherwise)(*args, **kwargs)

    return chosen


def without_cudnn(layer: Any) -> Callable[..., Any] | None:
    """Return the loop over steps of a Keras LSTM or GRU in plain operations, or `None` for any other layer.

    Where there is a GPU, Keras takes cuDNN's operator for all steps, which has no form in ONNX and runs on no CPU.
    """
    import keras

    own = (keras.layers.LSTM, keras.layers.GRU)
    if not isinstance(layer, own) or type(layer).inner_loop not in [kind.inner_loop for kind in own]:
        return None

    def loop(sequences: Any, initial_state: Any, mask: Any = None, training: bool = False) -> Any:
        first = mask[0] if isinstance(mask, (list, tuple)) else mask
        return keras.layers.RNN.inner_loop(layer, sequences, initial_state, mask=first, training=training)

    return loop
