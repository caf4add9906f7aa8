"""The chart of the crossover: how much faster a sparse layer is, over the share that is kept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

BATCHES = ("1", "16", "128", "512")
_COLOURS = ("#c2543a", "#d9a441", "#0b6e99", "#5b4b8a")

# batch -> (density, times as fast as dense), by density
Curves = dict[str, list[tuple[float, float]]]


def curves(results: dict[str, Any]) -> Curves:
    """Of a 1024 x 1024 layer with any mask, from committed results."""
    figures = results["figures"]
    if "slowest_cell" in figures:
        sweep = figures["slowest_cell"]["sweep"]
        points = [(batch, float(d), r) for batch in BATCHES for d, r in sweep[batch].items()]
    else:
        found = {
            re.fullmatch(r"inference\[element-([0-9.]+)-(\d+)\]", name): figure
            for name, figure in figures.items()
        }
        points = [(m[2], float(m[1]), figure["times_as_fast"]["dense"])
                  for m, figure in found.items() if m]  # fmt: skip
    return {batch: sorted((d, r) for b, d, r in points if b == batch and d > 0)
            for batch in BATCHES}  # fmt: skip


def device(machine: dict[str, Any]) -> str:
    family = f"family {machine['family']}, " if machine.get("family") else ""
    return f"{machine['cpu']} ({family}{machine['capability']}), torch {machine['torch']}"


def draw(results: dict[str, Any], path: Path) -> None:
    """Writes the chart as SVG, with the figures that it shows in its description."""
    import matplotlib

    from simmim_ext.report import figure_class

    found = curves(results)
    figure = figure_class()(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1, color="#9a9488", linewidth=1, linestyle=":")
    for (batch, points), colour in zip(found.items(), _COLOURS, strict=True):
        shares, speeds = zip(*points, strict=True)
        axes.plot(shares, speeds, "o-", color=colour, markersize=3.5, label=f"batch {batch}")
    axes.set_yscale("log")
    ticks = [tick for tick in (0.5, 1, 2, 4, 8, 16, 32) if tick <= 1.5 * max(
        speed for points in found.values() for _, speed in points)]  # fmt: skip
    axes.set_yticks(ticks, [f"{tick:g}x" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel("weights kept")
    axes.set_ylabel("speed, dense = 1")
    axes.set_title(
        f"SparseLinear 1024 x 1024, any mask, one thread\n{device(results['machine'])}", fontsize=9
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    about = {"Date": None, "Description": json.dumps(found)}
    with matplotlib.rc_context({"svg.hashsalt": "crossover", "svg.fonttype": "none"}):
        figure.savefig(path, metadata=about)


def drawn(path: Path) -> Curves:
    """The figures that a chart shows."""
    import html

    (text,) = re.findall(r"<dc:description>(.*?)</dc:description>", path.read_text(), re.DOTALL)
    return {batch: [(d, r) for d, r in points]
            for batch, points in json.loads(html.unescape(text)).items()}  # fmt: skip
