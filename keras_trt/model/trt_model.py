"""`TRTModel`: the engine behind the face of a Keras model."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, Protocol

import numpy as np

from .. import artifact
from ..cuda import is_on_gpu, wait_for_owner
from ..errors import ExportError, StaleEngineError
from ..graph_source import GraphSource
from ..inputs import standardize_out
from ..report.measure import Measurement
from ..report.report import Report
from ..runtime import SLOTS, Session, Usage, deliver
from ..source import own
from ..specs import TensorSpec, flatten
from .call import Call
from .evaluation import Evaluator
from .face import ClosedError, KerasFace
from .predictor import Predictor


class Following(Protocol):
    """Keeps an engine true to a model that changes, which `compile_trt` promises."""

    def may_run(self, fast: TRTModel) -> bool:
        """Return whether the engine is that of the model as it is now, maybe after a change of engines."""

    def end(self) -> None:
        """Leave the model as it was."""


class TRTModel(KerasFace):
    """A drop-in for a Keras model's inference, made by `accelerate`.

    The engine is a snapshot: later changes of the Keras model do not reach it, unless `compile_trt` made it. What
    the engine cannot honour (as `training=True`, or shapes that it was not built for) is run by the Keras model as it
    is then. May be called from many threads at once.

    Args:
        source: the Keras model, or the `GraphSource` that stands for it.
        predictor: runs its engine as Keras's `predict` would; `None` where Keras runs the model.
        session: the engine, to be closed; `None` where there is none.
        report: how it came to be.
        contents: gives what `save` writes; `None` where there is no engine.

    Example:
    >>> fast = keras_trt.accelerate(model)
    >>> fast.predict(images)
    """

    def __init__(
        self,
        source: Any,
        predictor: Predictor | None,
        session: Session | None,
        report: Report,
        contents: Callable[[], artifact.Contents] | None,
    ) -> None:
        self._source = source
        self._pid = os.getpid()
        self._closed = False
        self._following: Following | None = None
        self._changing = threading.RLock()
        self._workers: ThreadPoolExecutor | None = None
        self.stop_predicting = False  # a callback may set it, as on a Keras model
        self._put(predictor, session, report, contents)

    @property
    def precision(self) -> str:
        """The precision that runs, by the name that `accelerate` takes; `"keras"` where Keras runs the model."""
        return self._report.precision

    @property
    def backend(self) -> str:
        """What runs: `"tensorrt"`, `"tensorrt_rtx"`, `"onnxruntime"` or `"keras"`."""
        return self._report.backend

    @property
    def device(self) -> str:
        """Where it runs: `"cpu"`, or as `"cuda:0"`."""
        return self._report.device

    def report(self) -> Report:
        """Return what runs and how it came to be."""
        return self._report

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Literal["auto", 0, 1, 2] = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> Any:
        """Return predictions, as `keras.Model.predict` does.

        Where rows do not depend on each other and nobody watches single batches through `callbacks`, arrays are
        run in the engine's own batches; `batch_size` then only counts the steps of the progress bar.

        Args:
            x: arrays or tensors, or a list or dict of them, each `(rows, …)`; a `tf.data.Dataset`; a generator of
                tuples; a `keras.utils.PyDataset`.
            batch_size: rows in a batch. Defaults to 32. Not for data that comes in batches.
            verbose: `"auto"`, 0, 1 or 2, as in Keras. Defaults to `"auto"`.
            steps: stop after so many batches. Defaults to `None`: all.
            callbacks: a list of `keras.callbacks.Callback`.

        Returns:
            numpy arrays `(rows, …)` in the nesting of the model's outputs.

        Raises:
            InputError: if the data does not fit the model.
            RuntimeError: after `close`, or in a process forked from the one that made it.
        """
        with self._engine() as (predictor, _):
            if predictor is not None:
                owner = self if self._following is None else self._source
                return predictor.predict(owner, x, batch_size, verbose, steps, callbacks)
            keras_predict = own(self._source, "predict")
            return keras_predict(x, batch_size=batch_size, verbose=verbose, steps=steps, callbacks=callbacks)

    def predict_on_batch(self, x: Any, *, out: Any = None) -> Any:
        """Return predictions for one batch, as `keras.Model.predict_on_batch` does.

        Arrays on the engine's GPU (of CuPy, PyTorch, JAX, TensorFlow) are not brought to the host: what their owner has
        put on its stream is waited for.

        Args:
            x: arrays or tensors in the nesting of the model's inputs, each `(rows, …)`.
            out: arrays in the nesting of the outputs, with their shapes and types, on the host or on a GPU, that take
                the predictions; on the host they may lie over `x`, on a GPU not. Defaults to `None`: new ones on the
                host.

        Returns:
            numpy arrays `(rows, …)` in the nesting of the model's outputs; or `out`.

        Raises:
            InputError: if the data, or `out`, does not fit the model.

        Example:
        >>> fast.predict_on_batch(images, out=logits)   # both torch tensors on the GPU
        """
        with self._engine() as (predictor, _):
            if predictor is not None:
                return predictor.predict_on_batch(x, out)
            outputs = own(self._source, "predict_on_batch")(x)
            if out is None:
                return outputs
            arrays = [np.asarray(one) for one in flatten(outputs)]
            specs = [TensorSpec(f"output_{i}", one.shape, str(one.dtype)) for i, one in enumerate(arrays)]
            deliver(arrays, standardize_out(out, specs, len(arrays[0])))
            return out

    def __call__(self, x: Any, training: bool | None = False, **keywords: Any) -> Any:
        """Return predictions for one batch, of the kind that was given.

        Args:
            x: arrays or tensors in the nesting of the model's inputs, each `(rows, …)`.
            training: `True` is run by the Keras model. Defaults to `False`.
            **keywords: other arguments of the model's `call`, such as `mask`; with any, the Keras model runs.

        Returns:
            `tf.Tensor`s where a `tf.Tensor` was given, likewise tensors of Keras's own backend, else numpy arrays.

        Raises:
            InputError: if the data does not fit the model.
        """
        leaves = flatten(x)
        symbolic = any(_is_symbolic(leaf) for leaf in leaves)
        with self._engine() as (predictor, _):
            if predictor is not None and not (training or keywords or symbolic):
                return self._as_given(predictor.predict_on_batch(x), leaves)
        if predictor is not None and not isinstance(self._source, GraphSource):
            why = "training=True" if training else f"`{next(iter(keywords))}`" if keywords else "a symbolic tensor"
            predictor.warn_once(why, f"A call with {why} is run by the Keras model: the engine is its inference alone.")
        if training is not None and getattr(self._source, "_call_has_training_arg", True):
            keywords["training"] = training
        outputs = self._source(x, **keywords)
        return outputs if symbolic else self._as_given(outputs, leaves)

    def submit(self, x: Any) -> Future[Any]:
        """Start predicting one batch and return at once. Batches that are under way together share the engine's slots.

        What the owner of an array on the GPU has put on its stream is waited for.

        Args:
            x: arrays or tensors in the nesting of the model's inputs, each `(rows, …)`. They must not be changed before
                the result is there.

        Returns:
            A `concurrent.futures.Future` of what `predict_on_batch` returns or raises.

        Raises:
            RuntimeError: after `close`, or in a process forked from the one that made it.

        Example:
        >>> futures = [fast.submit(batch) for batch in batches]
        >>> predictions = [future.result() for future in futures]
        """
        self._check_usable()
        for leaf in flatten(x):
            if is_on_gpu(leaf):
                wait_for_owner(leaf)  # in this thread, whose stream it is
        with self._changing:
            if self._workers is None:
                # One more than the usual slots: while the others wait for the GPU, it brings the next rows into shape.
                self._workers = ThreadPoolExecutor(SLOTS + 1, thread_name_prefix="keras_trt-submit")
            return self._workers.submit(self.predict_on_batch, x)

    async def predict_async(self, x: Any) -> Any:
        """Return predictions for one batch without blocking the event loop of `asyncio`.

        Args:
            x: as for `submit`.

        Returns:
            What `predict_on_batch` returns.

        Raises:
            InputError: if the data does not fit the model.
            RuntimeError: after `close`.

        Example:
        >>> predictions = await fast.predict_async(batch)
        """
        return await asyncio.wrap_future(self.submit(x))

    def memory(self) -> list[Usage]:
        """Return what the engine holds on each GPU, and on the host for it: see `Usage`.

        Returns:
            One `Usage` for each GPU, all sizes in bytes; nothing where the CPU runs the engine, or Keras the model.

        Example:
        >>> sum(use.context_bytes for use in fast.memory())
        """
        self._check_usable()
        return [] if self._session is None else self._session.usage()

    def save(self, filepath: str | os.PathLike[str], *, key: bytes | None = None) -> None:
        """Write the engine and the graph that it was built of to one file, which `keras_trt.load` reads.

        It is read without TensorFlow and Keras. A drop-in that was itself loaded keeps the plans of its file and adds
        the one that runs here: so one file gets plans for several GPUs. An existing file is replaced only by a
        complete one.

        Args:
            filepath: where to write, `….ktrt`.
            key: a secret that signs the file (HMAC-SHA256): `load` with the same key takes no file without it.
                Defaults to `None`: not signed.

        Raises:
            ExportError: if no engine runs the model, or TensorFlow runs a part of it in front of the engine.
            StaleEngineError: of a model compiled with `on_weight_change="keras"` or `"raise"` that has changed.
            CacheError: if the graph is in the engine cache no more.
            OSError: if the file cannot be written.
            ValueError: if its name does not end in `.ktrt`.
            RuntimeError: after `close`.

        Example:
        >>> keras_trt.accelerate(model).save("model.ktrt")
        """
        with self._engine() as (predictor, _):
            if self._contents is None:
                why = "; ".join(self._report.fell_back)
                raise ExportError(f"Keras runs '{self._source.name}', so there is no engine to save: {why}")
            if predictor is None:
                raise StaleEngineError(
                    f"The engine of '{self.name}' is not that of its weights of now: nothing is saved."
                )
            artifact.write(filepath, self._contents(), key)

    def close(self) -> None:
        """Free the engine and its memory, after all calls that were made. Further calls raise `RuntimeError`."""
        with self._changing:
            workers = self._workers
        if workers is not None:
            workers.shutdown()  # what was submitted is still answered
        with self._changing:
            self._closed = True
            session, finalizer = self._session, self._finalizer
        if self._following is not None:
            self._following.end()
        if session is not None and finalizer is not None and finalizer.detach() and os.getpid() == self._pid:
            session.close()

    def __enter__(self) -> TRTModel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> Any:
        raise TypeError(
            "A TRTModel is not copied or pickled: its engine lies in this process. Pass on the path of a file that "
            "`save` has written, or the Keras model, and call keras_trt.load or accelerate there."
        )

    def __repr__(self) -> str:
        runs = "closed" if self._closed else f"{self.backend}, {self.precision}, {self.device}"
        return f"<TRTModel of {self._source.name!r}: {runs}>"

    def _as_given(self, outputs: Any, given: Sequence[Any]) -> Any:
        """Return `outputs` as tensors if any of `given` is one of TensorFlow or of Keras's backend, else as arrays."""
        tensorflow, keras = sys.modules.get("tensorflow"), sys.modules.get("keras")
        make = to_numpy = np.asarray
        if keras is not None:
            to_numpy = keras.ops.convert_to_numpy
            make = keras.ops.convert_to_tensor if any(map(keras.ops.is_tensor, given)) else to_numpy
        if tensorflow is not None and any(isinstance(leaf, tensorflow.Tensor) for leaf in given):
            make = tensorflow.convert_to_tensor

        def convert(node: Any) -> Any:
            if isinstance(node, dict):
                return {key: convert(child) for key, child in node.items()}
            if isinstance(node, list | tuple):
                children = map(convert, node)
                return type(node)(*children) if hasattr(node, "_fields") else type(node)(children)
            return make(node)

        return convert(outputs)

    def _put(
        self,
        predictor: Predictor | None,
        session: Session | None,
        report: Report,
        contents: Callable[[], artifact.Contents] | None,
    ) -> None:
        self._predictor, self._session, self._report, self._contents = predictor, session, report, contents
        has_loss = not isinstance(self._source, GraphSource)
        self._evaluator = Evaluator(self._source, predictor.signature) if predictor is not None and has_loss else None
        # At exit too, while CUDA is still there.
        self._finalizer = weakref.finalize(self, _close_session, session, self._pid) if session else None

    def _adopt(self, other: TRTModel, *, same_structure: bool) -> None:
        """Run another drop-in's engine from here on. The own one is freed when the calls under way end.

        Args:
            other: is not used any more.
            same_structure: whether it is of the same model but for the values of weights.
        """
        with self._changing:
            for finalizer in (self._finalizer, other._finalizer):
                if finalizer is not None:
                    finalizer.detach()
            if self._session is not None:
                self._session.retire()
            evaluator, predictor = self._evaluator, self._predictor
            self._put(other._predictor, other._session, other._report, other._contents)
            if same_structure and predictor is not None and self._predictor is not None:
                self._predictor.takes_the_place_of(predictor)
            new = self._evaluator
            if same_structure and evaluator is not None and new is not None and evaluator.signature == new.signature:
                self._evaluator = evaluator  # Keras need not trace its test function again

    def _seconds_a_call(self, calls: int = 20) -> float:
        """Return the median wall time of a call with one row; with more where the batch has a fixed size."""
        with self._engine():
            measure, session = self._report.measure, self._session
            if session is None or not isinstance(measure, Measurement):
                raise RuntimeError("No engine that was made of a Keras model runs.")
            rows = measure.gate.rows(session)
            one = [array[:1] for array in rows]
            times = []
            for _ in range(calls):
                start = time.perf_counter()
                session.run(one if session.takes(one) is None else rows)
                times.append(time.perf_counter() - start)
        return statistics.median(times)

    def _engine(self) -> Call:
        """Hold the engine for one call: the one for the weights of now, where it follows them."""
        return Call(self)

    def _check_usable(self) -> None:
        self._check_process()
        if self._closed:
            raise ClosedError(self)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                "This TRTModel was made in another process, and this one was forked from it: neither CUDA nor "
                "TensorFlow survives a fork. Call keras_trt.accelerate in the new process (the engine comes from the "
                "cache), or start processes with the method 'spawn' and let each call it."
            )


def _is_symbolic(leaf: Any) -> bool:
    """Tell whether a leaf has no values: a Keras tensor, or a tensor inside a `tf.function`."""
    module = type(leaf).__module__
    if module.startswith("keras."):
        return type(leaf).__name__ == "KerasTensor"
    return module.startswith("tensorflow.") and hasattr(leaf, "graph") and not hasattr(leaf, "numpy")


def _close_session(session: Session, pid: int) -> None:
    if os.getpid() == pid:  # in a forked child the GPU's memory is not ours to free
        session.close(cut_short=True)  # at exit a daemon thread may still be in a call, of hours perhaps
