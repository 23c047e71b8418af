"""Weights that are more than one protobuf holds: refused before anything is traced, in the same words everywhere."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf.message import EncodeError

import keras_trt
from keras_trt.errors import ExportError
from keras_trt.export import check, export, trace

from ..models import accelerate, integers, keras, kl, ops, recorded, rows_differ, same, warns_once


def table(rows: int = 100, initializer: str = "uniform") -> Any:
    tokens = keras.Input((3,), dtype="int32", name="tokens")
    vectors = kl.Embedding(rows, 64, embeddings_initializer=initializer)(tokens)
    return keras.Model(tokens, kl.Dense(2)(vectors), name="table")


#: What the table of a hundred rows and its dense layer take.
SIZE = 4 * (100 * 64 + 64 * 2 + 2)


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda size: monkeypatch.setattr(check, "LIMIT", size)


def test_what_is_said_and_before_anything_is_traced(
    limit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(SIZE - 1)
    model = table()
    monkeypatch.setattr(trace, "trace", lambda *_: pytest.fail("it was traced"))
    with pytest.raises(ExportError, match=f"{SIZE:,} bytes.* {SIZE - 1:,}.*quantize") as caught:
        keras_trt.export_onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    (finding,) = caught.value.findings
    diagnosis = keras_trt.doctor(model, backend="onnxruntime", cache=None)
    assert not diagnosis.ok
    assert list(diagnosis) == [finding]
    (refused,) = keras_trt.doctor(model, backend="onnxruntime", cache=None, fallback="raise")
    assert (refused.problem, refused.action) == (finding.problem, "refused")
    with pytest.raises(ExportError, match=f"{SIZE:,} bytes"):
        accelerate(model, fallback="raise")
    with recorded() as records:
        fast = accelerate(model)
    warns_once(records, "Keras runs 'table'", f"{SIZE:,} bytes", f"{SIZE - 1:,}")
    x = integers(100, 3)(5)
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras with numpy 2
def test_what_is_advised_helps(limit: Any) -> None:
    limit(SIZE // 2)
    model, x = table(), integers(100, 3)(9)
    vectors = model.layers[1]
    rest = keras.Model(vectors.output, model.output)
    rows = vectors(x).numpy()
    same(rest.predict(rows, verbose=0), accelerate(rest, fallback="raise").predict(rows, verbose=0))
    model.quantize("int8")
    expected = model.predict(x, verbose=0)
    rows_differ(expected)
    same(expected, accelerate(model, fallback="raise").predict(x, verbose=0), 1e-4)


class Tied(kl.Layer):
    """Reads its kernel in two forms, which are two constants of the graph."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]), initializer="glorot_uniform")

    def call(self, x: Any) -> Any:
        return ops.tanh(x @ self.kernel) @ ops.transpose(self.kernel + 1)


def test_weights_that_the_graph_has_twice(limit: Any) -> None:
    x = keras.Input((64,))
    model = keras.Model(x, Tied()(x))
    size = 4 * 64 * 64
    limit(2 * size - 1)
    with pytest.raises(ExportError, match=f"{2 * size:,} bytes.* {2 * size - 1:,}"):
        export(model)
    limit(2 * size)
    export(model)


def test_a_protobuf_that_cannot_be_written_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise EncodeError("Failed to serialize proto")

    monkeypatch.setattr(onnx.checker, "check_model", fail)
    with pytest.raises(ExportError, match="Failed to serialize proto"):
        export(table())


@pytest.mark.long
def test_two_gibibytes(tmp_path: Path) -> None:
    model = table(8_700_000, "zeros")
    began = time.perf_counter()
    with pytest.raises(ExportError, match=r"2,227,200,520 bytes.* 2,147,483,647"):
        keras_trt.export_onnx(model, tmp_path / "model.onnx")
    finding = next(iter(keras_trt.doctor(model)))
    with recorded() as records:
        fast = keras_trt.accelerate(model, verbose=0)
    warns_once(records, finding.problem)
    assert time.perf_counter() - began < 5
    x = integers(100, 3)(5)
    same(model.predict(x, verbose=0), fast.predict(x, verbose=0))
