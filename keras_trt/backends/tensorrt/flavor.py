"""Which TensorRT is here, and what it can do: features are looked for by name, versions are never compared.

`tensorrt` 8.6, 10 and 11 and `tensorrt_rtx` share all code of this folder.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from ..._require import require
from ...errors import EngineLoadError
from ...options import Precision

FlavorName = Literal["tensorrt", "tensorrt_rtx"]

_logger = logging.getLogger("keras_trt.tensorrt")


class Flavor:
    """One of the two TensorRT packages, with the one logger that it listens to.

    Args:
        name: the module to import.

    Attributes:
        trt: the module.
        title: name and version for people.
        strongly_typed: whether networks can be typed by their ONNX graph. Where not (8.6), the builder chooses
            types and is told what to choose, layer by layer.
        measures: whether a builder chooses kernels by measuring them, so that measurements are worth keeping. RTX
            compiles for its GPU when an engine is loaded, and measures nothing.
        beside_8_bits: see `Judge`.
        precisions: those that it can build, on some GPU.
        logger: TensorRT's logger. Only the first one of a process counts, so there is one for everything.

    Raises:
        MissingDependencyError: if the package is not installed.
        EngineLoadError: if its plugins cannot be registered.
    """

    def __init__(self, name: FlavorName) -> None:
        self.name = name
        rtx = name == "tensorrt_rtx"
        self.trt = trt = require(
            name,
            package="tensorrt-rtx" if rtx else "tensorrt",
            extra="rtx" if rtx else "cu13",
            purpose=f"The backend '{name}'",
        )
        self.title = f"{'TensorRT-RTX' if rtx else 'TensorRT'} {trt.__version__}"
        self.strongly_typed = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
        self.measures = not rtx
        fp8 = self.strongly_typed and hasattr(trt.DataType, "FP8")
        bf16 = self.strongly_typed and hasattr(trt.DataType, "BF16")
        possible: dict[Precision, bool] = {
            "fp8": fp8,
            "int8": True,
            "fp16": True,
            "bf16": bf16,
            "tf32": True,
            "fp32": True,
        }
        self.precisions: tuple[Precision, ...] = tuple(name for name, has in possible.items() if has)
        # Where TensorRT chooses the types, a graph of float32 around the quantized layers says all; it has opset 17.
        self.beside_8_bits: Literal["fp16", "fp32"] = "fp16" if self.strongly_typed else "fp32"
        self._sinks: dict[int, list[list[str]]] = {}
        # Reentrant: the garbage collector may free TensorRT's objects, which log, while the lock is held.
        self._lock = threading.RLock()
        self._interrupt: BaseException | None = None
        self.logger = _make_logger(trt, self._receive_safely)
        if not trt.init_libnvinfer_plugins(self.logger, ""):  # some ONNX operators are plugins
            raise EngineLoadError(f"{self.title} could not register its own plugins.")

    @contextmanager
    def log(self) -> Iterator[list[str]]:
        """Collect what TensorRT logs at warning level and above while the block runs.

        A message from a thread that collects nothing, as of the builder's own threads, goes to all who collect.

        Raises:
            KeyboardInterrupt: one that came while TensorRT was logging: TensorRT swallows what its logger raises.
        """
        messages: list[str] = []
        thread = threading.get_ident()
        with self._lock:
            self._sinks.setdefault(thread, []).append(messages)
        try:
            yield messages
        finally:
            with self._lock:
                # Not `remove`: that takes the first list that is equal, as empty ones are.
                self._sinks[thread] = [sink for sink in self._sinks[thread] if sink is not messages]
                if not self._sinks[thread]:
                    del self._sinks[thread]
                interrupt, self._interrupt = self._interrupt, None
            if interrupt is not None:
                raise interrupt

    def _receive_safely(self, severity: int, message: str) -> None:
        try:
            self._receive(severity, message)
        except BaseException as error:  # Ctrl-C arrives in whatever Python code runs next, which is this
            self._interrupt = error

    def _receive(self, severity: int, message: str) -> None:
        with self._lock:
            mine = self._sinks.get(threading.get_ident())
            sinks = mine or [sink for sinks in self._sinks.values() for sink in sinks]
            if severity <= _WARNING:
                for sink in sinks:
                    sink.append(message)
        # What is collected becomes part of an exception if it matters; an error that nobody collects does not.
        if severity <= _ERROR and not sinks:
            _logger.error(message)
        else:
            _logger.log(logging.INFO if severity <= _WARNING else logging.DEBUG, message)


# Values of ILogger.Severity, the same in every version: 0 internal error, 1 error, 2 warning, 3 info, 4 verbose.
_ERROR, _WARNING = 1, 2


def _make_logger(trt: Any, receive: Any) -> Any:
    class DispatchLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            receive(int(severity), message)

    return DispatchLogger()


@functools.cache
def flavor(name: FlavorName) -> Flavor:
    """Return the one `Flavor` of that name in this process.

    Raises:
        MissingDependencyError: if the package is not installed.
    """
    return Flavor(name)
