"""`report.save("report.html")`: one file, with its plots inside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import isfinite

from .layers import EDGES, LayerReport

_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; width: 100% } td, th { padding: .25em .6em; text-align: left; vertical-align: top }
tr:nth-child(even) { background: #f4f4f4 } td.n { text-align: right; font-variant-numeric: tabular-nums }
svg text { font: 12px system-ui, sans-serif } .bar { fill: #4a7ab5 } .other { fill: #d1703c; fill-opacity: .6 }
"""


def page(title: str, lines: Iterable[str], layers: Sequence[LayerReport]) -> str:
    """Return the page of an engine.

    Args:
        title: what it is of.
        lines: sentences that come first.
        layers: its layers, in the order in which they run.
    """
    errors = [one for one in layers if one.relative_error is not None]
    worst = sorted((one for one in errors if one.histogram), key=lambda one: -(one.relative_error or 0.0))[:3]
    parts = [f"<!doctype html><meta charset='utf-8'><title>{escape(title)}</title><style>{_STYLE}</style>"]
    parts += [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(line)}</p>" for line in lines)]
    parts += ["<h2>Time of each layer</h2>", _bars([(_name(one), one.microseconds) for one in layers], "µs")]
    if errors:
        parts.append("<h2>Relative difference to float32 after each layer</h2>")
        parts.append(_bars([(_name(one), one.relative_error or 0.0) for one in errors], ""))
    if worst:
        parts.append("<h2>Magnitudes in the layers that differ most: float32, and as it runs</h2>")
        parts += [_histogram(one) for one in worst]
    heads = ("layer", "class", "µs", "share", "types", "difference", "fused with", "engine")
    parts.append("<h2>Layers</h2><table><tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>")
    parts += [_row(one) for one in layers]
    return "\n".join([*parts, "</table>", ""])


def _name(one: LayerReport) -> str:
    return one.layer or "(no layer)"


def _row(one: LayerReport) -> str:
    error = "" if one.relative_error is None else f"{one.relative_error:.2g}"
    fused = ", ".join(layer or "(no layer)" for layer in one.fused_with)
    cells = [
        ("", _name(one)),
        ("", one.kind),
        ("n", f"{one.microseconds:.1f}"),
        ("n", f"{one.share:.1%}"),
        ("", ", ".join(one.types)),
        ("n", error),
        ("", fused),
        ("", ", ".join(one.pieces)),
    ]
    return "<tr>" + "".join(f"<td class='{kind}'>{escape(text)}</td>" for kind, text in cells) + "</tr>"


def _bars(values: Sequence[tuple[str, float]], unit: str) -> str:
    """Draw a horizontal bar for each value, on a linear scale; that of infinity is as long as the longest."""
    largest = max((value for _, value in values if isfinite(value)), default=0.0) or 1.0
    rows = [
        f"<text x='0' y='{18 * i + 13}'>{escape(name)}</text>"
        f"<rect class='bar' x='300' y='{18 * i + 2}' width='{500 * min(value / largest, 1.0):.1f}' height='14'/>"
        f"<text x='810' y='{18 * i + 13}'>{value:.3g} {unit}</text>"
        for i, (name, value) in enumerate(values)
    ]
    return f"<svg viewBox='0 0 920 {18 * len(values) + 4}' width='100%'>{''.join(rows)}</svg>"


def _histogram(one: LayerReport) -> str:
    if one.histogram is None:
        raise ValueError("no histogram")
    counts = (one.histogram.float32, one.histogram.typed)
    tallest = max(max(side) for side in counts) or 1
    bars = [
        f"<rect class='{kind}' x='{14 * i:.0f}' y='{100 - 100 * count / tallest:.1f}' width='12' "
        f"height='{100 * count / tallest:.1f}'/>"
        for kind, side in zip(("bar", "other"), counts, strict=True)
        for i, count in enumerate(side)
        if count
    ]
    ticks = [
        f"<text x='{14 * i:.0f}' y='115'>1e{int(edge)}</text>" for i, edge in enumerate(EDGES) if edge == int(edge)
    ]
    return f"<h3>{escape(_name(one))}</h3><svg viewBox='0 0 820 120' width='100%'>{''.join([*bars, *ticks])}</svg>"
