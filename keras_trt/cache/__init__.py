"""The engine cache: what names an engine, and where its bytes lie.

    keys     pure functions: named fields in, a SHA-256 key out
    explain  which fields of two keys differ
    store    `EngineCache`: bytes in, verified bytes out, one build at a time

Nothing here knows of TensorRT, ONNX or Keras. A plan is executable code: whoever can write to a cache folder can run
code in the processes that read it, so share a folder only with those whom you trust.
"""

from keras_trt.cache.explain import changes, nearest
from keras_trt.cache.keys import digest
from keras_trt.cache.store import EngineCache, Entry
from keras_trt.cache.upkeep import Item

__all__ = ["EngineCache", "Entry", "Item", "changes", "digest", "nearest"]
