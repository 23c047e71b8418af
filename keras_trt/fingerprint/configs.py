"""The configurations of Keras's objects, without what changes nothing that they compute."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

# A seed changes no inference, and is drawn anew for each layer that is not given one.
NOISE = frozenset(
    {"build_config", "compile_config", "module", "name", "registered_name", "seed", "shared_object_id", "trainable"}
)


class _HasLambda(Exception):  # noqa: N818
    """A configuration holds a lambda as Keras writes it: with file name and line numbers."""


def _clean(config: Any, of_object: bool) -> Any:
    """Return a configuration without names and without nested layers, which are hashed as the objects they are."""
    if isinstance(config, Mapping):
        if config.get("class_name") == "__lambda__":
            raise _HasLambda
        if "class_name" in config and "config" in config:
            inner = config["config"]
            if "build_config" in config or (isinstance(inner, Mapping) and {"trainable", "layers"} & set(inner)):
                return {"class_name": "a layer"}
            return {"class_name": config["class_name"], "config": _clean(inner, True)}
        return {key: _clean(child, False) for key, child in config.items() if not (of_object and key in NOISE)}
    if isinstance(config, list | tuple):
        return [_clean(child, False) for child in config]
    return config


def config_of(item: Any) -> Any:
    """Return the cleaned configuration of an object of Keras, or `None` if its attributes must be hashed instead."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of each lambda
            return _clean(item.get_config(), True)
    except (_HasLambda, NotImplementedError, OSError, TypeError, ValueError, AttributeError):
        return None
