"""How far a build of TensorRT-RTX is, and Ctrl-C while it runs."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from keras_trt.backends import BuildSpec
from keras_trt.backends.tensorrt.builder import PlanBuilder
from keras_trt.backends.tensorrt.flavor import flavor
from keras_trt.specs import OptimizationProfile, ShapeRange

SPEC = BuildSpec("fp32", OptimizationProfile({"r0": ShapeRange((1, 16, 8, 8), (2, 16, 8, 8), (4, 16, 8, 8))}))


@pytest.fixture(scope="module")
def graph() -> bytes:
    """Enough layers for a build of some steps."""
    generator, nodes, weights = np.random.default_rng(0), [], []
    for i in range(12):
        weights.append(numpy_helper.from_array(generator.standard_normal((16, 16, 3, 3), np.float32), f"w{i}"))
        nodes.append(helper.make_node("Conv", [f"r{i}", f"w{i}"], [f"c{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i + 1}"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 16, 8, 8]) for name in ("r0", "r12")]
    whole = helper.make_graph(nodes, "convolutions", ends[:1], ends[1:], weights)
    return bytes(
        helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    )


def test_a_build_says_how_far_it_is(graph: bytes) -> None:
    onnx.checker.check_model(onnx.load_from_string(graph))
    shares: list[float] = []
    assert PlanBuilder(flavor("tensorrt_rtx")).build(graph, SPEC, for_this_gpu=False, report=shares.append)
    assert len(shares) > 20
    assert all(0 < share <= 1 for share in shares)
    assert shares[0] < 0.1
    assert max(shares) > 0.7


def test_ctrl_c_stops_a_build_and_the_next_one_works(graph: bytes) -> None:
    builder, before = PlanBuilder(flavor("tensorrt_rtx")), signal.getsignal(signal.SIGINT)
    shares: list[float] = []

    def interrupt(share: float) -> None:
        if not shares:
            os.kill(os.getpid(), signal.SIGINT)
        shares.append(share)

    with pytest.raises(KeyboardInterrupt):
        builder.build(graph, SPEC, for_this_gpu=False, report=interrupt)
    assert max(shares) < 0.7, "it ran to its end"
    assert signal.getsignal(signal.SIGINT) is before
    assert builder.build(graph, SPEC, for_this_gpu=False)


def test_without_a_listener_a_build_is_the_same(graph: bytes) -> None:
    builder = PlanBuilder(flavor("tensorrt_rtx"))
    reported: list[Any] = []
    plans = [builder.build(graph, SPEC, for_this_gpu=False, report=how) for how in (None, reported.append)]
    assert len(plans[0]) == pytest.approx(len(plans[1]), rel=0.05)
