"""The exceptions of keras_trt.

    KerasTRTError
    ├── MissingDependencyError   (also ImportError)  a package is not installed; gives the exact `pip install`
    ├── ExportError              the Keras model could not become ONNX; names the Keras layer
    ├── BuildError               TensorRT or ONNX Runtime refused the graph; carries its log
    │   ├── UnsupportedOperatorError  it has no form of an operator, in whatever precision
    │   └── PrecisionError       the engine does not have the precision that was asked for
    ├── EngineLoadError          a backend or an engine cannot be used here
    │   ├── PlanError            the plan itself cannot be loaded
    │   └── ArtifactError        a .ktrt file is damaged, or none
    ├── VerificationError        an engine's answers differ from Keras's by more than the limit
    ├── StaleEngineError         the weights have changed since the engine was built, and that was to be an error
    ├── InputError               (also ValueError)   the data does not fit the model
    ├── CudaError                a CUDA call failed
    └── CacheError               the engine cache could not be read or written

`FallbackWarning` is the category of every warning that something runs otherwise than asked.
Wrong *arguments* (an unknown option, a negative batch size) are Python's own `ValueError` and `TypeError`.
Every message says what was wrong, what was received, what is allowed and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .findings import Finding


class KerasTRTError(Exception):
    """Base of every error that keras_trt raises on purpose."""


class MissingDependencyError(KerasTRTError, ImportError):
    """A package that this call needs is not installed.

    Attributes:
        package: the name of the missing package.
    """

    def __init__(self, message: str, *, package: str) -> None:
        super().__init__(message)
        self.package = package


class ExportError(KerasTRTError):
    """The Keras model could not be turned into a valid ONNX graph.

    Attributes:
        layer: path of the Keras layer that is to blame, or `None` where it is not one layer.
        findings: everything that was found at once, the message's own first, as `keras_trt.doctor` lists it.
    """

    def __init__(self, message: str, *, layer: str | None = None, findings: Iterable[Finding] = ()) -> None:
        super().__init__(message)
        self.layer = layer
        self.findings = tuple(findings) or (Finding(message, layer),)


def refuse(findings: Iterable[Finding]) -> None:
    """Raise if anything was found.

    Raises:
        ExportError: of the first finding; it holds them all.
    """
    found = tuple(findings)
    if found:
        more = f" {len(found) - 1} more: keras_trt.doctor lists them all." if len(found) > 1 else ""
        raise ExportError(found[0].problem + more, layer=found[0].layer, findings=found)


class BuildError(KerasTRTError):
    """An engine could not be built from a valid ONNX graph.

    Attributes:
        log: what the builder logged at warning level and above, one message a line.
    """

    def __init__(self, message: str, *, log: str = "") -> None:
        super().__init__(f"{message}\nThe builder's log:\n{log}" if log else message)
        self.log = log


class UnsupportedOperatorError(BuildError):
    """A backend has no form of an operator of the graph, in whatever precision.

    Attributes:
        nodes: names of the graph's nodes that it refuses, as far as it says them.
    """

    def __init__(self, message: str, *, log: str = "", nodes: Sequence[str] = ()) -> None:
        super().__init__(message, log=log)
        self.nodes = tuple(nodes)


class PrecisionError(BuildError):
    """An engine was built, or was going to be, in another precision than the one asked for."""


class EngineLoadError(KerasTRTError):
    """A plan could not be deserialized, or an engine could not be used on this device.

    Attributes:
        log: what TensorRT logged at warning level and above, one message a line.
    """

    def __init__(self, message: str, *, log: str = "") -> None:
        super().__init__(f"{message}\nTensorRT's log:\n{log}" if log else message)
        self.log = log


class PlanError(EngineLoadError):
    """The plan itself cannot be loaded: it is damaged, or of another TensorRT or GPU."""


class ArtifactError(EngineLoadError):
    """A `.ktrt` file is damaged, or none that `TRTModel.save` wrote. Nothing of it was run."""


class VerificationError(KerasTRTError):
    """An engine's answers differ from Keras's by more than the limit of its precision."""


class StaleEngineError(KerasTRTError):
    """A model compiled with `compile_trt(on_weight_change="raise")` has changed since its engine was built."""


class InputError(KerasTRTError, ValueError):
    """The data given to a model does not fit its inputs.

    Attributes:
        input_name: name of the input, or `None` where the structure as a whole is wrong.
        expected: what the model takes.
        received: what was given.
    """

    def __init__(
        self, message: str, *, input_name: str | None = None, expected: Any = None, received: Any = None
    ) -> None:
        super().__init__(message)
        self.input_name = input_name
        self.expected = expected
        self.received = received


class CudaError(KerasTRTError):
    """A CUDA call failed.

    Attributes:
        name: CUDA's name of the error, such as `"cudaErrorMemoryAllocation"`.
    """

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name

    @property
    def out_of_memory(self) -> bool:
        """Whether there was too little memory, on the GPU or to be locked on the host."""
        return self.name == "cudaErrorMemoryAllocation"


class CacheError(KerasTRTError):
    """The engine cache could not be read or written."""


class FallbackWarning(UserWarning):
    """Something does not run as it was asked for; says what runs instead, and why."""
