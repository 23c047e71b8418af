"""What other processes do in the tests on a GPU: `python -m tests.gpu.children NAME ARGUMENT…`."""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any

from tests.gpu import models


def say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def second_start(cache: str) -> None:
    """Find the engine of another process, use it, fork, and end without closing anything."""
    import keras_trt

    model = models.mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("error", keras_trt.FallbackWarning)
        fast = keras_trt.accelerate(
            model, backend="tensorrt", precision="fp16", optimization_level=0, cache=cache, verbose=0
        )
    rows = models.random_rows(model, 40)
    difference = models.relative(fast.predict(rows, verbose=0), model.predict(rows, verbose=0))

    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            fast.predict(rows, verbose=0)
            os.write(writing, b"no error")
        except RuntimeError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    in_fork = b""
    while part := os.read(reading, 4096):
        in_fork += part
    os.waitpid(pid, 0)
    fast.predict(rows, verbose=0)  # the fork has done it no harm

    report = fast.report()
    say(
        origin=report.origin,
        precision=report.precision,
        seconds=dict(report.seconds),
        tf2onnx="tf2onnx" in sys.modules,
        difference=difference,
        in_fork=in_fork.decode(),
    )


def beside_tensorflow(cache: str) -> None:
    """Let TensorFlow take nine tenths of the GPU's memory first."""
    os.environ.pop("TF_FORCE_GPU_ALLOW_GROWTH", None)  # with which it takes what it needs
    import keras
    import tensorflow as tf

    import keras_trt
    from keras_trt import cuda
    from keras_trt.backends import memory

    before = memory.tensorflow_uses(0)
    (gpu, *_) = tf.config.list_physical_devices("GPU")
    free, total = cuda.free_memory(0)
    limit = (int(free * 0.9)) >> 20
    tf.config.set_logical_device_configuration(gpu, [tf.config.LogicalDeviceConfiguration(memory_limit=limit)])
    model = models.cnn()
    rows = models.random_rows(model, 200)
    with keras.device("gpu:0"):
        reference = model.predict(rows, verbose=0)
    left, _ = cuda.free_memory(0)
    fast = keras_trt.accelerate(
        model, backend="tensorrt", precision="fp16", optimization_level=0, cache=cache, fallback="raise", verbose=0
    )
    say(
        backend=fast.backend,
        free_before=free / total,
        free_beside=left / total,
        tensors_before=before,  # asking has not made TensorFlow take the GPU, or the limit would have been too late
        tensors=memory.tensorflow_uses(0),
        enough=memory.shortage(0, 0, beside_tensorflow=True),
        too_little=memory.shortage(0, left, beside_tensorflow=True),
        difference=models.relative(fast.predict(rows, verbose=0), reference),
        # TensorFlow still works, too.
        again=models.relative(model.predict(rows, verbose=0), reference),
    )


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
