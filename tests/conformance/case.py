"""What a case is, and how one is judged."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import onnx

from keras_trt.backends import BuildSpec
from keras_trt.backends.onnxruntime import OnnxRuntimeBackend
from keras_trt.backends.tensorrt.builder import PlanBuilder
from keras_trt.backends.tensorrt.flavor import flavor
from keras_trt.errors import BuildError, ExportError, PlanError
from keras_trt.export import ExportedModel, export
from keras_trt.export.signature import input_signature
from keras_trt.precision import typed
from keras_trt.specs import TensorSpec, flatten, pack

from .. import zoo

#: Relative L2 between Keras and ONNX Runtime in float32. Integers and booleans must be equal.
LIMIT = 1e-4
#: So much farther than the limit must two rows of Keras's own answer be apart.
MARGIN = 100


class NoExportError(AssertionError):
    """The export refused the model, or what it made is not valid ONNX."""


class WrongAnswerError(AssertionError):
    """ONNX Runtime does not run the graph, or answers otherwise than Keras."""


class NoBuildError(AssertionError):
    """TensorRT-RTX does not parse or build the graph."""


@dataclass(frozen=True)
class Case:
    """A model that holds one thing of Keras.

    Attributes:
        name: of the class or function, as Keras spells it; a colon and a variant may follow.
        build: makes the model.
        low, high: between which its inputs are drawn; without them floats are normal and integers below 10.
        deep: whether its batch normalizations take their statistics from a batch, without which the activations of a
            deep model leave unit scale.
        trained: whether its weights are trained ones, and stay.
        long: whether it takes too long for every run.
    """

    name: str
    build: Callable[[], Any]
    low: float | None = None
    high: float | None = None
    deep: bool = False
    trained: bool = False
    long: bool = False

    @property
    def of(self) -> str:
        """What it covers."""
        return self.name.partition(":")[0]


@dataclass
class Outcome:
    """What became of a case: the largest difference, where there is an answer, and what failed, in order."""

    difference: float | None = None
    failures: list[AssertionError] = field(default_factory=list)

    def failed(self, kind: type[AssertionError]) -> bool:
        return any(isinstance(failure, kind) for failure in self.failures)


def judge(case: Case) -> Outcome:
    """Take a case through export, ONNX Runtime and TensorRT-RTX. What is wrong with the case itself is raised."""
    keras.utils.set_random_seed(7)
    model = case.build()
    generator = np.random.default_rng(7)
    if not case.trained:
        randomize(model, generator)
    if case.deep:
        settle(case, model, generator)
    outcome = Outcome()
    try:
        exported = export(model)
        onnx.checker.check_model(onnx.load_from_string(exported.onnx), full_check=True)
    except (ExportError, onnx.checker.ValidationError) as error:
        outcome.failures.append(NoExportError(str(error)))
    else:
        try:
            outcome.difference = compare(case, model, exported)
        except WrongAnswerError as error:
            outcome.failures.append(error)
        try:
            build(exported)
        except BuildError as error:
            outcome.failures.append(NoBuildError(f"{error} {error.log}"))
    finally:
        keras.backend.clear_session()
    return outcome


def randomize(model: Any, generator: np.random.Generator) -> None:
    """Give a model weights that are not the initial ones and keep activations at unit scale."""
    for variable in model.variables:
        if "float" not in variable.dtype:
            continue  # counters and seeds
        name, shape = variable.path.rpartition("/")[-1], tuple(variable.shape)
        if "variance" in name or "gamma" in name or name in ("scale", "alpha"):
            value = generator.uniform(0.5, 1.5, shape)
        elif len(shape) < 2:
            value = generator.normal(0, 0.2, shape)
        else:
            channels = 1 if "depthwise" in name else shape[-1]
            value = generator.normal(0, np.sqrt(1.5 * channels / np.prod(shape)), shape)
        variable.assign(value)


def settle(case: Case, model: Any, generator: np.random.Generator) -> None:
    """Give each batch normalization statistics near those of a batch of random inputs.

    Its beta is raised, so that activations are mostly open: a deep random model amplifies rounding at each closed one,
    in Keras as in any engine.
    """
    found = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    before = [layer.momentum for layer in found]
    for layer in found:
        layer.momentum = 0.0
        layer.beta.assign(layer.beta + 1.0)
    takes = input_signature(model)
    model(pack(takes.input_structure, draw(case, takes.inputs, 16, generator)), training=True)
    for layer, momentum in zip(found, before, strict=True):
        layer.momentum = momentum
        variance = np.asarray(layer.moving_variance)
        variance = np.maximum(variance, variance.mean() / 10)  # a channel that was nearly silent would shout
        layer.moving_variance.assign(variance * generator.uniform(0.8, 1.25, variance.shape))


def draw(case: Case, specs: tuple[TensorSpec, ...], rows: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Return fresh random inputs."""
    inputs = []
    for spec in specs:
        shape = (rows, *(axis or 5 for axis in spec.shape[1:]))
        if spec.dtype.startswith("float"):
            normal = case.low is None or case.high is None
            values = generator.normal(0, 1, shape) if normal else generator.uniform(case.low, case.high, shape)
        else:
            values = generator.integers(int(case.low or 0), int(case.high or 10), shape)
        inputs.append(values.astype(spec.dtype))
    return inputs


def compare(case: Case, model: Any, exported: ExportedModel) -> float:
    """Return the largest difference between Keras and ONNX Runtime on fresh inputs, with one row and with five."""
    signature, worst = exported.signature, 0.0
    try:
        (engine,) = OnnxRuntimeBackend().load(exported.onnx)
    except PlanError as error:
        raise WrongAnswerError(str(error)) from error
    for rows in (5, 1):
        inputs = draw(case, signature.inputs, rows, np.random.default_rng(rows))
        wanted = [np.asarray(leaf) for leaf in flatten(model.predict_on_batch(pack(signature.input_structure, inputs)))]
        for answer in wanted:
            assert_can_fail(answer)
        try:
            got = engine.run(dict(zip(engine.input_names, inputs, strict=True)))
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise WrongAnswerError(f"With {rows} rows: {error}") from error
        for spec, one, two in zip(signature.outputs, wanted, got, strict=True):
            if (one.shape, one.dtype, one.dtype) != (two.shape, two.dtype, spec.dtype):
                raise WrongAnswerError(f"{two.dtype}{list(two.shape)} instead of {one.dtype}{list(one.shape)}")
            worst = max(worst, difference(one, two))
    if not worst < LIMIT:
        raise WrongAnswerError(f"The answer is off by {worst:.1e}")
    return worst


def assert_can_fail(answer: np.ndarray) -> None:
    """An answer that is the same for each row, or no number, proves nothing when it is met."""
    if answer.dtype.kind == "f":
        assert np.isfinite(answer).all()
        assert answer.any()
    if len(answer) > 1:
        rows = answer.astype("float64")
        apart = np.linalg.norm(rows[1:] - rows[:1], axis=None) / np.linalg.norm(rows)
        least = MARGIN * LIMIT if answer.dtype.kind == "f" else 0
        assert apart > least, f"rows differ by {apart:.1e} only: equal answers would prove nothing"


def difference(wanted: np.ndarray, got: np.ndarray) -> float:
    """Return the relative L2; of integers and booleans, whether they differ."""
    if wanted.dtype.kind != "f":
        return float(not np.array_equal(wanted, got))
    return float(np.linalg.norm(wanted.astype("float64") - got) / np.linalg.norm(wanted.astype("float64")))


def build(exported: ExportedModel) -> bytes:
    """Parse and build with TensorRT-RTX, which needs no GPU for it."""
    spec = BuildSpec("fp32", zoo.profile(exported.signature.inputs), optimization_level=0)
    return _builder().build(typed(exported.onnx, "fp32"), spec, for_this_gpu=False)


@functools.cache
def _builder() -> PlanBuilder:
    return PlanBuilder(flavor("tensorrt_rtx"))


def functional(name: str, shapes: list[tuple[int, ...]], function: Callable[..., Any], **options: Any) -> Case:
    """Return a case of the model that calls `function` on one input of each shape.

    Args:
        name: of the case.
        shapes: of one row of each input.
        function: from the inputs to the outputs.
        **options: the inputs' `dtype`, and fields of the case.
    """
    dtype = options.pop("dtype", "float32")

    def make() -> Any:
        inputs = [keras.Input(shape, dtype=dtype) for shape in shapes]
        return keras.Model(inputs if len(inputs) > 1 else inputs[0], function(*inputs))

    return Case(name, make, **options)
