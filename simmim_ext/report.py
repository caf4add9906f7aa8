"""What a compression came to: a table for the terminal and a picture of the units."""

import json
import math
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from .errors import SimMIMError
from .folders import read_manifest
from .result import FORMAT

Report = dict[str, Any]

KEPT, DROPPED = "#0b6e99", "#d9d4cc"
_COLUMNS = 4
_ENTRIES = ("teacher", "student", "fidelity", "latency", "layers")


def read_report(folder: Path) -> Report:
    """The report that ``CompressionResult.save`` put into a folder.

    Raises:
        SimMIMError: there is none, or it was changed.
    """
    path = folder / "report.json"
    if (folder / "manifest.json").exists():
        read_manifest(folder, FORMAT)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SimMIMError(
            f"{folder} is no saved result: its report.json cannot be read ({error.strerror})"
        ) from error
    except ValueError as error:
        raise SimMIMError(f"{path} is no JSON: {error}") from error
    if not isinstance(report, dict) or not all(entry in report for entry in _ENTRIES):
        raise SimMIMError(f"{path} is no report: it needs {', '.join(_ENTRIES)}")
    return report


def show(report: Report) -> None:
    """Prints the table and the sentences."""
    from rich.console import Console

    Console().print(table(report))
    print(*sentences(report), sep="\n")


def table(report: Report) -> Any:
    """The original and the compressed model side by side, a rich table."""
    from rich.table import Table
    from rich.text import Text

    found = Table("", title="Compression by information", title_justify="left")
    for heading in ("original", "compressed", "change"):
        found.add_column(heading, justify="right")
    for row in (*rows(report), *_layer_rows(report)):
        # Text: names may hold what rich takes for markup.
        found.add_row(*map(Text, row))
    return found


def sentences(report: Report) -> list[str]:
    """What the table leaves to words: how sure the figures are and what they were taken on."""
    return [*assurances(report), *conditions(report)]


def assurances(report: Report) -> Iterator[str]:
    """How sure the fidelity is; that of classifiers is."""
    fidelity = report["fidelity"]
    if fidelity is None:
        yield "The models were not compared, for want of calibration data."
    elif fidelity["agreement"] is not None:
        outputs = f"{fidelity['samples']:,}"
        inputs = f"{fidelity.get('inputs', fidelity['samples']):,}"
        samples = outputs if inputs == outputs else f"{outputs} tokens of {inputs}"
        yield (
            f"At least {fidelity['agreement_at_least']:.1%} agreement with the original at 95% "
            f"confidence, on {samples} samples ({fidelity['data']})."
        )


def conditions(report: Report) -> Iterator[str]:
    """What latency was measured on."""
    latency = report["latency"]
    if latency is not None:
        threads = latency["threads"]
        yield (
            f"Latency: batch of {latency['batch']}, {threads} thread{'s' if threads > 1 else ''}, "
            f"{latency['device']}, measured in turn."
        )


def rows(report: Report) -> Iterator[tuple[str, str, str, str]]:
    """What is compared: its name, the original's, the compressed model's, and the change."""
    teacher, student = report["teacher"], report["student"]

    def compared(
        key: str, label: str, form: str, smaller: bool = True
    ) -> tuple[str, str, str, str]:
        old, new = teacher[key], student[key]
        if smaller:
            change = f"{old / new:.1f}x {'faster' if key == 'latency_ms' else 'smaller'}"
        else:
            change = f"{100 * (new - old):+.2f} points"
        return label, format(old, form), format(new, form), change

    if teacher["accuracy"] is not None:
        yield compared("accuracy", "accuracy", ".2%", smaller=False)
    yield from fidelity_rows(report)
    old, new = (model["predictive_information"] for model in (teacher, student))
    if old is not None:
        yield "predictive information, nats", f"{old:.4f}", f"{new:.4f}", f"{new - old:+.4f}"
    yield compared("params", "parameters", ",")
    yield compared("flops", "FLOPs a sample", ",")
    yield compared("bytes", "bytes on disk", ",")
    if teacher["latency_ms"] is not None:
        yield compared("latency_ms", "latency, ms", ".3f")


def fidelity_rows(report: Report) -> Iterator[tuple[str, str, str, str]]:
    """Those of ``rows`` that say how alike the two predict."""
    fidelity = report["fidelity"]
    if fidelity is None:
        return
    yield ("KL from the original, nats", "0", *with_interval(fidelity, "kl", ".4f"))
    if fidelity["agreement"] is not None:
        yield ("agreement", "100%", *with_interval(fidelity, "agreement", ".2%"))
    else:
        if fidelity["relative_error"] is not None:  # None where the original's outputs do not vary
            yield "relative error", "0", f"{fidelity['relative_error']:.4f}", ""
        yield ("cosine", "1", *with_interval(fidelity, "cosine", ".4f"))
    if fidelity.get("rank_correlation") is not None:
        yield "rank correlation", "1", f"{fidelity['rank_correlation']:.4f}", ""


def _layer_rows(report: Report) -> Iterator[tuple[str, str, str, str]]:
    for layer in report["layers"]:
        kind = "units" if "information" in layer else "weights"
        information = layer.get("information")
        share = "" if information is None else f"{information:.1%} of information"
        yield f"{kind} of {layer['name']}", f"{layer['before']:,}", f"{layer['after']:,}", share


def with_interval(fidelity: Report, key: str, form: str) -> tuple[str, str]:
    """A figure, and its interval at 95%."""
    low, high = (format(end, form) for end in fidelity[f"{key}_interval"])
    return format(fidelity[key], form), f"95%: {low} to {high}"


def figure_class() -> Any:
    """Matplotlib's Figure, which draws without a display and without global state.

    Raises:
        SimMIMError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SimMIMError("pictures need matplotlib: pip install 'simmim_ext[report]'") from error
    return Figure


def draw(report: Report, path: str | PathLike[str]) -> None:
    """Draws the information of every unit, kept and dropped, one panel a layer.

    Raises:
        SimMIMError: matplotlib is missing, or the report has no information of units.
    """
    new_figure = figure_class()
    layers = [layer for layer in report["layers"] if "unit_information" in layer]
    if not layers:
        raise SimMIMError(
            "the report has no unit's information to draw: there is some where units were removed "
            '(granularity="unit") by what score() returned'
        )
    columns = min(len(layers), _COLUMNS)
    rows = math.ceil(len(layers) / columns)
    figure = new_figure(figsize=(max(7.0, 4.5 * columns), 3.6 * rows), layout="constrained")
    for axes, layer in zip(
        figure.subplots(rows, columns, squeeze=False).flat, layers, strict=False
    ):
        _draw_layer(axes, layer)
    figure.savefig(path, dpi=150)


def _draw_layer(axes: Any, layer: Report) -> None:
    information, kept = layer["unit_information"], set(layer["kept"])
    order = sorted(range(len(information)), key=lambda unit: -information[unit])
    for wanted, colour, word in ((False, DROPPED, "dropped"), (True, KEPT, "kept")):
        places = [i for i, unit in enumerate(order) if (unit in kept) == wanted]
        heights = [information[order[i]] for i in places]
        axes.bar(places, heights, width=1.0, color=colour, label=f"{word}: {len(places)} units")
    axes.set_title(
        f"{layer['name']}: {layer['after']} of {layer['before']} units keep "
        f"{layer['information']:.1%} of the information",
        fontsize=9,
    )
    axes.set_xlabel("units, by information")
    axes.set_ylabel("I(unit; prediction), nats")
    axes.margins(x=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
