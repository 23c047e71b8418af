"""`find_precision_plan`: which Keras layers break a precision."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

from .. import backends, source
from ..errors import PrecisionError, VerificationError
from ..export import export
from ..export.signature import input_signature
from ..head import split
from ..loading import keras_model
from ..options import BuildOptions, precision_of, shapes_for
from ..verification.gate import Gate, user_sample
from .engines import Engines, cache_of
from .ladder import Rung, lacks, nodes_by_layer, planned
from .wanted import Wanted

_logger = logging.getLogger("keras_trt")


def find_precision_plan(
    model: Any, *, options: BuildOptions | None = None, **keywords: Any
) -> dict[str, Literal["float32"]]:
    """Return the layers that must compute in float32 for an engine in half precision to be right.

    Engines are built with more or fewer layers in float32 and compared with Keras, as `accelerate` does it, until
    the layers that matter are found by bisection: about log2(layers) engines for each. They are not kept; what TensorRT
    measured while it built them is, in the cache.

    Args:
        model: as for `accelerate`.
        options: a `BuildOptions`. Defaults to `None`: its defaults.
        **keywords: fields of `BuildOptions`, put over `options`. `precision` is `"fp16"`, which is also what it is by
            default, or `"bf16"`. A `precision_plan` is where the search starts. A `sample` of real rows shows most.

    Returns:
        A plan as `accelerate(precision_plan=…)` takes it; empty where the precision is right as it is.

    Raises:
        VerificationError: if the engine differs from Keras with all layers in float32 too, or the model answers with
            nothing that could be compared.
        PrecisionError: if the backend lacks the precision.
        ExportError, BuildError, EngineLoadError: if no engine can be had.
        ValueError: for another precision.

    Example:
    >>> plan = keras_trt.find_precision_plan(model, sample=images)
    >>> fast = keras_trt.accelerate(model, precision="fp16", precision_plan=plan)
    """
    chosen = BuildOptions.of(options, keywords)
    precision = precision_of(chosen, "fp16")
    if precision not in ("fp16", "bf16"):
        raise ValueError(f"`precision` is 'fp16' or 'bf16' here. Received: precision={chosen.precision!r}")
    model = keras_model(model)
    source.ensure_built(model, chosen.sample)
    backend, _ = backends.choose(chosen.backend, chosen.devices)
    if (why := lacks(backend, precision)) is not None:
        raise PrecisionError(f"{why}.")
    head = split(model)
    model = model if head is None else head.tail
    takes = input_signature(model, chosen.sample)
    given_rows = user_sample(chosen, takes if head is None else head.signature)
    rows = given_rows if given_rows is None or head is None else head(given_rows)
    ranges = shapes_for(takes.inputs, chosen, rows)
    gate = Gate(model, takes, ranges, given_rows, head)
    exported = export(model, chosen.sample)
    signature = exported.signature
    independent = not gate.rows_depend(signature)
    gate.ensure_answers(signature, independent=independent)
    layers = nodes_by_layer(model, exported)
    given = planned(chosen.precision_plan, model, exported)
    engines = Engines(backend, cache_of(chosen), chosen, model.name, keep=False)

    def failure(kept: Sequence[str]) -> str | None:
        keep = given.union(*(layers[name] for name in kept))
        graph = Rung(precision, keep).graph(exported)
        wanted = Wanted(graph, signature, precision, ranges, chosen.optimization_level, independent)
        try:
            engines.make(wanted, lambda session: gate.check(session, signature, precision), {}).session.close()
        except VerificationError as error:
            return str(error)
        return None

    if failure([]) is None:
        found: list[str] = []
    elif (why := failure(list(layers))) is not None:
        raise VerificationError(f"'{model.name}' differs from Keras with all layers in float32 too: {why}")
    else:
        found = needed(list(layers), lambda kept: failure(kept) is None)
    _logger.info("'%s' in %s needs float32 for %s", model.name, precision, found or "nothing")
    return {**(chosen.precision_plan or {}), **dict.fromkeys(found, "float32")}


def needed(names: Sequence[str], works: Callable[[Sequence[str]], bool]) -> list[str]:
    """Return names with which it works, none of which can be left out, in their order.

    Args:
        names: with all of them it works, and with none of them it does not.
        works: tells whether it works with some of them. With more of them it works no worse.
    """
    found: list[str] = []
    candidates = list(names)
    while True:
        low, high = 0, len(candidates)  # it works with `found` and the first `high` candidates, not with `low`
        while high - low > 1:
            middle = (low + high) // 2
            if works([*found, *candidates[:middle]]):
                high = middle
            else:
                low = middle
        found.append(candidates[high - 1])
        candidates = candidates[: high - 1]
        if not candidates or works(found):
            return [name for name in names if name in found]
