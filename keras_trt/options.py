"""`BuildOptions`: what a user can choose, and which of the choices change the engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, get_args

from .findings import Finding
from .specs import OptimizationProfile, ShapeRange, TensorSpec

if TYPE_CHECKING:
    from .cache import EngineCache

Precision = Literal["fp8", "int8", "fp16", "bf16", "tf32", "fp32"]
BackendName = Literal["auto", "tensorrt", "tensorrt_rtx", "onnxruntime"]

#: Options that end up in the engine itself. Each is part of the engine key; changing one means another engine.
ENGINE_OPTIONS = frozenset(
    {"precision", "batch_sizes", "profiles", "optimization_level", "refittable"}
    | {"calibration_data", "calibration_method", "precision_plan"}
)
#: Options that choose where, whether and how loudly, but never which numbers come out. `backend` and `device`
#: enter the key through the identity of what they choose, `sample` through the shapes that follow from it.
OTHER_OPTIONS = frozenset({"validation_data", "accuracy_budget", "monitor", "mode"}) | frozenset(
    {"backend", "sample", "verify", "fallback", "cache", "device", "build", "build_timeout", "verbose"}
)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options of `accelerate`. All of them can also be given to it as keywords.

    Args:
        precision: `"fp16"`, `"bf16"`, `"tf32"`, `"fp32"` (strict float32, no TF32), `"int8"` or `"fp8"`;
            `"auto"` measures all that can run and keeps the fastest within `accuracy_budget`. Defaults to `None`:
            `"fp16"` on TensorRT and `"fp32"` on ONNX Runtime.
        validation_data: for `"auto"`: `(x, y)`, `(x, y, sample_weight)`, or a dataset of them. Defaults to `None`.
        accuracy_budget: for `"auto"`: how much worse than Keras's the metric may be, in its own unit; less than the
            rounding of float32 is no difference. Defaults to `0.0`.
        monitor: for `"auto"`: name of a compiled metric or `"loss"`, or a callable `(y, y_pred) -> float`. Defaults to
            `None`: the first compiled metric, else the loss.
        mode: for `"auto"`: whether the metric is better as it is larger, `"max"`, or smaller, `"min"`. Defaults to
            `"auto"`: as Keras knows it of its own metrics and losses. A callable, and a metric of one's own, need it.
        backend: `"tensorrt"`, `"tensorrt_rtx"` or `"onnxruntime"`; one that is named and cannot be used is an
            error. Defaults to `"auto"`: the first of these three that can be used.
        batch_sizes: smallest, most usual and largest batch of the engine. Larger batches are run in chunks.
            Defaults to `(1, 32, 128)`.
        profiles: an `OptimizationProfile`, for models with an axis other than the batch that has no fixed size.
            It then also says the batch sizes. Defaults to `None`.
        sample: a batch of inputs as `predict` takes them. It is used to verify the engine, and where the model
            does not say them it gives the inputs' structure, types and the sizes of dynamic axes.
            Defaults to `None`: random inputs.
        calibration_data: for `"int8"` and `"fp8"`: rows like those that the model will see, as arrays or anything else
            that `predict` takes; some hundred are used. Defaults to `None`.
        calibration_method: how `"int8"` chooses the range of numbers: `"percentile"`, `"entropy"` (as TensorRT's own
            calibrator did; slow) or `"minmax"`. Defaults to `"percentile"`.
        precision_plan: layers that compute in float32 whatever the precision is, `{"name or glob": "float32"}`. A
            pattern is held against a layer's name, its path (`"block/conv"`) and those of the models that it is in.
            TensorRT may multiply them in TF32, unless the precision is `"fp32"`. Defaults to `None`.
        optimization_level: TensorRT's builder optimization level, 0 (fast build) to 5 (fast engine). Defaults to
            `None`: TensorRT's own default.
        refittable: whether the engine can take other weights of the same model in seconds, without a build. TensorRT's
            may be slower for it; ONNX Runtime's can always. Defaults to `False`.
        verify: whether an engine is compared with Keras before it is used. Defaults to `True`.
        fallback: `"keras"` runs the Keras model, with one warning that says why, where no engine can be had;
            `"raise"` raises instead. Defaults to `"keras"`.
        cache: a folder or an `EngineCache`; `True` is the user's cache, `None` no cache. Defaults to `True`.
        device: index of the GPU, or of several GPUs of one kind, which then share the batches of each call. Defaults
            to `0`.
        build: `"process"` builds in a process of its own, so that a builder that crashes or hangs is a `BuildError`
            and not the end of the program. Defaults to `"thread"`: in the thread that asks.
        build_timeout: seconds after which such a process is ended. Defaults to `None`: never.
        verbose: `"auto"`, 0 or 1, as in Keras: whether progress is shown, and a line says what was done. Defaults to
            `"auto"`.

    Raises:
        ValueError: if a value is not one of those named here.

    Example:
    >>> BuildOptions(precision="fp32", batch_sizes=(1, 8, 64)).batch_sizes
    (1, 8, 64)
    """

    precision: Precision | Literal["auto"] | None = None
    backend: BackendName = "auto"
    batch_sizes: Sequence[int] = (1, 32, 128)
    profiles: OptimizationProfile | None = None
    sample: Any = None
    optimization_level: int | None = None
    refittable: bool = False
    validation_data: Any = None
    accuracy_budget: float = 0.0
    monitor: str | Callable[[Any, Any], float] | None = None
    mode: Literal["auto", "min", "max"] = "auto"
    calibration_data: Any = None
    calibration_method: Literal["percentile", "entropy", "minmax"] = "percentile"
    precision_plan: Mapping[str, Literal["float32"]] | None = None
    verify: bool = True
    fallback: Literal["keras", "raise"] = "keras"
    cache: bool | str | os.PathLike[str] | EngineCache | None = True
    device: int | Sequence[int] = 0
    build: Literal["thread", "process"] = "thread"
    build_timeout: float | None = None
    verbose: Literal["auto", 0, 1] = "auto"

    def __post_init__(self) -> None:
        _choice("precision", self.precision, (None, "auto", *get_args(Precision)))
        _choice("mode", self.mode, ("auto", "min", "max"))
        if callable(self.monitor) and self.mode == "auto":
            raise ValueError(
                '`monitor` that is a callable needs `mode`: "min" where it is better as it is smaller, "max" where '
                "larger. Received: mode='auto'"
            )
        if (self.precision == "auto") != (self.validation_data is not None):
            raise ValueError(
                "`precision='auto'` and `validation_data` go together: the metric on them chooses. Received: "
                f"precision={self.precision!r}, validation_data={'some' if self.validation_data is not None else None}"
            )
        budget = self.accuracy_budget
        if isinstance(budget, bool) or not isinstance(budget, Real) or not budget >= 0:
            raise ValueError(f"`accuracy_budget` is 0 or more. Received: accuracy_budget={budget!r}")
        judging = {"accuracy_budget": budget, "monitor": self.monitor, "mode": self.mode}
        idle = [name for name, value in judging.items() if value not in (0, None, "auto")]
        if self.precision != "auto" and idle:
            raise ValueError(
                f"`{idle[0]}` is for precision='auto' alone: no other is judged by a metric. Received: "
                f"precision={self.precision!r}, {idle[0]}={judging[idle[0]]!r}"
            )
        _choice("backend", self.backend, get_args(BackendName))
        _choice("calibration_method", self.calibration_method, ("percentile", "entropy", "minmax"))
        plan = self.precision_plan
        if plan is not None and not (
            isinstance(plan, Mapping) and all(isinstance(key, str) and plan[key] == "float32" for key in plan)
        ):
            raise ValueError(
                f"`precision_plan` says which layers are float32, as {{'block5/*': 'float32'}}. Received: {plan!r}"
            )
        _choice("fallback", self.fallback, ("keras", "raise"))
        _choice("build", self.build, ("thread", "process"))
        if self.build_timeout is not None and (self.build != "process" or not self.build_timeout > 0):
            raise ValueError(
                '`build_timeout` is a number of seconds above 0, for build="process". '
                f"Received: build_timeout={self.build_timeout!r}, build={self.build!r}"
            )
        _choice("verbose", self.verbose, ("auto", 0, 1))
        _choice("refittable", self.refittable, (True, False))
        _choice("verify", self.verify, (True, False))
        _choice("optimization_level", self.optimization_level, (None, 0, 1, 2, 3, 4, 5))
        sizes = tuple(self.batch_sizes) if isinstance(self.batch_sizes, Iterable) else ()
        if len(sizes) != 3 or not all(type(size) is int for size in sizes) or not 0 < sizes[0] <= sizes[1] <= sizes[2]:
            raise ValueError(
                "`batch_sizes` are three whole numbers, 0 < smallest <= most usual <= largest, such as (1, 32, 128). "
                f"Received: batch_sizes={self.batch_sizes}"
            )
        object.__setattr__(self, "batch_sizes", sizes)
        if not isinstance(self.profiles, OptimizationProfile | None):
            raise ValueError(f"`profiles` is a keras_trt.OptimizationProfile. Received: profiles={self.profiles!r}")
        place = self.cache
        folder = place is None or isinstance(place, bool | os.PathLike) or (isinstance(place, str) and bool(place))
        if not folder and not hasattr(place, "get_record"):
            raise ValueError(f"`cache` is a folder, an EngineCache, True or None. Received: cache={place!r}")
        devices = tuple(self.device) if isinstance(self.device, list | tuple) else (self.device,)
        numbers = all(type(one) is int and one >= 0 for one in devices)
        if not devices or not numbers or len(set(devices)) < len(devices):
            raise ValueError(
                "`device` is the index of a GPU, 0 or more, or a list of the indices of several. "
                f"Received: device={self.device!r}"
            )

    @property
    def devices(self) -> tuple[int, ...]:
        """The indices of the GPUs."""
        return (self.device,) if isinstance(self.device, int) else tuple(self.device)

    def ensure_repeatable(self) -> None:
        """Refuse data that can be read but once, for a model of which engines are made again and again.

        Raises:
            ValueError: for a generator or another iterator, of which the next engine would get what is left.
        """
        for name in ("calibration_data", "validation_data"):
            if isinstance(data := getattr(self, name), Iterator):
                raise ValueError(
                    f"`{name}` is read again for the engine of other weights, which no iterator can be: give "
                    f"arrays, a dataset or a keras.utils.PyDataset. Received: {name} of type {type(data).__name__}"
                )

    @classmethod
    def of(cls, options: BuildOptions | None, keywords: Mapping[str, Any]) -> BuildOptions:
        """Return `options` with `keywords` put over them.

        Args:
            options: the options to start from, or `None` for the defaults.
            keywords: values by option name.

        Raises:
            TypeError: if `options` is something else, or a keyword is not an option.
        """
        if not isinstance(options, BuildOptions | None):
            raise TypeError(f"`options` is a keras_trt.BuildOptions. Received: options={options!r}")
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(keywords) - set(known)):
            raise TypeError(
                f"Unknown option{'s' * (len(unknown) > 1)} {', '.join(unknown)}. Known are {', '.join(known)}."
            )
        return replace(options or cls(), **keywords)


def precision_of(options: BuildOptions, default: Precision) -> Precision:
    """Return the precision to start with: the default of a backend where none is asked for by name."""
    return default if options.precision is None or options.precision == "auto" else options.precision


def _choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in allowed):
        raise ValueError(f"`{name}` is one of {', '.join(map(repr, allowed))}. Received: {name}={value!r}")


def shapes_for(
    inputs: Sequence[TensorSpec], options: BuildOptions, sample: Sequence[Any] | None
) -> tuple[ShapeRange, ...]:
    """Return the range of shapes to build for, one for each input.

    Args:
        inputs: what the model takes.
        options: `profiles` says all; else `batch_sizes` say the batch, unless the model fixes it.
        sample: flat inputs, for the sizes of axes that the model leaves open.

    Raises:
        ValueError: for an axis of unknown size, which is named; for a profile that does not fit the model.
    """
    for unknown in unknown_sizes(inputs, options, sample):
        raise ValueError(unknown.problem)
    if options.profiles is not None:
        return tuple(range_of(spec, options.profiles) for spec in inputs)
    ranges = []
    for i, spec in enumerate(inputs):
        open_sizes = spec.shape if sample is None else sample[i].shape
        rest = tuple(size if known is None else known for known, size in zip(spec.shape, open_sizes, strict=True))[1:]
        batch = _fixed_batches(inputs) * 3 or options.batch_sizes
        ranges.append(ShapeRange(*((size, *rest) for size in batch)))
    return tuple(ranges)


def unknown_sizes(
    inputs: Sequence[TensorSpec], options: BuildOptions, sample: Sequence[Any] | None
) -> Iterator[Finding]:
    """Yield each axis whose size neither the model nor the user says, and batch sizes that contradict each other.

    Args:
        inputs: what the model takes.
        options: `profiles` say all sizes.
        sample: flat inputs, or `None`.
    """
    if options.profiles is not None:
        return
    cost = "no engine is built: `accelerate` raises a ValueError"
    fixed = _fixed_batches(inputs)
    if len(fixed) > 1:
        yield Finding(
            f"The model's inputs fix different batch sizes, {fixed}: it can take no batch.", None, "refused", cost
        )
    for spec in inputs:
        for axis in range(1, len(spec.shape)):
            if spec.shape[axis] is None and sample is None:
                yield Finding(
                    f"Axis {axis} of input '{spec.name}' has no fixed size: shape {spec.shape}. Give its range, "
                    f"profiles=OptimizationProfile({{{spec.name!r}: ShapeRange(min=…, opt=…, max=…)}}), or a batch "
                    "of the size to build for, sample=….",
                    spec.name,
                    "refused",
                    cost,
                )


def _fixed_batches(inputs: Sequence[TensorSpec]) -> list[int]:
    return sorted({spec.shape[0] for spec in inputs if spec.shape[0] is not None})


def range_of(spec: TensorSpec, profile: OptimizationProfile) -> ShapeRange:
    """Return the range of an input in a profile.

    Raises:
        ValueError: if there is none, or one that the input does not have.
    """
    found = profile.shapes.get(spec.name)
    if found is None:
        raise ValueError(
            f"`profiles` misses the input '{spec.name}' of shape {spec.shape}. Received: {sorted(profile.shapes)}."
        )
    for shape in (found.min, found.opt, found.max):
        if len(shape) != len(spec.shape) or not all(
            known is None or known == size for known, size in zip(spec.shape, shape, strict=True)
        ):
            raise ValueError(f"The input '{spec.name}' has the shape {spec.shape}. Received in `profiles`: {found}.")
    return found
