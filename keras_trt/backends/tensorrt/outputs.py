"""Memory for outputs whose shape depends on the data: TensorRT asks for it while it puts an inference on a stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def output_allocator(trt: Any, allocate: Callable[[int], int]) -> Any:
    """Return a `trt.IOutputAllocator` for one output.

    Its `shape` is the output's in the latest inference since `begin`, and its `failure` what `allocate` has raised:
    TensorRT swallows that, and only sees that there is no memory.

    Args:
        trt: the module.
        allocate: returns the address of device memory of at least so many bytes, aligned as CUDA aligns it.
    """

    class OutputAllocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.begin()

        def begin(self) -> None:
            self.shape: tuple[int, ...] | None = None
            self.failure: BaseException | None = None

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:  # noqa: ARG002
            try:
                return allocate(size)
            except BaseException as error:
                self.failure = error
                return 0

        def reallocate_output_async(
            self,
            tensor_name: str,
            memory: int,
            size: int,
            alignment: int,
            stream: int,  # noqa: ARG002
        ) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:  # noqa: ARG002
            self.shape = tuple(shape)

    return OutputAllocator()
