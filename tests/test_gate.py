"""What the gate sees, what of foreign code it survives, and what a record of its verdict stands for."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt import OptimizationProfile, ShapeRange, policies
from keras_trt import precision as precision_module
from keras_trt.cache import EngineCache
from keras_trt.errors import ExportError, InputError, VerificationError
from keras_trt.export import export
from keras_trt.export.signature import input_signature
from keras_trt.verification.gate import Gate, _failures

from .models import accelerate, cancelling, floats, keras, kl, recorded, same, tf, warns_once


def _map(function: Any, shape: tuple[int, ...] = (4,), **keywords: Any) -> Any:
    """Return a model of one function between dense layers."""
    inputs = keras.Input(shape, **keywords) if shape else keras.Input(**keywords)
    return keras.Model(inputs, kl.Lambda(function)(kl.Dense(4)(inputs)))


def test_a_dtype_policy_map_is_left_as_it_was() -> None:
    by_path = keras.dtype_policies.DTypePolicyMap(default_policy="mixed_float16")
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, dtype=by_path)])
    x = floats(4)(6)
    expected, entries = model.predict(x, verbose=0), len(by_path)
    fast = accelerate(model)
    assert fast.backend == "onnxruntime"
    assert len(by_path) == entries
    assert fast.predict(x, verbose=0).dtype == model.predict(x, verbose=0).dtype == expected.dtype == np.float16


def test_mixed_models_may_be_accelerated_by_many_threads() -> None:
    model = keras.Sequential(
        [keras.Input((4,)), kl.Dense(8, dtype="mixed_float16"), kl.Dense(3, dtype="mixed_float16")]
    )
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    backends: list[str] = []
    threads = [threading.Thread(target=lambda: backends.append(accelerate(model).backend)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert backends == ["onnxruntime"] * 4
    assert tf.config.experimental.tensor_float_32_execution_enabled() == before
    assert [layer.dtype_policy.name for layer in model.layers] == ["mixed_float16"] * 2


def _halved(policy: str) -> Any:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((12,)), kl.Dense(16, "relu", dtype=policy), kl.Dense(3, dtype=policy)])


@pytest.mark.parametrize("sample", [None, floats(12)(8)])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_model_that_answers_otherwise_in_float32_is_refused(
    policy: str, sample: Any, monkeypatch: pytest.MonkeyPatch, cache: EngineCache
) -> None:
    """Whatever is done to a model for its export is done to what engines are compared with, and would not be seen."""
    real = policies.in_float32

    @contextmanager
    def broken(model: Any) -> Iterator[None]:
        layer = model.layers[0]
        usual = layer.activation
        with real(model):
            layer.activation = keras.activations.linear
            try:
                yield
            finally:
                layer.activation = usual

    model = _halved(policy)
    fast = accelerate(model, sample=sample)
    assert (fast.backend, fast.report().fell_back) == ("onnxruntime", ())
    monkeypatch.setattr(policies, "in_float32", broken)
    assert accelerate(model, sample=sample, cache=cache, verify=False).backend == "onnxruntime"
    for kept in (None, cache):  # the second finds an engine that was not compared
        with recorded() as records:
            fast = accelerate(model, sample=sample, cache=kept)
        warns_once(records, "otherwise in float32 than under its dtype policies")
        assert fast.backend == "keras"
    assert any("otherwise in float32" in one.problem for one in keras_trt.doctor(model, sample=sample, cache=None))


def test_where_half_precision_overflows_is_no_difference() -> None:
    model = _halved("mixed_float16")
    model.set_weights([np.full((12, 16), 4e4), np.zeros(16), np.full((16, 3), 1e-6), np.zeros(3)])
    x = floats(12)(8)
    assert not np.isfinite(model.predict(x, verbose=0)).all()
    assert accelerate(model, sample=x).backend == "onnxruntime"


class Scaled(keras.Model):
    """Overflows where it computes in integers."""

    def call(self, x: Any) -> Any:
        return keras.ops.cast((x * 100000) * 100000, "float32")


def test_a_record_knows_whether_types_were_guessed(cache: EngineCache) -> None:
    model = Scaled()
    model(np.ones((2, 4), "float32"))
    accelerate(model, cache=cache, sample=floats(4)(8))
    fast = accelerate(model, cache=cache)
    numbers = np.arange(1, 9, dtype="int32").reshape(2, 4)
    with recorded() as records:
        found = fast.predict(numbers, verbose=0)
    warns_once(records, "int32")
    same(model.predict(numbers, verbose=0), found)


def test_a_verdict_stands_for_the_rows_that_it_was_given_on(cache: EngineCache) -> None:
    model = _map(lambda x: x * 2)
    assert accelerate(model, cache=cache).report().origin == "built"
    one, other = floats(4)(8), floats(4)(8) + 1
    first = accelerate(model, cache=cache, sample=one).report()
    assert "verify" in first.seconds, "the user's rows were never looked at"
    assert accelerate(model, cache=cache, sample=one).report().origin == "cache"
    assert "verify" not in accelerate(model, cache=cache, sample=one).report().seconds
    assert "verify" in accelerate(model, cache=cache, sample=other).report().seconds


def test_a_model_that_takes_pairs_of_rows() -> None:
    model = _map(lambda x: keras.ops.reshape(keras.ops.reshape(x, (-1, 2, 4)) * [[1.0], [2.0]], (-1, 4)))
    fast = accelerate(model)
    assert not fast.report().rows_independent
    x = floats(4)(10)
    same(model.predict(x, batch_size=2, verbose=0), fast.predict(x, batch_size=2, verbose=0))


class Many(kl.Layer):
    """Gives one row where it does not know how many there are."""

    def call(self, x: Any) -> Any:
        return x[: x.shape[0] or 1] * 2


@pytest.mark.parametrize("scaled", [False, True], ids=["called", "in a graph"])
def test_an_engine_that_answers_a_single_row_is_refused(scaled: bool) -> None:
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Many()(kl.Rescaling(2.0)(inputs) if scaled else inputs))
    with pytest.raises(VerificationError, match=r"shapes \[\(1, 4\)\] for 4 rows.*keras\.ops\.shape"):
        accelerate(model, fallback="raise")
    with recorded() as records:
        fast = accelerate(model)
    warns_once(records, "for 4 rows")
    assert fast.backend == "keras"
    same(model.predict(floats(4)(6), verbose=0), fast.predict(floats(4)(6), verbose=0))


def test_shapes_of_batches_that_are_run_as_they_come_are_told() -> None:
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, kl.Lambda(lambda x: keras.ops.image.elastic_transform(x, seed=3))(inputs))
    with pytest.raises(VerificationError, match=r"\[\(1, 8, 8, 3\)\] instead of \[\(4, 8, 8, 3\)\] for 4 rows"):
        accelerate(model, fallback="raise")


@pytest.mark.parametrize(
    "layer", [kl.Masking(-1.0), kl.Embedding(10000, 3, mask_zero=True)], ids=["floats", "integers"]
)
def test_random_rows_show_what_becomes_of_a_mask(layer: Any) -> None:
    class Unmasked(kl.Layer):
        """Has a mask in Keras, and none in a graph for ONNX, whose number of rows is open."""

        supports_masking = True

        def call(self, x: Any, mask: Any = None) -> Any:
            return x if x.shape[0] is None else keras.ops.where(mask[..., None], x, 5.0)

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    inputs = keras.Input((5, 3)) if isinstance(layer, kl.Masking) else keras.Input((5,), dtype="int32")
    with pytest.raises(VerificationError, match="relative difference"):
        accelerate(keras.Model(inputs, Unmasked()(layer(inputs))), fallback="raise")


def test_a_fixed_batch_is_never_cut() -> None:
    inputs = keras.Input(batch_shape=(8, 4))
    model = keras.Model(inputs, kl.Lambda(lambda x: keras.ops.reshape(keras.ops.reshape(x, (4, 8)), (8, 4)))(inputs))
    assert accelerate(model).backend == "onnxruntime"
    with pytest.raises(InputError, match="at least 8 rows"):
        accelerate(model, sample=floats(4)(3))


def test_a_model_that_fails_on_the_sample_is_one_warning() -> None:
    inputs = keras.Input((2,), dtype="int32")
    model = keras.Model(inputs, kl.Lambda(lambda i: tf.gather(tf.eye(5), i), output_shape=(2, 5))(inputs))
    with recorded() as records:
        fast = accelerate(model, sample=np.array([[1, 99], [2, 3]], "int32"))
    warns_once(records, "fails on")
    assert fast.backend == "keras"


def test_a_ragged_output_is_refused() -> None:
    class Ragged(keras.Model):
        def call(self, x: Any) -> Any:
            return tf.RaggedTensor.from_tensor(x)

    model = Ragged()
    model(np.ones((2, 3), "float32"))
    with pytest.raises(ExportError, match="dense tensors"):
        accelerate(model, fallback="raise")


def test_keys_that_are_no_strings_are_refused() -> None:
    class Numbered(keras.Model):
        def call(self, x: Any) -> Any:
            return {0: x, 1: x * 2}

    model = Numbered()
    model(np.ones((2, 3), "float32"))
    with pytest.raises(ExportError, match="key 0"):
        accelerate(model, fallback="raise")


def test_dependent_rows_and_a_large_smallest_batch() -> None:
    model = _map(lambda x: x - keras.ops.mean(x, axis=0))
    fast = accelerate(model, batch_sizes=(8, 8, 8))
    assert (fast.backend, fast.report().rows_independent) == ("onnxruntime", False)
    x = floats(4)(16)
    same(model.predict(x, batch_size=8, verbose=0), fast.predict(x, batch_size=8, verbose=0))


def _centred() -> Any:
    return _map(lambda x: x - keras.ops.mean(x, axis=0, keepdims=True))


def test_dependent_rows_are_found_though_the_engine_takes_one_at_a_time() -> None:
    model, x = _centred(), floats(4)(8)
    for given in (None, x):
        fast = accelerate(model, batch_sizes=(1, 1, 1), sample=given)
        assert not fast.report().rows_independent
        with recorded() as records:
            same(model.predict(x, verbose=0), fast.predict(x, verbose=0))
        warns_once(records, "rows depend on each other")


class Gamma(kl.Layer):
    """Mixes rows by a weight that is 0 before it is trained."""

    def build(self, shape: Any) -> None:
        self.gamma = self.add_weight(shape=shape[-1:], initializer="zeros")

    def call(self, x: Any) -> Any:
        return x + self.gamma * keras.ops.mean(x, axis=0, keepdims=True)


@pytest.mark.parametrize("sample", [None, floats(4)(1), floats(4)(8), np.ones((8, 4), "float32")])
def test_weights_that_make_rows_depend_are_found_in_a_refit(sample: Any, cache: EngineCache) -> None:
    model, x = keras.Sequential([keras.Input((4,)), kl.Dense(4), Gamma()]), floats(4)(20)
    found = []
    for gamma in (0.0, 0.0, 0.01, 0.0):
        model.set_weights([model.layers[0].kernel.numpy() * 0.9, np.ones(4), np.full(4, gamma)])
        fast = accelerate(model, cache=cache, sample=sample)
        found.append((fast.report().rows_independent, fast.report().origin))
        same(model.predict(x, batch_size=7, verbose=0), fast.predict(x, batch_size=7, verbose=0))
    assert [independent for independent, _ in found] == [True, True, False, True]
    assert [origin for _, origin in found][:2] == ["built", "refitted"]


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 2, 3), (4, 4, 8)])
def test_a_sample_that_is_larger_than_the_batches_of_dependent_rows(sizes: Any) -> None:
    model, x = _centred(), floats(4)(64)
    profile = OptimizationProfile({model.layers[0].name: ShapeRange(*((size, 4) for size in sizes))})
    for options in ({"batch_sizes": sizes}, {"profiles": profile}):
        fast = accelerate(model, sample=x, **options)
        assert (fast.backend, fast.report().rows_independent) == ("onnxruntime", False)
        assert len(fast.report().differences) == 1
        same(model.predict(x, batch_size=sizes[2], verbose=0)[: sizes[2]], fast.predict_on_batch(x[: sizes[2]]))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_first_row_whose_answer_is_nearly_nothing(precision: str) -> None:
    """Alone, its relative difference is large, and says nothing."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((16,)), kl.Dense(32, "tanh"), kl.Dense(1)])
    x = floats(16)(2000)
    sizes = np.abs(model.predict(x, verbose=0)[:, 0])
    smallest = int(sizes.argmin())
    assert sizes[smallest] < 1e-3 * sizes.mean()
    fast = accelerate(model, precision=precision, sample=x[[smallest, *range(31)]])
    assert (fast.precision, fast.report().fell_back) == (precision, ())


class AsOnAGPU:
    """A `Session` of which one run of a size is wrong, as where it is the first that takes another way."""

    keeps_state = rows_independent = True
    profile = OptimizationProfile({"x": ShapeRange((1, 4), (8, 4), (16, 4))})

    def __init__(self, model: Any, size: int, run: int) -> None:
        self.model, self.wrong, self.runs = model, (size, run), Counter[int]()

    def takes(self, _: Any) -> None:
        return None

    def run(self, inputs: Any) -> list[Any]:
        answers = np.array(self.model(inputs[0]))
        size = len(answers)
        answers[-1] *= 1.0 + ((size, self.runs[size]) == self.wrong)
        self.runs[size] += 1
        return [answers]


@pytest.mark.parametrize("run", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 4, 8, 17])
def test_each_run_in_each_size_is_compared(size: int, run: int) -> None:
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, kl.Dense(3)(inputs))
    takes = input_signature(model, None)
    signature = export(model).signature
    gate = Gate(model, takes, [AsOnAGPU.profile.shapes["x"]], None)
    gate.check(AsOnAGPU(model, 0, 0), signature, "fp32")  # type: ignore[arg-type]
    with pytest.raises(VerificationError, match="relative difference"):
        gate.check(AsOnAGPU(model, size, run), signature, "fp32")  # type: ignore[arg-type]


def test_a_row_outside_of_all_others_does_not_hide_what_8_bits_do_to_them() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((16,)), kl.Dense(32, "relu"), kl.Dense(3)])
    x = floats(16)(64)
    x[0] *= 1e4
    with recorded() as records:
        fast = accelerate(model, precision="int8", calibration_data=x, calibration_method="minmax")
    warns_once(records, "int8: the engine differs from Keras", "of a row")
    wanted, got = model.predict(x[1:], verbose=0), fast.predict(x[1:], verbose=0)
    assert np.linalg.norm(wanted - got) < 1e-2 * np.linalg.norm(wanted)


def test_bytes_stay_inside_a_table() -> None:
    model = keras.Sequential([keras.Input((3,), dtype="uint8"), kl.Embedding(10, 4), kl.Flatten(), kl.Dense(2)])
    assert accelerate(model).backend == "onnxruntime"


def test_the_ladder_goes_on_from_an_unverified_record(cache: EngineCache) -> None:
    model = cancelling()
    accelerate(model, cache=cache, precision="fp16", verify=False)
    with recorded() as records:
        fast = accelerate(model, cache=cache, precision="fp16")
    warns_once(records, "fp32")
    assert fast.precision == "fp32"


def test_a_precision_that_cannot_be_made_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    real = precision_module.typed

    def broken(graph: bytes, precision: Any, *rest: Any) -> bytes:
        if precision == "fp16":
            raise ValueError("The graph has a cycle.")
        return real(graph, precision, *rest)

    monkeypatch.setattr(precision_module, "typed", broken)
    with recorded() as records:
        fast = accelerate(_map(lambda x: x), precision="fp16")
    warns_once(records, "cycle")
    assert fast.precision == "fp32"


def test_close_waits_for_calls_under_way() -> None:
    fast = accelerate(_map(lambda x: x))
    x, errors = floats(4)(200_000), []

    def predict() -> None:
        try:
            fast.predict(x, verbose=0)
        except RuntimeError as error:
            errors.append(error)

    threads = [threading.Thread(target=predict) for _ in range(4)]
    for thread in threads:
        thread.start()
    fast.close()
    for thread in threads:
        thread.join()
    assert all("closed" in str(error) for error in errors)
    with pytest.raises(RuntimeError, match="closed"):
        fast.predict(x, verbose=0)


def test_infinite_answers_are_no_numpy_warnings() -> None:
    x = keras.Input((3,))
    shares = kl.Lambda(lambda x: 1e30 * x / keras.ops.abs(x - x[:, :1]))(x)  # infinite and NaN in the first column
    fast = accelerate(keras.Model(x, [shares, kl.Dense(2)(x)]), fallback="raise")
    assert fast.backend == "onnxruntime"


def test_what_fails_is_told_in_one_line_without_colours() -> None:
    with (
        pytest.raises(VerificationError, match=r"^The engine fails \(ValueError: red: 1 2\)$"),
        _failures("The engine fails"),
    ):
        raise ValueError("\x1b[1mred:\x1b[0m\n\n  1\n  2")
    refused = InputError("no such index")
    with pytest.raises(InputError), _failures("The model fails"):
        raise refused
    with pytest.raises(VerificationError, match="no such index"), _failures("The engine fails", InputError):
        raise refused
