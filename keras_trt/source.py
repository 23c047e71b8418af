"""The Keras model behind an engine: what of it an engine cannot honour."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real
from typing import Any

from .export.signature import unbuilt
from .findings import Finding

#: What runs on the engine once a model is compiled for it.
ON_ENGINE = ("predict", "predict_on_batch", "evaluate", "test_on_batch")
#: Those of them that Keras's own trainer does.
TESTS = ("evaluate", "test_on_batch")


def placed(model: Any, method: str) -> Any:
    """Return what someone has put in a method's place on a model itself, but for what `compile_trt` has; or `None`."""
    found = vars(model).get(method)
    return getattr(found, "in_place_of", None) if hasattr(found, "in_place_of") else found


def own(model: Any, method: str) -> Any:
    """Return a method as the model has it without `compile_trt`."""
    return placed(model, method) or getattr(type(model), method).__get__(model)


def ensure_built(model: Any, sample: Any) -> None:
    """Build a model by calling it on the sample, if it is not built yet.

    Raises:
        ExportError: if there is no sample.
    """
    if model.built:
        return
    if sample is None:
        raise unbuilt(model)
    own(model, "predict_on_batch")(sample)


def only_keras_can(model: Any) -> Iterator[Finding]:
    """Yield what a model does at `predict` that an engine could not.

    An engine is the forward pass alone, with no memory between calls.
    """
    import keras

    for method in ("predict", "predict_step", "predict_on_batch", "make_predict_function"):
        if placed(model, method) or getattr(type(model), method) is not getattr(keras.Model, method):
            forward = (
                " keras.Model(model.input, model.output) is its forward pass alone, which an engine runs."
                if getattr(model, "inputs", None)
                else ""
            )
            yield Finding(
                f"Only Keras can run this model: '{model.name}' overrides `{method}`, which an engine does not run."
                f"{forward}"
            )
    frameworks = {keras.layers.JaxLayer: "JAX", keras.layers.TorchModuleWrapper: "PyTorch"}
    for layer in model._flatten_layers():
        name = layer.path or layer.name
        if getattr(layer, "stateful", False):
            yield Finding(
                f"Only Keras can run this model: the layer '{name}' is stateful, and an engine keeps no state between "
                "batches.",
                name,
            )
        for kind, framework in frameworks.items():
            if isinstance(layer, kind):
                yield Finding(
                    f"Only Keras can run this model: the layer '{name}' runs on {framework}, and the export goes "
                    "through TensorFlow.",
                    name,
                )


def loops(model: Any) -> Iterator[Finding]:
    """Yield what is said of a model that generates: its loop is no part of the forward pass that an engine is."""
    if callable(getattr(model, "generate", None)):
        yield Finding(
            f"`generate` of '{model.name}' is a loop around its forward pass, which no engine runs: call it on the "
            "Keras model.",
            action="kept",
            cost="the engine runs the forward pass alone; `generate` stays as fast as Keras is",
        )


def integer_limit(model: Any) -> int | None:
    """Return the size of the smallest table that a layer looks integers up in, or `None` where there is none."""
    sizes = [
        size
        for layer in model._flatten_layers()
        for size in (getattr(layer, "input_dim", None), getattr(layer, "num_tokens", None))
        if isinstance(size, int) and size > 0
    ]
    return min(sizes, default=None)


def padding(model: Any) -> dict[str, float]:
    """Return what a step is filled with that a layer masks, by the kind of its numbers: "f", floats, and "i"."""
    import keras

    found: dict[str, float] = {}
    for layer in model._flatten_layers():
        if getattr(layer, "mask_zero", False):
            found["i"] = 0
        elif isinstance(layer, keras.layers.Masking) and isinstance(layer.mask_value, Real):
            found["f"] = float(layer.mask_value)
    return found
