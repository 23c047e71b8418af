"""Draws what `predict.py` has measured: `python benchmarks/plot.py benchmarks/results/predict-ResNet50-DATE.json …`.

One figure of all models, as PNG beside the first file: rows a second over the batch size, and the time of a single row.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

#: In this order they are drawn; a colour stands for an engine in every figure.
COLOURS = {
    "keras-tensorflow": "#f4a259",
    "keras-tensorflow-half": "#e07a1f",
    "keras-tensorflow-without-xla": "#f7c59f",
    "keras-jax": "#8cb369",
    "keras-jax-half": "#5b8e3e",
    "keras-torch": "#bc4b51",
    "onnxruntime": "#7d8597",
    "keras_trt": "#2f6fde",
    "tensorrt-bare": "#0b2f6b",
    "limit-pcie": "#000000",
}


def draw(files: list[Path]) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = [json.loads(path.read_text()) for path in files]
    figure, panels = pyplot.subplots(
        len(results), 2, figsize=(11, 3.6 * len(results)), squeeze=False, width_ratios=(2, 1), layout="constrained"
    )
    for result, (rates, single) in zip(results, panels, strict=True):
        rows = [row for engine in COLOURS for row in result["rows"] if row["engine"] == engine]
        model = rows[0]["model"]
        for label, of in by_engine(rows).items():
            mark = "s" if of[0]["precision"] == "tf32" else "o"
            style = f"{mark}--" if of[0]["engine"] in ("tensorrt-bare", "limit-pcie") else f"{mark}-"
            of = sorted(of, key=lambda row: row["batch"])
            rates.plot(
                [row["batch"] for row in of], [row["rows_per_s"] for row in of], style,
                color=COLOURS[of[0]["engine"]], label=label,
            )  # fmt: skip
        rates.set(title=f"{model}: rows a second", xlabel="batch size", xscale="log", yscale="log")
        rates.set_xticks(batches := sorted({row["batch"] for row in rows}), batches)
        rates.yaxis.set_major_formatter("{x:,.0f}")
        rates.yaxis.set_minor_formatter("")
        rates.minorticks_off()
        rates.grid(alpha=0.3)
        rates.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
        ones = {label: of[0] for label, of in by_engine([row for row in rows if row["batch"] == 1]).items()}
        bars = single.barh(
            list(ones), [row["median_ms"] for row in ones.values()],
            color=[COLOURS[row["engine"]] for row in ones.values()],
        )  # fmt: skip
        single.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
        single.set(title="one row, median in ms", xmargin=0.15)
        single.invert_yaxis()
    device = results[0]["device"]["name"] if results[0]["device"] else results[0]["host"]["cpu"]
    figure.suptitle(f"{device}, {results[0]['date']}")
    path = files[0].with_name(f"predict-{results[0]['date']}.png")
    figure.savefig(path, dpi=110)
    return path


def by_engine(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(f"{row['engine']}, {row['precision']}".rstrip(", "), []).append(row)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    print("written:", draw(parser.parse_args().files))
