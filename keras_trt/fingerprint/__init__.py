"""Hashes of a Keras model, without calling, tracing or exporting it: its structure, and the values of its weights.

model_digest   layers, wiring, variables, settings
configs        configurations of Keras's objects
weights_digest the values of variables
code_digest    functions and classes of users, by what their bytecode reaches
value_digest   values, by what they hold
libraries      what is a library's, known by name and version, and not a user's
walk           one SHA-256 over a graph of objects, and `Unhashable`, which says where in it there is no hash
"""

from __future__ import annotations

from .code_digest import code_key
from .model_digest import structure_key, variables_beside
from .walk import Unhashable
from .weights_digest import weights_key

__all__ = ["Unhashable", "code_key", "structure_key", "variables_beside", "weights_key"]
