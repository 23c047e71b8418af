"""New weights into a plan. What the parser has made of a weight, TensorRT 10 and later work out; 8.6 does not."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ...errors import BuildError, KerasTRTError, PlanError
from .flavor import Flavor


def refitted(flavor: Flavor, plan: bytes, graph: bytes, names: Collection[str]) -> bytes:
    """Return a plan with the weights of a graph.

    Args:
        flavor: the TensorRT that built the plan. Its GPU must be current.
        plan: a plan that was built refittable.
        graph: the typed graph that it was built of, with other values of some initializers.
        names: these initializers.

    Raises:
        PlanError: if the plan cannot be loaded.
        BuildError: if not all of them can be changed.
    """
    trt = flavor.trt
    with flavor.log() as log:
        try:
            runtime = trt.Runtime(flavor.logger)
            engine = runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise PlanError(f"{flavor.title} could not load the plan to refit.", log="\n".join(log))
            if not engine.refittable:
                raise BuildError(f"{flavor.title} built this engine so that it cannot be refitted.")
            refitter = trt.Refitter(engine, flavor.logger)
            if hasattr(trt, "OnnxParserRefitter"):
                parser_refitter = trt.OnnxParserRefitter(refitter, flavor.logger)
                if not parser_refitter.refit_from_bytes(graph):
                    raise BuildError(f"{flavor.title} could not refit the engine from the graph.")
            else:
                alive = _set_weights(flavor, refitter, graph, names)  # noqa: F841 (TensorRT copies nothing until below)
            if missing := refitter.get_missing_weights():
                raise BuildError(f"{flavor.title} misses weights to refit the engine: {', '.join(missing[:5])}")
            if not refitter.refit_cuda_engine():
                raise BuildError(f"{flavor.title} could not refit the engine.")
            # What was refitted is loaded, never refitted again: it need not be written so that it could be.
            plan = engine.serialize()
            if plan is None:
                raise BuildError(f"{flavor.title} could not write the refitted engine.")
            return bytes(plan)
        except KerasTRTError as error:
            if isinstance(error, BuildError) and not error.log:
                raise BuildError(str(error), log="\n".join(log)) from error
            raise
        except (TypeError, RuntimeError, ValueError, MemoryError) as error:  # what pybind makes of C++'s errors
            raise BuildError(f"{flavor.title} failed to refit: {error!r}", log="\n".join(log)) from error


def _set_weights(flavor: Flavor, refitter: Any, graph: bytes, names: Collection[str]) -> list[Any]:
    """Give a refitter the weights by their names, which the parser takes from the graph's initializers.

    Returns:
        What must live until the engine is refitted.

    Raises:
        BuildError: if the engine has weights that no initializer is, or lacks one that changes: the parser has
            computed other weights of it, which would stay as they were.
    """
    import onnx

    trt = flavor.trt
    initializers = {tensor.name: tensor for tensor in onnx.load_from_string(graph).graph.initializer}
    known = set(refitter.get_all_weights())
    if unknown := sorted((known - set(initializers)) | ((set(names) & set(initializers)) - known)):
        raise BuildError(
            f"{flavor.title} has made other weights of {len(unknown)} of those that change, "
            f"such as '{unknown[0]}', and cannot refit them."
        )
    arrays = []
    for name in known:
        array = onnx.numpy_helper.to_array(initializers[name])
        arrays.append(array)
        weights = trt.Weights(array)
        if not refitter.set_named_weights(name, weights):
            raise BuildError(f"{flavor.title} refused other values of '{name}'.")
    return arrays
