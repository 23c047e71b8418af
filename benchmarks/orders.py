"""What it costs to tell TensorRT 8.6, which chooses types by time, the types of a half precision graph.

python benchmarks/orders.py [--models MobileNetV2 ResNet50] [--batch 32] [--folder F] [--builders 3]

Engines of the same weights in fp16, timed in turn: `flag` is TensorRT's own choice for the float32 graph, which tells
what can be had; `typed` its choice for keras_trt's typed graph; `floats` obeys that where it says float32 alone;
`ungrouped` in all but grouped convolutions; `keras_trt` is what is built for users. Beside the times, how many of each
engine's layers compute in half.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent))

import environment
import models
from plans import timed

WAYS = ("flag", "typed", "floats", "ungrouped", "keras_trt")


def build(chosen: argparse.Namespace, name: str, way: str) -> None:
    """Build one engine, in this process, and say how its layers compute."""
    import logging

    import onnx

    from keras_trt.backends import BuildSpec
    from keras_trt.backends.tensorrt import TensorRTBackend
    from keras_trt.backends.tensorrt import types as tensorrt_types
    from keras_trt.export import export
    from keras_trt.precision import typed
    from keras_trt.specs import OptimizationProfile, ShapeRange

    logging.basicConfig(level=logging.INFO)
    model: Any = models.make(name)
    exported = export(model)
    graph = exported.onnx if way == "flag" else typed(exported.onnx, "fp16")
    grouped = {
        node.output[0]
        for node in onnx.load_from_string(graph).graph.node
        if any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
    }
    ordered = tensorrt_types.order_types

    def order(trt: Any, network: Any, types: Any) -> int:
        if way == "floats":
            ordered(trt, network, {tensor: dtype for tensor, dtype in types.items() if dtype == "float32"})
        elif way in ("ungrouped", "keras_trt"):
            free = grouped if way == "ungrouped" else set()
            return ordered(trt, network, {tensor: dtype for tensor, dtype in types.items() if tensor not in free})
        return 1  # so that the engine must prove that it has layers in half

    tensorrt_types.order_types = order
    (spec,) = exported.signature.inputs
    shapes = ShapeRange(*((rows, *models.rows_for(model, 1).shape[1:]) for rows in (1, chosen.batch, chosen.batch)))
    backend = TensorRTBackend("tensorrt", (0,))
    plan = backend.build(graph, BuildSpec("fp16", OptimizationProfile({spec.name: shapes}), None))
    plan_of(chosen, name, way).write_bytes(plan)
    rows = models.rows_for(model, chosen.batch)
    layers = [
        {"name": layer.name, "us": layer.microseconds, "types": " ".join(layer.types)}
        for layer in backend.profile(plan, {spec.name: rows}, 20)
    ]
    plan_of(chosen, name, way).with_suffix(".json").write_text(json.dumps(layers))


def plan_of(chosen: argparse.Namespace, name: str, way: str) -> Path:
    return Path(chosen.folder / f"{name}-{way}-{chosen.batch}.plan")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["MobileNetV2", "ResNet50"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--builders", type=int, default=3, help="engines that are built at once")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--build", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.build:
        build(chosen, *chosen.build)
        return
    with tempfile.TemporaryDirectory() as temporary:
        chosen.folder = chosen.folder or Path(temporary)
        chosen.folder.mkdir(parents=True, exist_ok=True)

        def start(one: tuple[str, str]) -> None:
            command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(chosen.folder), "--build", *one]
            with plan_of(chosen, *one).with_suffix(".log").open("w") as log:
                subprocess.run(command, env=environment.of_children(), stdout=log, stderr=log, check=False)

        wanted = [(name, way) for name in chosen.models for way in WAYS]
        with ThreadPoolExecutor(chosen.builders) as pool:
            list(pool.map(start, [one for one in wanted if not plan_of(chosen, *one).exists()]))
        rows: list[dict[str, Any]] = []
        for name in chosen.models:
            plans = {way: plan_of(chosen, name, way) for way in WAYS if plan_of(chosen, name, way).exists()}
            found = timed(plans, (chosen.batch, *models.IMAGE))
            for way, seconds in found.items():
                layers = json.loads(plans[way].with_suffix(".json").read_text())
                half = sum(any(word in layer["types"].lower() for word in ("fp16", "half")) for layer in layers)
                log = plans[way].with_suffix(".log").read_text()
                row = {"model": name, "way": way, "batch": chosen.batch, "median_ms": statistics.median(seconds) * 1e3}
                row |= {"layers": len(layers), "layers_in_half": half, "built_again": "Built again" in log}
                print(json.dumps(row), flush=True)
                rows.append({**row, "slowest": sorted(layers, key=lambda layer: -layer["us"])[:12]})
    print("written:", environment.write("orders", {**environment.describe("orders.py"), "rows": rows}))


if __name__ == "__main__":
    main()
