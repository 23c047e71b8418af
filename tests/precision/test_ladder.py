"""An engine that is wrong in half precision is caught, and what runs in its place is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from keras_trt import errors
from keras_trt.backends.onnxruntime import OnnxRuntimeBackend
from keras_trt.building import provision
from keras_trt.cache import EngineCache
from keras_trt.options import BuildOptions
from keras_trt.precision import tensor_types
from keras_trt.verification.verify import LIMITS

from .. import zoo
from ..models import accelerate, cancelling, floats, keras, kl, recorded, warns_once
from . import awkward
from .reference import ReferenceBackend, ReferenceEngine

Array = np.ndarray[Any, Any]


def provisioned(model: Any, backend: Any = None, cache: EngineCache | None = None, **options: Any) -> Any:
    chosen = BuildOptions(**{"precision": "fp16", "batch_sizes": (1, 4, 6), **options})
    return provision.provision(model, backend or ReferenceBackend(), chosen, cache)


def agrees(model: Any, ready: Any, x: Any) -> None:
    """Assert that the engine answers as the model, within the limit of what runs, and that this means something."""
    difference = zoo.relative_l2(np.asarray(model.predict(x, verbose=0)), ready.session.run([x])[0])
    assert difference < LIMITS[ready.report.precision]


def overflowing() -> Any:
    """Hidden numbers of a million, and answers of one."""
    inputs = keras.Input((6,))
    wide = kl.Dense(8, name="wide")
    x = kl.Dense(8, name="before", activation="tanh")(inputs)
    model = keras.Model(inputs, kl.Dense(3, name="after")(kl.Dense(8, name="narrow", activation="tanh")(wide(x))))
    wide.kernel.assign(wide.kernel * 1e5)
    narrow = model.get_layer("narrow")
    narrow.kernel.assign(narrow.kernel * 1e-5)
    return model


def test_the_layers_that_overflow_run_in_float32(cache: EngineCache) -> None:
    model = overflowing()
    ready = provisioned(model, cache=cache)
    assert ready.report.precision == "fp16"
    assert ready.report.kept_float32 == ("wide",)  # the weights of "narrow" are too small for float16 anyway
    (why,) = ready.report.fell_back
    assert "fp16" in why
    assert "leave the range of float16" in why
    assert "but for wide in float32" in str(ready.report)
    agrees(model, ready, floats(6)(9))
    warm = provisioned(model, cache=cache)
    assert warm.report.origin == "cache"
    assert (warm.report.kept_float32, warm.report.fell_back) == (ready.report.kept_float32, ready.report.fell_back)


def of_logarithms() -> Any:
    """What `overflowing` is, behind logarithms: of rows with negative numbers, as random ones are, nothing is left."""
    inputs = keras.Input((6,))
    return keras.Model(inputs, overflowing()(keras.ops.log(inputs)))


def test_rows_that_the_model_answers_with_nan_prove_nothing(cache: EngineCache) -> None:
    model = of_logarithms()
    for _ in range(2):
        with pytest.raises(errors.VerificationError, match="random rows with nothing but NaN or infinity in"):
            provisioned(model, cache=cache)
        provisioned(model, cache=cache, verify=False)  # its record is no verdict
    x = np.exp(floats(6)(9))
    ready = provisioned(model, cache=cache, sample=x)
    assert "leave the range of float16" in ready.report.fell_back[0]
    agrees(model, ready, x)


def test_a_loop_that_overflows_runs_in_float32() -> None:
    model = awkward.state_of_a_loop(1e3)
    ready = provisioned(model)
    assert ready.report.precision == "fp16"
    assert {"repeated", "repeated/inner"} <= set(ready.report.kept_float32)
    assert not [name for name in ready.report.kept_float32 if name.startswith("dense")]
    agrees(model, ready, floats(6)(9))


def test_the_error_is_raised_where_that_is_asked_for() -> None:
    with pytest.raises(errors.VerificationError, match="leave the range of float16"):
        provisioned(overflowing(), fallback="raise")


def detector(size: float) -> Any:
    """Boxes in pixels and scores between 0 and 1 in one output, as detectors have; scores come from large numbers."""
    inputs = keras.Input((12,))
    boxes = kl.Dense(4, activation="sigmoid")(kl.Dense(16, activation="tanh")(inputs)) * 640.0
    scores = keras.ops.sigmoid(kl.Dense(8, name="wide")(inputs) * (2.0 / size))
    model = keras.Model(inputs, keras.ops.concatenate([boxes, scores], axis=-1))
    wide = model.get_layer("wide")
    wide.kernel.assign(size / 4 * np.sign(wide.kernel))
    return model


def test_an_overflow_that_hides_beside_larger_numbers_is_seen(cache: EngineCache) -> None:
    x = floats(12)(9)
    small = provisioned(detector(1e3), sample=x)
    assert (small.report.kept_float32, small.report.fell_back) == ((), ())
    model = detector(2.4e5)  # its weights are numbers that float16 has
    ready = provisioned(model, cache=cache, sample=x)
    assert ready.report.precision == "fp16"
    assert "wide" in ready.report.kept_float32
    wanted, got = np.asarray(model.predict(x, verbose=0)), ready.session.run([x])[0]
    assert np.abs(wanted[:, 4:] - got[:, 4:]).max() < 1e-2
    assert np.ptp(wanted[:, 4:]) > 0.3


def test_an_overflow_that_changes_no_answer_is_none() -> None:
    """What is infinite is cut off, as at ReLU6's 6: no layer is kept in float32 for it."""
    inputs = keras.Input((6,))
    wide = kl.Dense(8, name="wide")
    model = keras.Model(inputs, kl.Dense(3)(kl.ReLU(6.0)(wide(inputs))))
    wide.kernel.assign(wide.kernel * 6e4)
    x = 4 * floats(6)(9)
    assert np.abs(np.asarray(wide(x))).max() > 65504
    ready = provisioned(model, sample=x)
    assert (ready.report.precision, ready.report.kept_float32, ready.report.fell_back) == ("fp16", (), ())
    agrees(model, ready, x)


def test_without_overflow_the_next_precision_is_tried() -> None:
    model = cancelling()
    ready = provisioned(model)
    assert ready.report.precision == "fp32"
    assert ready.report.kept_float32 == ()
    assert [why.split()[0].rstrip(":") for why in ready.report.fell_back] == ["fp16", "bf16", "ONNX"]
    agrees(model, ready, floats(4)(9))


def test_a_bfloat16_policy_chooses_bfloat16() -> None:
    def model(policy: str) -> Any:
        layers = [kl.Dense(8, dtype=policy), kl.Dense(3, dtype=policy)]
        return keras.Sequential([keras.Input((4,)), *layers])

    for policy, precision in (("mixed_bfloat16", "bf16"), ("mixed_float16", "fp16"), ("float32", "fp16")):
        assert provisioned(model(policy), precision=None).report.precision == precision
    assert provisioned(model("mixed_bfloat16"), ReferenceBackend("fp16", "fp32"), precision=None).report.fell_back == ()


def test_it_is_said_what_an_engine_was_compared_on() -> None:
    model, x = zoo.make("mlp"), floats(6)(9)
    assert provisioned(model).report.compared_on == "random rows"
    assert "random rows" in str(provisioned(model).report)
    assert provisioned(model, sample=x).report.compared_on == "sample"
    assert "random" not in str(provisioned(model, sample=x).report)
    assert provisioned(model, verify=False).report.compared_on == ""


def test_bfloat16_has_the_range_of_float32() -> None:
    model = overflowing()
    ready = provisioned(model, precision="bf16")
    assert (ready.report.precision, ready.report.fell_back) == ("bf16", ())
    agrees(model, ready, floats(6)(9))


def test_calibration_that_fails_is_a_step_of_the_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(provision, "calibrate", broken)
    ready = provisioned(zoo.make("mlp"), OnnxRuntimeBackend(), precision="int8", calibration_data=floats(6)(32))
    assert ready.report.precision == "fp16"
    assert "converted to int8: no such kernel" in ready.report.fell_back[0]


def test_a_mask_of_a_billion_is_right_in_half() -> None:
    model = awkward.masked_attention()
    ready = provisioned(model)
    assert (ready.report.precision, ready.report.fell_back, ready.report.kept_float32) == ("fp16", (), ())
    x = np.random.default_rng(1).integers(0, 20, (9, 6)).astype("int32")
    x[3] = 0  # all of it padding: every score is masked
    agrees(model, ready, x)


class Shifting(ReferenceEngine):
    """An engine that is wrong for one place in a batch, as TensorRT 11.1 was (TensorRT#4813)."""

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        outputs = super().run(feeds)
        for output in outputs:
            output[2:3] *= 1.05
        return outputs


def test_an_engine_that_is_wrong_in_one_place_of_a_batch_is_caught() -> None:
    class Wrong(ReferenceBackend):
        def engine(self, plan: bytes) -> ReferenceEngine:
            return (Shifting if "float16" in tensor_types(plan).values() else ReferenceEngine)(plan)

    model, x = zoo.make("mlp"), floats(6)(32)
    ready = provisioned(model, Wrong("fp16", "fp32"), sample=x, batch_sizes=(1, 32, 64))
    assert ready.report.precision == "fp32"
    # Of one row in 32 the difference of all rows together says too little.
    assert "of a row, in some place of a batch, 0.05 > 0.04" in ready.report.fell_back[0]


def test_rows_that_differ_by_position_run_as_they_come() -> None:
    inputs = keras.Input((6,))

    def by_place(x: Any) -> Any:
        return x * keras.ops.cast(keras.ops.arange(1, keras.ops.shape(x)[0] + 1), "float32")[:, None]

    model = keras.Model(inputs, kl.Dense(3)(kl.Lambda(by_place, output_shape=(6,))(inputs)))
    fast = accelerate(model, precision="fp16")
    assert not fast.report().rows_independent
    x = floats(6)(12)
    for size in (4, 12):
        wanted = model.predict(x, batch_size=size, verbose=0)
        assert 0 < zoo.relative_l2(wanted, fast.predict(x, batch_size=size, verbose=0)) < LIMITS["fp16"]
    with recorded() as records:
        fast.predict(np.concatenate([x] * 3), batch_size=36, verbose=0)
    warns_once(records, "rows depend on each other")
