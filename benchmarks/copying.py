"""How fast rows get into the memory that a GPU reads: what bounds `predict` of large rows, where PCIe is faster.

python benchmarks/copying.py [--mib 19 77] [--gib 4]

Batches of many rows that no cache holds are copied, one after the other, into a ring of buffers of each kind:
page-locked memory, page-locked memory that is write-combined, and plain memory. By two ways: numpy alone, where each
thread copies a part of all rows on its own, and the copies that `predict` makes, one batch begun while the last is
finished.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent))

import environment

from keras_trt import cuda
from keras_trt.cuda.runtime import bindings, check
from keras_trt.runtime import SLOTS
from keras_trt.runtime.copying import Copy, cores

ROWS = 32  # of a batch, which is cut between rows
Buffers = list["np.ndarray[Any, Any]"]


@contextmanager
def buffers(kind: str, size: int) -> Iterator[Buffers]:
    """Yield as many buffers of bytes as a pipeline has slots."""
    if kind == "plain":
        yield [np.ones(size, np.uint8) for _ in range(SLOTS)]
        return
    cudart = bindings()
    flags = cudart.cudaHostAllocWriteCombined if kind == "write-combined" else cudart.cudaHostAllocDefault
    with cuda.current_device(0):
        addresses = [int(check(cudart.cudaHostAlloc(size, flags))) for _ in range(SLOTS)]
        yield [np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(address)) for address in addresses]
        for address in addresses:
            check(cudart.cudaFreeHost(address))


def by_numpy(batches: Buffers, targets: Buffers, count: int) -> None:
    """Let each thread copy its own part of every batch, without a word to the others."""

    def run(index: int) -> None:
        for i, batch in enumerate(batches):
            part = slice(index * len(batch) // count, (index + 1) * len(batch) // count)
            np.copyto(targets[i % len(targets)][part], batch[part])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def as_predict(batches: Buffers, targets: Buffers, count: int) -> None:
    """Copy as a pipeline does: the pieces of a batch are handed out before the last is waited for."""
    before: Copy | None = None
    for i, batch in enumerate(batches):
        target = targets[i % len(targets)]
        now = Copy(target.reshape(ROWS, -1), batch.reshape(ROWS, -1), count)
        now.begin()
        if before is not None:
            before.finish()
        before = now
    if before is not None:
        before.finish()


def rate(way: Callable[[Buffers, Buffers, int], None], rows: np.ndarray, targets: Buffers, count: int) -> float:
    """Return GB/s: the best of three, as others may use the memory too."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        way(list(rows), targets, count)
        seconds.append(time.perf_counter() - began)
    return rows.nbytes / min(seconds) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, nargs="+", default=[19, 77], help="of a batch: 32 and 128 images")
    parser.add_argument("--gib", type=float, default=4.0, help="of all rows")
    asked = parser.parse_args()
    about = environment.describe("copying.py")
    kinds = ["plain", "page-locked", "write-combined"] if about["device"] else ["plain"]
    found: list[dict[str, Any]] = []
    for mib in asked.mib:
        rows = np.ones((max(int(asked.gib * 1024 / mib), 8), mib << 20), np.uint8)
        for kind in kinds:
            with environment.alone(), buffers(kind, mib << 20) as targets:
                for threads in (count for count in (1, 2, 4, 6, 8, 12, 16) if count <= cores()):
                    one: dict[str, Any] = {"batch_mib": mib, "memory": kind, "threads": threads}
                    one |= {way.__name__: rate(way, rows, targets, threads) for way in (by_numpy, as_predict)}
                    found.append(one)
                    print(f"{mib} MiB, {kind}, {threads} threads: numpy alone {one['by_numpy']:.1f} GB/s, ", end="")
                    print(f"as predict does {one['as_predict']:.1f} GB/s", flush=True)
    print("written:", environment.write("copying", {**about, "rows": found}))


if __name__ == "__main__":
    main()
