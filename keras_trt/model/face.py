"""What a `TRTModel` shows of the Keras model that it stands for, and Keras's `evaluate` on its engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from ..report.report import Report
from ..source import own


class ClosedError(RuntimeError):
    """What a call of a closed drop-in raises; it says of which."""

    def __init__(self, closed: KerasFace) -> None:
        super().__init__("This TRTModel is closed.")
        self.closed = closed


class KerasFace:
    """The part of `keras.Model` that concerns inference, beside `predict`. Part of `TRTModel`."""

    _source: Any

    @property
    def name(self) -> str:
        """The Keras model's name."""
        return str(self._source.name)

    @property
    def inputs(self) -> Any:
        """The symbolic inputs of a Sequential or Functional model, as `keras.Model.inputs`."""
        return self._source.inputs

    @property
    def outputs(self) -> Any:
        """The symbolic outputs of a Sequential or Functional model, as `keras.Model.outputs`."""
        return self._source.outputs

    @property
    def input_shape(self) -> Any:
        """Shapes of the inputs in their nesting, as `keras.Model.input_shape`."""
        return self._source.input_shape

    @property
    def output_shape(self) -> Any:
        """Shapes of the outputs in their nesting, as `keras.Model.output_shape`."""
        return self._source.output_shape

    @property
    def metrics(self) -> list[Any]:
        """The Keras model's metrics, which `evaluate` resets and updates."""
        return list(self._source.metrics)

    @property
    def metrics_names(self) -> list[str]:
        """Their names, in the order in which `evaluate` returns them."""
        return list(self._source.metrics_names)

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Literal["auto", 0, 1, 2] = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Any = None,
        return_dict: bool = False,
        **keywords: Any,
    ) -> Any:
        """Return the loss and the metrics that the Keras model is compiled with, as `keras.Model.evaluate` does.

        Keras's trainer does everything but the forward pass: also weights, masks of metrics, callbacks, `steps`, a
        `test_step`, `compute_loss` or `compute_metrics` of the model's own class. It updates the metrics of the Keras
        model, so that one evaluation of it can run at a time. A model whose loss needs more of the forward pass than
        its outputs (masked outputs, `add_loss` in layers, activity regularizers) is evaluated by Keras, with one
        `FallbackWarning`.

        Args:
            x: inputs in any form that `predict` takes; datasets give `(x, y)` or `(x, y, sample_weight)`.
            y: targets `(rows, …)` in the nesting of the outputs. Not for datasets.
            batch_size: rows in a batch. Defaults to 32. Not for data that comes in batches.
            verbose: `"auto"`, 0, 1 or 2, as in Keras. Defaults to `"auto"`.
            sample_weight: weights of the rows `(rows,)` or of their steps `(rows, steps)`. Defaults to `None`.
            steps: stop after so many batches. Defaults to `None`: all.
            callbacks: a list of `keras.callbacks.Callback`.
            return_dict: whether to return a dict by name. Defaults to `False`: a list, or the loss alone.
            **keywords: what Keras takes beside these.

        Returns:
            As Keras: floats.

        Raises:
            InputError: if the inputs do not fit the model.
            ValueError: if the model is not compiled, or what Keras says of targets and weights.

        Example:
        >>> fast.evaluate(images, labels, return_dict=True)
        {'loss': 0.21, 'accuracy': 0.93}
        """
        arguments = {
            "x": x,
            "y": y,
            "batch_size": batch_size,
            "verbose": verbose,
            "sample_weight": sample_weight,
            "steps": steps,
            "callbacks": callbacks,
            "return_dict": return_dict,
            **keywords,
        }
        return self._test("evaluate", **arguments)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False) -> Any:
        """Return the loss and the metrics of one batch, as `keras.Model.test_on_batch` does.

        Args:
            x: inputs `(rows, …)` in the nesting of the model's.
            y: targets `(rows, …)`.
            sample_weight: weights of the rows. Defaults to `None`.
            return_dict: whether to return a dict by name. Defaults to `False`.

        Returns:
            As Keras: floats.

        Raises:
            InputError: if the inputs do not fit the model.
            ValueError: if the model is not compiled.
        """
        arguments = {"x": x, "y": y, "sample_weight": sample_weight, "return_dict": return_dict}
        return self._test("test_on_batch", **arguments)

    def summary(
        self,
        line_length: int | None = None,
        positions: Sequence[float] | None = None,
        print_fn: Callable[..., Any] | None = None,
        expand_nested: bool = False,
        show_trainable: bool = False,
        layer_range: Sequence[str] | None = None,
    ) -> None:
        """Print the Keras model's own summary; below it what the engine makes of its layers, measured now.

        A piece of an engine may do the work of several layers; its time is that of the first. Times are of a batch of
        the usual size: see `report().layers`.

        Args: as those of `keras.Model.summary`.
        """
        if hasattr(self._source, "summary"):  # not where it was loaded from a file
            self._source.summary(line_length, positions, print_fn, expand_nested, show_trainable, layer_range)
        report = self.report()
        lines = [str(report)]
        if report.measure is not None:
            rows = [("Keras layer", "type", "engine's types", "ms", "pieces", "with")]
            rows += [
                (
                    one.layer or "(model)",
                    one.kind,
                    ", ".join(one.types),
                    f"{one.microseconds / 1e3:.3f}",
                    str(len(one.pieces)),
                    ", ".join(one.fused_with),
                )
                for one in report.layers
            ]
            widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
            lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        (print_fn or print)("\n".join(lines))

    def report(self) -> Report:
        """Return what runs and how it came to be."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if hasattr(type(self), name):
            raise AttributeError(f"The model behind this TRTModel has no `{name}`.")  # subclassed, or from a file
        if not name.startswith("_") and hasattr(type(self._source), name):
            raise AttributeError(
                f"A TRTModel is for inference and has no `{name}`: use that of the Keras model it was made from."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _test(self, method: str, /, *arguments: Any, **keywords: Any) -> Any:
        with self._engine() as (predictor, evaluator):
            if evaluator is None and not hasattr(self._source, method):
                raise NotImplementedError(
                    f"'{self.name}' was loaded from a file, which holds its inference alone: `{method}` needs the "
                    "loss and the metrics of the Keras model."
                )
            if evaluator is not None:
                return evaluator.run(method, predictor, *arguments, **keywords)
            return own(self._source, method)(*arguments, **keywords)

    def _engine(self) -> Any:
        raise NotImplementedError
