"""CUDA graphs: work that is put on a stream once, and launched again as one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .runtime import Stream, bindings, check, forget_error


class Graph:
    """An executable CUDA graph.

    All addresses that its work reads and writes are fixed in it and must outlive it.
    """

    def __init__(self, executable: Any) -> None:
        self._executable = executable

    def launch(self, stream: Stream) -> None:
        """Put the whole graph on `stream`."""
        cudart = bindings()
        check(cudart.cudaGraphLaunch(self._executable, stream.handle))

    def close(self) -> None:
        """Free the graph. It must not be running."""
        if self._executable is not None:
            cudart = bindings()
            executable, self._executable = self._executable, None
            check(cudart.cudaGraphExecDestroy(executable))


def capture(stream: Stream, work: Callable[[], object]) -> Graph:
    """Record what `work` puts on `stream`, without running it.

    The capture is thread-local: a global one would make CUDA calls of other threads fail.

    Args:
        stream: an idle stream.
        work: puts work on the stream. It must have run once before, outside a capture, so that nothing is
            allocated or compiled in it any more.

    Raises:
        CudaError: if something in `work` cannot be captured. The stream is usable again.
    """
    cudart = bindings()
    mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    try:
        check(cudart.cudaStreamBeginCapture(stream.handle, mode))  # in here, as Ctrl-C may come once it has begun
        work()
    except BaseException:
        # A capture that is not ended leaves the stream unusable. Its own status only repeats the error at hand.
        status, graph = cudart.cudaStreamEndCapture(stream.handle)
        if int(status) == 0:
            check(cudart.cudaGraphDestroy(graph))
        forget_error()
        raise
    graph = check(cudart.cudaStreamEndCapture(stream.handle))
    try:
        return Graph(check(cudart.cudaGraphInstantiate(graph, 0)))
    finally:
        check(cudart.cudaGraphDestroy(graph))
