"""ONNX → better ONNX, pass by pass, on onnx-ir's graphs.

`weights` knows what follows from the weights alone, `layout` removes transposes, `simplify` shapes and products,
`images` pads.
"""

from __future__ import annotations

from .optimize import optimize
from .weights import Recipe

__all__ = ["Recipe", "optimize"]
