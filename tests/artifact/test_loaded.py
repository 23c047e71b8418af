"""`.ktrt` files whose engine is of no use here, what cannot be saved, and what a loaded one cannot do."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_trt
from keras_trt import artifact
from keras_trt.artifact import Artifact, Contents, Plan
from keras_trt.backends.onnxruntime import OnnxRuntimeBackend
from keras_trt.errors import EngineLoadError, ExportError, FallbackWarning, VerificationError
from keras_trt.specs import flatten

from .. import head_models
from ..models import CASES, Ids, accelerate, dependent, floats, integers, keras, kl, pair, same, warns_once
from .helpers import load


def changed(path: Path, target: Path, **fields: Any) -> Path:
    """Write the artifact at `path` again with other contents, all digests right."""
    file = Artifact(path)
    inputs, outputs = file.golden()
    contents = Contents(
        file.name, file.signature, file.input_names, file.profile, file.precision, file.optimization_level,
        file.rows_independent, file.versions, file.graph(), inputs, outputs, file.plans(),
    )  # fmt: skip
    artifact.write(target, replace(contents, **fields))
    return target


def test_an_engine_that_answers_otherwise_is_refused(saved: Path, tmp_path: Path) -> None:
    _, outputs = Artifact(saved).golden()
    path = changed(saved, tmp_path / "model.ktrt", outputs=[output * 1.01 for output in outputs])
    with pytest.raises(VerificationError, match=r"otherwise here than when it was saved.*relative difference"):
        load(path)


def test_a_plan_for_another_machine_is_not_run(saved: Path, tmp_path: Path, ran: list[bytes]) -> None:
    other = Plan({"backend": "tensorrt", "version": "10.9", "gpu": "another"}, b"a plan of another GPU")
    path = changed(saved, tmp_path / "model.ktrt", plans=[other])
    loaded = load(path)
    assert ran
    assert set(ran) == {Artifact(path).graph()}
    loaded.save(tmp_path / "again.ktrt")  # and it is kept, for that machine
    assert (tmp_path / "again.ktrt").read_bytes() == path.read_bytes()


def test_a_plan_that_does_not_load_is_built_anew(saved: Path, tmp_path: Path) -> None:
    bad = Plan(OnnxRuntimeBackend().identity(), b"a plan that is none")
    path = changed(saved, tmp_path / "model.ktrt", plans=[bad])
    with pytest.warns(FallbackWarning, match="of no use"):
        loaded = load(path)
    model, _ = pair("sequential")
    x = CASES["sequential"].data(5)
    same(model.predict(x, verbose=0), loaded.predict(x, verbose=0))


# What cannot be saved, and what a loaded one cannot do.


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "model.ktrt"
    text = accelerate(head_models.text_model(), batch_sizes=(1, 4, 8))
    with pytest.raises(ExportError, match=r"cannot be saved.*text_vectorization") as caught:
        text.save(path)
    assert caught.value.layer is not None

    class Overrides(keras.Model):
        def predict_step(self, data: Any) -> Any:
            return super().predict_step(data)

        def call(self, x: Any) -> Any:
            return x

    model = Overrides()
    model(np.ones((2, 3), "float32"))
    with pytest.warns(FallbackWarning):
        slow = accelerate(model)
    with pytest.raises(ExportError, match=r"Keras runs.*predict_step"):
        slow.save(path)
    closed = accelerate(CASES["sequential"].build())
    closed.close()
    with pytest.raises(RuntimeError, match="closed"):
        closed.save(path)
    assert not path.exists()


def test_a_file_of_an_engine_is_named_as_one(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"  # which Keras could not load
    with pytest.raises(ValueError, match=r"ends in `\.ktrt`.*model\.keras"):
        pair("sequential")[1].save(path)
    assert not path.exists()


def test_a_failed_save_leaves_the_older_file(tmp_path: Path) -> None:
    folder = tmp_path / "model.ktrt"
    folder.mkdir()
    with pytest.raises(OSError, match=r"model\.ktrt"):
        pair("sequential")[1].save(folder)
    assert list(tmp_path.iterdir()) == [folder]
    with pytest.raises(FileNotFoundError):
        pair("sequential")[1].save(tmp_path / "missing" / "model.ktrt")


def test_batches_that_the_engine_does_not_take(tmp_path: Path) -> None:
    model = dependent("minus mean")
    accelerate(model, batch_sizes=(1, 4, 8)).save(tmp_path / "model.ktrt")
    loaded = load(tmp_path / "model.ktrt")
    x = floats(4)(20)
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        answer = loaded.predict_on_batch(x)
    warns_once(records, "ONNX Runtime runs a batch")
    same(model.predict_on_batch(x), answer)
    same(model.predict(x, batch_size=5, verbose=0), loaded.predict(x, batch_size=5, verbose=0))


def test_sizes_that_the_graph_does_not_take(tmp_path: Path) -> None:
    words = keras.Input((None,), dtype="int32")
    pooled = kl.GlobalAveragePooling1D()(kl.Embedding(11, 4, embeddings_initializer="normal")(words))
    model = keras.Model(words, kl.Dense(3)(pooled))
    rows = np.random.default_rng(0).integers(0, 11, (6, 5)).astype("int32")
    accelerate(model, sample=rows).save(tmp_path / "model.ktrt")
    loaded = load(tmp_path / "model.ktrt")
    longer = np.random.default_rng(0).integers(0, 11, (6, 9)).astype("int32")
    with pytest.warns(FallbackWarning, match="ONNX Runtime runs a batch"):
        same(model.predict(longer, verbose=0), loaded.predict(longer, verbose=0))
    with pytest.raises(keras_trt.InputError, match="no Keras model"):
        loaded.predict(np.full((6, 9), 1000, "int32"), verbose=0)  # no such word


def test_integers_for_an_engine_of_floats(tmp_path: Path) -> None:
    """A subclassed model does not say its types. What a drop-in with a Keras model warns of is an error without one."""
    ids = integers(11, 6, dtype="int64")(9)
    model = Ids()
    model(ids)
    fast = accelerate(model)
    with pytest.warns(FallbackWarning, match="input 'input' has the type int64") as warned:
        same(model.predict(ids, verbose=0), fast.predict(ids, verbose=0))
    fast.save(tmp_path / "model.ktrt")
    loaded = load(tmp_path / "model.ktrt")
    for _ in range(2):
        with pytest.raises(keras_trt.InputError, match=r"engine was made for float32 \(give a `sample`") as caught:
            loaded.predict(ids, verbose=0)  # without a warning that ONNX Runtime runs it
    cause = str(warned[0].message).removeprefix("Keras runs a batch that the engine cannot: ").removesuffix(".")
    assert str(caught.value).startswith(f"'{model.name}' cannot run this batch: {cause}.")
    error = caught.value
    assert (error.input_name, error.expected, error.received) == ("input", {"input": "float32"}, {"input": "int64"})


def test_calls_that_need_keras(saved: Path) -> None:
    loaded = load(saved)
    x = CASES["sequential"].data(4)
    same(loaded.predict(x, verbose=0), loaded(x))
    with pytest.raises(NotImplementedError, match="its inference alone"):
        loaded(x, training=True)
    with pytest.raises(NotImplementedError, match="mask"):
        loaded(x, mask=None)
    with pytest.raises(AttributeError, match=r"loaded from a file.*`compute_metrics`"):
        loaded._source.compute_metrics  # noqa: B018 (what a method of `TRTModel` may ask its Keras model for)


def test_options_of_load(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="`fallback`"):
        load(saved, fallback="keras")
    with pytest.raises(ValueError, match="`device`"):
        load(saved, device=-1)
    load(saved, verbose=1)
    assert "loaded from its file, nothing built" in capsys.readouterr().out


def test_without_a_gpu(saved: Path) -> None:
    from keras_trt import cuda

    if cuda.device_count():
        pytest.skip("says what happens without a GPU")
    with pytest.raises(EngineLoadError, match="needs a GPU"):
        load(saved, backend="tensorrt_rtx")
    with pytest.raises(EngineLoadError, match="needs a GPU"):
        load(saved, backend="auto", fallback="raise")
    with pytest.warns(FallbackWarning, match="ONNX Runtime .* runs 'sequential"):
        loaded = load(saved, backend="auto")
    assert loaded.backend == "onnxruntime"
    assert len(flatten(loaded.predict(CASES["sequential"].data(3), verbose=0))[0]) == 3
