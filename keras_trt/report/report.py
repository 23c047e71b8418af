"""What was done to get an engine, for people and for programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .._files import replacing
from ..verification.verify import Difference
from .html import page
from .layers import LayerReport

_HOW = {
    "built": "engine built",
    "cache": "engine found in the cache, nothing exported or built",
    "refitted": "an engine in the cache refitted with the weights of now, nothing built",
    "artifact": "engine loaded from its file, nothing built",
}


@dataclass(frozen=True)
class Candidate:
    """A precision that `precision="auto"` tried.

    Attributes:
        precision: its name; `"keras"` is the model itself.
        metric: the monitored metric on the validation data, where there is an engine.
        milliseconds: median time of a batch of the usual size, where it was measured.
        outcome: `"chosen"`, or why it is not.
    """

    precision: str
    metric: float | None
    milliseconds: float | None
    outcome: str

    def __str__(self) -> str:
        metric = "" if self.metric is None else f"{self.metric:.6g}"
        taken = "" if self.milliseconds is None else f"{self.milliseconds:.3f} ms"
        return f"  {self.precision:<6}{metric:>12}{taken:>14}  {self.outcome}"


@dataclass(frozen=True)
class Report:
    """What a `TRTModel` runs, and how it came to be.

    Attributes:
        backend: `"tensorrt"`, `"tensorrt_rtx"`, `"onnxruntime"`, or `"keras"` where the Keras model itself runs.
        title: the backend with its version, for people.
        device: `"cpu"`, or as `"cuda:0"`.
        device_name: product name of the device.
        precision: the precision that runs, as `"fp16"`; `"keras"` where Keras runs.
        origin: `"built"`; `"cache"`; `"refitted"` where an engine in the cache was given other weights; `"artifact"`
            where the plan or graph of a loaded file runs as it is; `"keras"` where there is no engine.
        seconds: wall time of each step that was taken, by name: `keys`, `weights` (put into a stored export), `export`,
            `calibrate`, `precision`, `refit`, `build`, `load`, `verify`, and `total`.
        differences: the engine against Keras, per output, when it was verified; empty where it was not.
        compared_on: the rows that they are of: `"sample"`, `"calibration data"`, or `"random rows"` where none were
            given, which show less; empty where the engine was not verified.
        rows_independent: whether a row's answer does not depend on its batch, so that batches may be regrouped.
        fell_back: why each thing that was tried first does not run, in order.
        kept_float32: the layers that compute in float32 although the engine's precision is lower, since numbers in
            them leave its range, or `precision_plan` says so.
        candidates: what `precision="auto"` tried, in order.
        on_cpu: the layers that TensorFlow runs on the CPU in front of the engine: those that take strings or look
            values up.
    """

    backend: str
    title: str
    device: str
    device_name: str
    precision: str
    origin: Literal["built", "cache", "refitted", "artifact", "keras"]
    seconds: Mapping[str, float] = field(default_factory=dict)
    differences: tuple[Difference, ...] = ()
    compared_on: str = ""
    rows_independent: bool = False
    fell_back: tuple[str, ...] = ()
    kept_float32: tuple[str, ...] = ()
    on_cpu: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    measure: Callable[[], tuple[LayerReport, ...]] | None = field(default=None, repr=False, compare=False)

    @property
    def layers(self) -> tuple[LayerReport, ...]:
        """The engine by Keras layers, measured now: the time of a batch of the usual size, types, differences.

        Differences to float32 are those of ONNX Runtime on the CPU, which runs float16 graphs in float32 on rounded
        weights; there are none where it has no such type (bf16, fp8), and where the Keras model has changed since.

        Raises:
            RuntimeError: where there is no engine, or it is closed or loaded from a file.
            EngineLoadError: if the engine cannot be measured.
        """
        if self.measure is None:
            raise RuntimeError("There is no engine of a Keras model here that could be told layer by layer.")
        return self.measure()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what runs, layer by layer, with plots, as one HTML file.

        Args:
            path: of the file.

        Raises:
            RuntimeError, EngineLoadError: as `layers`.

        Example:
        >>> fast.report().save("report.html")
        """
        lines = [*str(self).splitlines(), *self.fell_back, *map(str, self.differences)]
        text = page(f"{self.title}, {self.precision}", lines, self.layers)
        with replacing(Path(path)) as file:
            file.write(text.encode())

    def __str__(self) -> str:
        took = f"{self.seconds.get('total', 0.0):.2f} s"
        if self.origin == "keras":
            return "keras_trt: Keras runs this model."
        how = _HOW[self.origin]
        front = f", behind {', '.join(self.on_cpu)} on the CPU" if self.on_cpu else ""
        kept = f" but for {', '.join(self.kept_float32)} in float32" if self.kept_float32 else ""
        line = f"keras_trt: {self.title} on {self.device_name}, {self.precision}{kept}{front}: {how} ({took})."
        if self.compared_on == "random rows":
            line += " Compared with Keras on random rows: `sample=` would show more."
        return "\n".join([line, *map(str, self.candidates)])
