"""What stands for the Keras model where there is none: ONNX Runtime on the graph of an artifact."""

from __future__ import annotations

from typing import Any

import numpy as np

from .artifact import Artifact
from .backends.onnxruntime import OnnxRuntimeBackend
from .errors import InputError
from .specs import Signature, flatten, pack


class GraphSource:
    """Stands where the Keras model is of other drop-ins: ONNX Runtime on the artifact's graph.

    Args:
        file: the artifact.
        signature: its inputs and outputs, by the names that users know.
    """

    title = "ONNX Runtime"

    def __init__(self, file: Artifact, signature: Signature) -> None:
        self.name = file.name
        self._file = file
        self._signature = signature
        self._engine: Any = None

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"'{self.__dict__.get('name')}' was loaded from a file, which holds inference alone: `{name}` is the Keras "
            "model's, and there is none."
        )

    def predict_on_batch(self, x: Any) -> Any:
        """Return the outputs for a batch that the engine does not take.

        Raises:
            InputError: if the graph does not take it either.
        """
        if self._engine is None:
            (self._engine,) = OnnxRuntimeBackend().load(self._file.graph())  # seldom needed, so not before
        specs = self._file.signature
        feeds = dict(zip((spec.name for spec in specs.inputs), map(np.asarray, flatten(x)), strict=True))
        try:
            outputs = self._engine.run({name: feeds[name] for name in self._engine.input_names})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            shapes = {name: array.shape for name, array in feeds.items()}
            raise InputError(
                f"'{self.name}' was not made for such a batch, and there is no Keras model to run it. "
                f"Received: {shapes}, expected: {self._file.profile}. ONNX Runtime says: {error.__cause__ or error}",
                expected=self._file.profile,
                received=shapes,
            ) from error
        order = dict(zip(self._engine.output_names, outputs, strict=True))
        return pack(
            self._signature.output_structure,
            [order[spec.name].astype(spec.dtype, copy=False) for spec in specs.outputs],
        )

    def __call__(self, x: Any, **keywords: Any) -> Any:
        """Raise: calls that are more than inference need the Keras model.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"'{self.name}' was loaded from a file, which holds its inference alone: training, masks and symbolic "
            f"tensors need the Keras model. Received: {', '.join(keywords) or type(x).__name__}."
        )
