"""The report as one HTML page that needs nothing else: no scripts, fonts or pictures to load."""

import io
import re
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from .errors import SimMIMError
from .folders import write_text
from .report import (
    Report,
    assurances,
    conditions,
    fidelity_rows,
    figure_class,
    rows,
    with_interval,
)

# Colours as they are drawn, and what the page's style makes of them, by day and by night.
_COLOURS = {
    "#010203": "var(--ink)",
    "#040506": "var(--line)",
    "#070809": "var(--kept)",
    "#0a0b0c": "var(--dropped)",
}
_INK, _LINE, _KEPT, _DROPPED = _COLOURS


def write_page(report: Report, path: Path, *, title: str) -> None:
    """Writes the page under a title of its own.

    Raises:
        SimMIMError: jinja2 or matplotlib is missing, or the file can't be written.
    """
    figure_class()
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise SimMIMError("pages need jinja2: pip install 'simmim_ext[report]'") from error
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    template = environment.from_string((files(__package__) / "page.html").read_text("utf-8"))
    try:
        write_text(path, template.render(_content(report), title=title) + "\n")
    except OSError as error:
        raise SimMIMError(f"{path} cannot be written: {error.strerror}") from error


def _content(report: Report) -> dict[str, Any]:
    settings = ("constraints", "granularity", "output", "ignored_layers", "round_to", "dataset")
    fidelity = list(fidelity_rows(report))
    return {
        "tiles": list(_tiles(report)),
        "models": [row for row in rows(report) if row not in fidelity],
        "conditions": list(conditions(report)),
        "fidelity": fidelity,
        "assurances": list(assurances(report)),
        "worst": (report["fidelity"] or {}).get("worst_classes", []),
        "kind": "units" if any("information" in row for row in report["layers"]) else "weights",
        "layers": [_layer(layer, i) for i, layer in enumerate(report["layers"])],
        "training": _training(report.get("training", [])),
        "stages": report.get("stages", []),
        "lists": {
            "Settings": {k: _words(report[k]) for k in settings if k in report},
            "Versions": report.get("versions", {}),
            "Configuration": {k: _words(v) for k, v in report.get("config", {}).items()},
        },
    }


def _tiles(report: Report) -> Iterator[tuple[str, str, str]]:
    """(What, how much, how much that is against the original) of the figures that count."""
    teacher, student, fidelity = report["teacher"], report["student"], report["fidelity"]
    smaller = teacher["params"] / student["params"]
    yield "fewer parameters", f"{smaller:.1f}x", f"{student['params']:,} of {teacher['params']:,}"
    if fidelity is None:
        return
    faster = teacher["latency_ms"] / student["latency_ms"]
    yield "faster", f"{faster:.1f}x", f"{student['latency_ms']:.3g} ms a batch"
    key = "agreement" if fidelity["agreement"] is not None else "cosine"
    form = ".2%" if key == "agreement" else ".4f"
    yield (key, *with_interval(fidelity, key, form))
    if student["accuracy"] is None:
        yield ("KL from the original, nats", *with_interval(fidelity, "kl", ".4f"))
    else:
        change = 100 * (student["accuracy"] - teacher["accuracy"])
        yield "accuracy", f"{student['accuracy']:.2%}", f"{change:+.2f} points"


def _layer(layer: Report, position: int) -> Report:
    """What the page says of a layer; its units where it has lost units."""
    kept = layer.get("kept")
    picture = None
    if "unit_information" in layer:
        figure = _units(layer["unit_information"], set(layer["kept"]))
        picture = _svg(figure, f"layer {position}")
    return {
        "name": layer["name"],
        "before": layer["before"],
        "after": layer["after"],
        "share": layer["after"] / layer["before"],
        "information": layer.get("information"),
        "kept": None if kept is None else ", ".join(_ranges(kept)),
        "picture": picture,
    }


def _ranges(units: Iterable[int]) -> Iterator[str]:
    """Ascending numbers, with neighbours drawn together: "0-2", "5"."""
    runs: list[list[int]] = []
    for unit in sorted(units):
        if runs and unit == runs[-1][-1] + 1:
            runs[-1].append(unit)
        else:
            runs.append([unit])
    return (str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_words, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _units(information: list[float], kept: set[int]) -> Any:
    """Every unit's information, in order, kept and dropped."""
    figure, axes = _axes()
    order = sorted(range(len(information)), key=lambda unit: -information[unit])
    for wanted, colour in ((False, _DROPPED), (True, _KEPT)):
        # One shape for all bars: a path each would make a page of megabytes.
        heights = [information[unit] if (unit in kept) == wanted else 0.0 for unit in order]
        axes.stairs(heights, range(len(order) + 1), fill=True, color=colour, linewidth=0)
    axes.set_xlim(0, len(order))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("units, by information")
    axes.set_ylabel("nats")
    return figure


def _training(training: list[Report]) -> Any:
    """The loss of distillation by epoch; None where nothing was trained."""
    if not training:
        return None
    figure, axes = _axes()
    losses = [row["loss"] for row in training]
    # Steps of a schedule begin to count anew: one axis for all.
    axes.plot(range(1, len(losses) + 1), losses, color=_KEPT, marker=".", linewidth=1.4)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    return _svg(figure, "training")


def _axes() -> tuple[Any, Any]:
    figure = figure_class()(figsize=(4.4, 1.9), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_LINE)
    axes.tick_params(colors=_INK, color=_LINE, labelsize=9.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=_INK, size=9.5)
    axes.locator_params(axis="y", nbins=4)
    return figure, axes


def _svg(figure: Any, salt: str) -> Any:
    """The figure as SVG inside a page: its text in the page's font, its colours the page's."""
    from markupsafe import Markup
    from matplotlib import rc_context

    file = io.StringIO()
    # The salt keeps the names of one picture's shapes apart from another's.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for colour, variable in _COLOURS.items():
        text = text.replace(colour, variable)
    return Markup(text)
