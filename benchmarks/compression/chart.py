"""The comparison as a table for the terminal and as a picture."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from simmim_ext.report import figure_class

from .contest import SCRATCH

_OURS, _RIVAL, _SCRATCH = "#0b6e99", "#9a9488", "#c2543a"


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
    panels = (("kl", "KL from the teacher, nats"), ("accuracy", "accuracy"))
    for axes, (name, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for (method, refit), rows in lines.items():
            rows = sorted(rows, key=lambda row: row["epochs"])
            ours, scratch = method == "simmim", method in SCRATCH
            means = [statistics.mean(row[name]) for row in rows]
            axes.errorbar(
                [row["epochs"] for row in rows],
                means,
                [_spread(row[name]) for row in rows],
                color=_OURS if ours else _SCRATCH if scratch else _RIVAL,
                linestyle="-" if refit else ":",
                linewidth=2.2 if ours else 1,
                zorder=3 if ours else 2,
            )
            if refit or scratch:
                axes.annotate(method, (rows[-1]["epochs"], means[-1]), fontsize=7)
        axes.set_xscale("symlog", linthresh=1)
        if name == "kl":
            axes.set_yscale("log")
        axes.set_xlabel("epochs of training (dotted: without reconstruction)")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{results['model']} on {results['data']}, {results['budget']}", fontsize=10)
    figure.savefig(path, dpi=150)


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
