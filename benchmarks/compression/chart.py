"""The comparison as a table for the terminal and as a picture."""

from __future__ import annotations

import statistics
from operator import itemgetter
from pathlib import Path
from typing import Any

from simmim_ext.report import figure_class

from .contest import SCRATCH

_OURS, _SCRATCH = "#0b6e99", "#c2543a"
_RIVALS = ("#8a8378", "#7a9e3f", "#b08b2e", "#8f6fb0", "#4f9d8f", "#b0708a", "#5f6b7a")
_GAP = 0.05  # between the names of lines, of the axes' height


def table(results: dict[str, Any]) -> Any:
    """Accuracy and KL of every contestant by length of training, a rich table."""
    from rich.table import Table

    lengths = sorted({row["epochs"] for row in results["rows"]})
    found = Table(
        "method",
        title=f"{results['model']} on {results['data']}, {results['budget']}: accuracy in % / KL "
        "from the teacher in nats / agreement in %, mean and spread over seeds",
        title_justify="left",
    )
    for length in lengths:
        found.add_column("untrained" if length == 0 else f"{length} epochs", justify="right")
    entries: dict[tuple[Any, ...], dict[int, str]] = {}
    for row in results["rows"]:
        key = row["method"], row["widths"], row["reconstruct"]
        entries.setdefault(key, {})[row["epochs"]] = _words(row)
    for (method, widths, refit), cells in entries.items():
        name = method + ("" if widths == "shared" else ", own widths")
        name += "" if refit or method in SCRATCH else ", no refit"
        found.add_row(name, *(cells.get(length, "") for length in lengths))
    return found


def _words(row: dict[str, Any]) -> str:
    accuracy, kl, agreement = row["accuracy"], row["kl"], row["agreement"]
    return (
        f"{100 * statistics.mean(accuracy):.2f}±{100 * _spread(accuracy):.2f} / "
        f"{statistics.mean(kl):.4f}±{_spread(kl):.4f} / {100 * statistics.mean(agreement):.1f}"
    )


def draw(results: dict[str, Any], path: Path) -> None:
    """KL and accuracy against epochs, a line for each method with SimMIM's widths and a refit."""
    figure = figure_class()(figsize=(11, 4.4), layout="constrained")
    lines: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for row in results["rows"]:
        if row["widths"] == "shared":
            lines.setdefault((row["method"], row["reconstruct"]), []).append(row)
    lengths = sorted({row["epochs"] for row in results["rows"]})
    rivals = sorted({method for method, _ in lines} - {"simmim", *SCRATCH})
    colors = {"simmim": _OURS, **dict.fromkeys(SCRATCH, _SCRATCH)}
    colors |= {method: _RIVALS[i % len(_RIVALS)] for i, method in enumerate(rivals)}
    panels = (("kl", "KL from the original, nats"), ("accuracy", "accuracy"))
    for axes, (name, label) in zip(figure.subplots(1, 2), panels, strict=True):
        ends: dict[str, float] = {}
        shown = []  # what the axis must have room for
        for (method, refit), rows in lines.items():
            rows = sorted(rows, key=lambda row: row["epochs"])
            means = [statistics.mean(row[name]) for row in rows]
            axes.errorbar(
                [row["epochs"] for row in rows],
                means,
                [_spread(row[name]) for row in rows],
                color=colors[method],
                linestyle="-" if refit or method in SCRATCH else ":",
                linewidth=2.2 if method == "simmim" else 1,
                zorder=3 if method == "simmim" else 2,
            )
            if refit or method in SCRATCH:
                ends[method] = means[-1]
                shown += means
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xticks(lengths, [str(length) for length in lengths], minor=False)
        axes.set_xticks([], minor=True)
        if name == "kl":
            axes.set_yscale("log")
        else:  # what was neither refitted nor trained may be far below
            room = 0.05 * (max(shown) - min(shown))
            axes.set_ylim(min(shown) - room, max(shown) + room)
        axes.set_xlabel("epochs of training (dotted: without reconstruction)")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        _label(axes, lengths[-1], ends, colors)
    budget = ", ".join(
        f"{value:.3g} zeros" if name == "sparsity" else f"{value:.3g} of {name}"
        for name, value in results["budget"].items()
    )
    figure.suptitle(f"{results['model']} on {results['data']}, {budget}", fontsize=10)
    figure.savefig(path, dpi=150)


def _label(axes: Any, x: float, ends: dict[str, float], colors: dict[str, str]) -> None:
    """Names the lines that end at x, one name below the other where they end together."""
    to_data, to_axes = axes.transData, axes.transAxes.inverted()
    places = {name: to_axes.transform(to_data.transform((x, y)))[1] for name, y in ends.items()}
    top = 1.0
    upwards = enumerate(sorted(places.items(), key=itemgetter(1)))
    for below, (name, place) in reversed(list(upwards)):
        top = max(min(place, top), _GAP * below)
        axes.annotate(
            name,
            (x, ends[name]),
            (1.03, top),
            textcoords="axes fraction",
            color=colors[name],
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colors[name],
                "linewidth": 0.5,
                "relpos": (0, 0.5),
            },
        )
        top -= _GAP


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
