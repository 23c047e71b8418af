"""All that Keras offers is exported, answers as in Keras, is built by TensorRT-RTX; or is listed with a reason."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import keras_trt
from keras_trt.export import ExportedModel, export

from . import table
from .case import Case, WrongAnswerError, assert_can_fail, compare, functional, judge, randomize
from .expected import NOT_EXPORTABLE, NOT_YET, SECTIONS


def cases() -> Iterator[Any]:
    for section, (_, found) in SECTIONS.items():
        for case in found:
            marks: list[Any] = [pytest.mark.long, pytest.mark.timeout(1800)] if case.long else []
            if section == "keras_hub.models":  # it warns of itself while it builds its models
                marks.append(pytest.mark.filterwarnings("ignore::UserWarning"))
            if case.name in NOT_YET[section]:
                kind, reason = NOT_YET[section][case.name]
                marks.append(pytest.mark.xfail(raises=kind, reason=reason, strict=True))
            yield pytest.param(case, marks=marks, id=f"{section}.{case.name}")


@pytest.mark.parametrize("case", list(cases()))
def test_conforms(case: Case) -> None:
    for failure in judge(case).failures:
        raise failure


@pytest.mark.parametrize("section", SECTIONS)
def test_everything_of_keras_is_covered_or_refused_with_a_reason(section: str) -> None:
    offered, found = SECTIONS[section]
    refused = set(NOT_EXPORTABLE[section])
    covered = {case.of for case in found}
    assert offered - covered - refused == set(), "Keras offers more: give each a case, or a reason"
    assert (covered | refused) - offered == set(), "Keras does not offer these"
    assert covered & refused == set()
    assert set(NOT_YET[section]) - {case.name for case in found} == set(), "no case is called so"
    assert len({case.name for case in found}) == len(found)


def test_documented_table_says_what_the_suite_says() -> None:
    rows = {key: row for key, row in table.read().items() if key[0] in SECTIONS}
    long = {case.name for _, found in SECTIONS.values() for case in found if case.long}
    names = [(section, name) for section in SECTIONS for name in table.names(section)]
    # What takes long may not have been tried with these versions.
    assert list(rows) == [(section, name) for section, name in names if (section, name) in rows or name not in long]
    for (section, name), row in rows.items():
        fails = name in NOT_YET[section] or name in NOT_EXPORTABLE[section]
        assert ("no" in row.cells[:3] or "-" in row.cells[:3]) == fails, (
            f"{name}: run python -m tests.conformance.table"
        )


def said(model: Any) -> str:
    """Return what `doctor` says of a model, without what is that model's alone: layers, nodes, versions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", keras_trt.FallbackWarning)  # that another backend runs here is no matter
        found = keras_trt.doctor(model, backend="tensorrt_rtx", cache=None)
    text = "\n".join(one.problem for one in found).replace("The operation", "the operation")
    return re.sub(r" (of )?layer '[^']*'| \(graph node '[^']*'\)|(?<=RTX) [\d.]+", "", text)


def shortly(reason: str) -> str:
    return re.split("[:;] ", reason)[0]


@pytest.mark.parametrize(("section", "name"), [(section, name) for section, found in NOT_YET.items() for name in found])
def test_doctor_says_what_the_table_says(section: str, name: str) -> None:
    (case,) = (case for case in SECTIONS[section][1] if case.name == name)
    _, reason = NOT_YET[section][name]
    model: Any = case.build()
    if "takes strings" in reason:  # and something is left for an engine
        model = keras.Sequential([model, keras.layers.Rescaling(1.5)])
    assert shortly(reason) in said(model)


def on_jax(params: Any, inputs: Any) -> Any:
    return inputs @ params["w"]


#: Layers that have no case, in models.
NO_CASES = {
    "HashedCrossing": lambda x: keras.layers.HashedCrossing(8)((x, x)),
    "Hashing": lambda x: keras.layers.Hashing(8)(x),
    "JaxLayer": lambda x: keras.layers.JaxLayer(on_jax, params={"w": np.eye(1, 2, dtype="float32")})(x),
    "StringLookup": lambda x: keras.layers.StringLookup(vocabulary=["a", "b"])(x),
    "TextVectorization": lambda x: keras.layers.TextVectorization(vocabulary=["a", "b"])(x),
}


@pytest.mark.parametrize("name", NO_CASES)
def test_doctor_says_what_the_table_says_of_what_has_no_case(name: str) -> None:
    dtypes = {"JaxLayer": "float32", "Hashing": "int32", "HashedCrossing": "int32"}
    given = keras.Input((1,), dtype=dtypes.get(name, "string"))
    model = keras.Model(given, keras.layers.Rescaling(1.5)(NO_CASES[name](given)))
    assert shortly(NOT_EXPORTABLE["keras.layers"][name]) in said(model)


class TestComparisonCanFail:
    case = functional("Dense", [(6,)], lambda x: keras.layers.Dense(5)(x))

    def exported(self) -> tuple[Any, ExportedModel]:
        model = self.case.build()
        randomize(model, np.random.default_rng(0))
        return model, export(model)

    def test_on_a_slightly_different_weight(self) -> None:
        model, exported = self.exported()
        assert compare(self.case, model, exported) < 1e-6
        proto = onnx.load_from_string(exported.onnx)
        kernel = next(weight for weight in proto.graph.initializer if list(weight.dims) == [6, 5])
        kernel.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kernel) * np.float32(1.001), kernel.name))
        with pytest.raises(WrongAnswerError, match="off by"):
            compare(self.case, model, replace(exported, onnx=proto.SerializeToString()))

    def test_only_where_rows_differ(self) -> None:
        with pytest.raises(AssertionError, match="would prove nothing"):
            assert_can_fail(np.ones((5, 3), "float32"))

    def test_weights_are_not_the_initial_ones(self) -> None:
        model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.BatchNormalization(), keras.layers.Conv2D(2, 3)])
        before = model.get_weights()
        randomize(model, np.random.default_rng(0))
        for one, two in zip(before, model.get_weights(), strict=True):
            assert not np.any(one == two)
        assert (model.layers[0].moving_variance.numpy() >= 0.5).all()
