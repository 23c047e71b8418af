"""What a user calls a model → a Keras 3 model: one in memory, a `.keras` or `.h5` file, or a SavedModel folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import MissingDependencyError
from .specs import describe, flatten, pack

_TAKEN = "Allowed are a keras.Model, a .keras or .h5 file, and a SavedModel folder."
_FILES = (".keras", ".h5", ".hdf5")
#: What `model.export()` calls the function that answers as the model did, and what TensorFlow calls its own.
_KERAS_ENDPOINT, _SIGNATURE = "serve", "serving_default"


def keras_model(source: Any) -> Any:
    """Return the Keras 3 model that is given, or that a path leads to.

    Args:
        source: a `keras.Model`, or the path of a `.keras` or `.h5` file or of a SavedModel folder. What a folder holds
            becomes a Functional model of a `keras.layers.TFSMLayer`: of the `serve` endpoint that `model.export()`
            writes, else of the signature `serving_default`, whose outputs keep their names.

    Raises:
        TypeError: if it is neither a Keras 3 model nor a path.
        FileNotFoundError: if there is no such file or folder.
        ValueError: if there is no model in it, or it cannot be loaded.
        MissingDependencyError: if Keras is not installed.
    """
    if not isinstance(source, str | os.PathLike):
        _check_is_keras(source)
        return source
    path = Path(os.fsdecode(source))
    if not path.exists():
        raise FileNotFoundError(f"There is no model at this path. Received: {str(path)!r}. {_TAKEN}")
    if path.is_file() and path.suffix.lower() not in _FILES:
        raise ValueError(f"This file is not a Keras model. Received: {str(path)!r}. {_TAKEN}")
    if path.is_dir() and not any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
        raise ValueError(f"This folder is not a SavedModel: no saved_model.pb. Received: {str(path)!r}. {_TAKEN}")
    try:
        import keras
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "Loading a model needs Keras: pip install 'keras-trt[tensorflow]'", package="keras"
        ) from error
    if path.is_dir():
        return _saved_model(path)
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises what h5py, zipfile and the layers' own code raise
        raise ValueError(
            f"Keras could not load this file: {type(error).__name__}: {error}\nReceived: {str(path)!r}. If the model "
            "is in it, load it with keras.saving.load_model (`custom_objects` for classes of your own, "
            "`safe_mode=False` for lambdas that you trust), and pass the model."
        ) from error
    _check_is_keras(model)
    return model


def _check_is_keras(model: Any) -> None:
    """Refuse what is not a Keras 3 model, without importing Keras for it."""
    for kind in type(model).__mro__:
        module, name = kind.__module__, kind.__name__
        if name == "Model" and module.startswith("keras."):
            return
        if name == "Model" and module.startswith(("tf_keras.", "tensorflow.python.keras.")):
            raise TypeError(
                f"keras_trt takes models of Keras 3. Received a model of {module.split('.')[0]} "
                f"({type(model).__name__}): save it as .keras or .h5 and load it with keras.models.load_model, or save "
                "it with tf.saved_model.save and pass the folder."
            )
    raise TypeError(
        f"keras_trt takes a keras.Model, or the path of one. Received: {model!r} of type "
        f"{type(model).__module__}.{type(model).__qualname__}"
    )


def on_tensorflow() -> bool:
    """Tell whether Keras runs on TensorFlow."""
    import keras

    return bool(keras.config.backend() == "tensorflow")


def _saved_model(path: Path) -> Any:
    import keras

    if not on_tensorflow():
        raise ValueError(
            f"A SavedModel runs on TensorFlow, and Keras runs on {keras.config.backend()!r}. Received: {str(path)!r}. "
            "Set KERAS_BACKEND=tensorflow before Keras is imported."
        )
    try:
        return _wrapped(path)
    except Exception as error:  # TensorFlow raises many kinds for a damaged folder
        raise ValueError(
            f"This SavedModel could not be loaded: {type(error).__name__}: {error}\nReceived: {str(path)!r}. It must "
            f"have the signature '{_SIGNATURE}', or be written by Keras's `model.export()`."
        ) from error


def _wrapped(path: Path) -> Any:
    """Return a Functional model around the function of a SavedModel."""
    import keras

    class SavedModelLayer(keras.layers.TFSMLayer):  # type: ignore[misc]
        """A `TFSMLayer` that takes the arguments of a signature by name, as signatures want them."""

        def call(self, inputs: Any, training: bool = False) -> Any:  # noqa: ARG002 (an engine is for inference)
            outputs = self.call_endpoint_fn(**inputs) if by_name else self.call_endpoint_fn(*inputs)
            return pack(describe(outputs), flatten(outputs))  # dicts by their keys: a file keeps no order of them

    def make(endpoint: str) -> tuple[Any, tuple[Any, ...], Mapping[str, Any]]:
        layer = SavedModelLayer(str(path), call_endpoint=endpoint, name=endpoint)
        function = layer.call_endpoint_fn
        forms = getattr(function, "concrete_functions", [function])
        if len(forms) != 1:
            raise ValueError(f"'{endpoint}' takes {len(forms)} kinds of inputs, not one")
        concrete = forms[0]
        positional, named = concrete.structured_input_signature
        return layer, positional, named

    try:
        layer, positional, named = make(_KERAS_ENDPOINT)
    except ValueError:  # not of Keras: it has no such endpoint, or one for several kinds of inputs
        layer, positional, named = make(_SIGNATURE)
    by_name = not positional
    inputs: Any
    if by_name:
        inputs = {key: _input(spec, key) for key, spec in named.items()}
    else:
        inputs = keras.tree.map_structure(lambda spec: _input(spec, spec.name), list(positional))
    leaves = inputs if not isinstance(inputs, dict) else list(inputs.values())
    taken = leaves[0] if len(leaves) == 1 else inputs  # one argument is what `predict` takes, as in Keras
    return keras.Model(taken, layer(inputs), name=path.resolve().name)


def _input(spec: Any, name: str | None) -> Any:
    import keras

    return keras.Input(batch_shape=spec.shape, dtype=spec.dtype.name, name=name)
