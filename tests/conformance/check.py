"""One case: our export, the ONNX checker, ONNX Runtime against Keras on fresh inputs, a build by TensorRT-RTX."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LIMIT = 1e-4  # relative L2, float32
LIVELY = 100 * LIMIT  # two rows differ by more than this, or a comparison could not fail

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Input:
    """Shape without the batch, type, and what integers are below."""

    shape: tuple[int | None, ...]
    dtype: str = "float32"
    below: int = 2

    def data(self, rows: int, generator: np.random.Generator) -> Array:
        shape = (rows, *(size or 7 for size in self.shape))
        if self.dtype == "float32":
            return generator.standard_normal(shape).astype("float32")
        return generator.integers(0, self.below, shape).astype(self.dtype)


@dataclass(frozen=True)
class Case:
    """What to make of which inputs.

    Attributes:
        inputs: what the model takes.
        build: from a Keras tensor for each input to the outputs.
        lively: whether rows must differ; not where the answers are whole numbers.
    """

    inputs: Sequence[Input]
    build: Callable[..., Any]
    lively: bool = True

    def model(self) -> Any:
        import keras

        keras.utils.set_random_seed(0)
        tensors = [keras.Input(one.shape, dtype=one.dtype) for one in self.inputs]
        model = keras.Model(tensors if len(tensors) > 1 else tensors[0], self.build(*tensors))
        randomize(model)
        return model


def randomize(model: Any) -> None:
    """Give a model weights as training leaves them: no zeros, variances about 1, activations of unit scale."""
    import keras

    generator = np.random.default_rng(4)
    for variable in model.variables:
        name = variable.path.rsplit("/", 1)[-1]
        if not str(variable.dtype).startswith("float"):
            continue
        noise = generator.standard_normal(variable.shape)
        if "variance" in name or name == "gamma":
            value = 1 + 0.2 * np.abs(noise)
        elif len(variable.shape) >= 2:
            fan_in = max(1, int(np.prod(variable.shape[:-1])))
            value = noise / np.sqrt(fan_in)
        else:
            value = 0.2 * noise
        variable.assign(keras.ops.convert_to_tensor(value, variable.dtype))


def check(case: Case) -> float:
    """Return the largest relative difference of a case; raises where it fails."""
    return check_model(case.model(), case.inputs, lively=case.lively)


def check_model(model: Any, inputs: Sequence[Input], *, lively: bool = True, build: bool = True) -> float:
    """Export, compare and build a model."""
    import keras
    import onnx
    import onnxruntime

    from keras_trt.export import export

    exported = export(model)
    onnx.checker.check_model(onnx.load_from_string(exported.onnx), full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(exported.onnx, options, providers=["CPUExecutionProvider"])
    names, worst = [spec.name for spec in exported.signature.inputs], 0.0
    for rows in (1, 5):
        generator = np.random.default_rng([rows, 11])
        data = [one.data(rows, generator) for one in inputs]
        wanted = keras.tree.flatten(model.predict_on_batch(data if len(data) > 1 else data[0]))
        got = session.run(None, dict(zip(names, data, strict=True)))
        for one, two in zip(map(np.asarray, wanted), got, strict=True):
            assert (one.shape, one.dtype) == (two.shape, two.dtype), f"{one.shape} {one.dtype}, {two.shape} {two.dtype}"
            if one.dtype.kind != "f":
                np.testing.assert_array_equal(one, two)
                continue
            worst = max(worst, relative(one, two))
            if lively and rows > 1 and len(one) == rows:
                assert relative(one, np.roll(one, 1, axis=0)) > LIVELY, "rows answer alike: the case proves nothing"
    assert worst < LIMIT, f"relative difference {worst:.2g}"
    if build:
        build_plan(exported, inputs)
    return worst


def relative(one: Array, two: Array) -> float:
    one, two = one.astype("float64"), two.astype("float64")
    return float(np.linalg.norm(one - two) / max(float(np.linalg.norm(one)), 1e-30))


def build_plan(exported: Any, inputs: Sequence[Input]) -> None:
    """Build an engine with the real builder of TensorRT-RTX, which needs no GPU."""
    from keras_trt.backends import BuildSpec
    from keras_trt.specs import OptimizationProfile, ShapeRange

    shapes = {}
    for spec, one in zip(exported.signature.inputs, inputs, strict=True):
        rest = tuple(size or 7 for size in one.shape)
        shapes[spec.name] = ShapeRange((1, *rest), (4, *rest), (8, *rest))
    spec = BuildSpec("fp32", OptimizationProfile(shapes), optimization_level=0)
    builder().build(exported.onnx, spec, for_this_gpu=False)


@functools.cache
def builder() -> Any:
    from keras_trt.backends.tensorrt.builder import PlanBuilder
    from keras_trt.backends.tensorrt.flavor import flavor

    return PlanBuilder(flavor("tensorrt_rtx"))
