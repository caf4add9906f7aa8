"""What compression reaches, and where criteria stand at equal budget, as tables for the README."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

RESULTS = Path(__file__).parent / "results"
BARS = RESULTS / "bars-fashion-mnist.json"
# Case of the bars -> the network and what is kept in words.
CASES = {
    "mlp-25%": "784-500-10, 25% of units",
    "mlp-10%": "784-500-10, 10% of units",
    "mlp-5%": "784-500-10, 5% of units",
    "mlp-10%-untrained": "784-500-10, 10% of units, without distillation",
    "lenet-10%": "LeNet-300-100, 10% of parameters",
    "lenet-95%-zeros": "LeNet-300-100, 95% zeros",
    "lenet-98%-zeros": "LeNet-300-100, 98% zeros",
    "lenet-98%-zeros-in-3-steps": "the same in three steps (cubic schedule), as many epochs",
    "cnn-6.4%": "a CNN of two convolutions, 6.4% of parameters, 2 epochs",
}
# File -> the network and its budget in words, in the order of the table.
NETWORKS = {
    "mlp": "784-500-10, 10% of units",
    "lenet": "LeNet-300-100, 10% of parameters",
    "cnn": "a CNN of two convolutions, 6.4% of parameters",
    "resnet": "residual network with BatchNorm, 10% of parameters",
    "lenet-90-zeros": "LeNet-300-100, 90% zeros",
    "lenet-95-zeros": "LeNet-300-100, 95% zeros",
    "lenet-98-zeros": "LeNet-300-100, 98% zeros",
}
_PARTS = ("", "-30-epochs")
_NO_FIGURES = ("method", "widths", "left")
PRETRAINED = RESULTS / "pretrained.json"
COLUMNS = ("reconstructed", "1 epoch", "3 epochs", "10 epochs", "30 epochs")
FIGURES = {
    "kl": ("KL from the original, nats", ".3f", 1),
    "accuracy": ("accuracy, %", ".1f", 100),
    "agreement": ("agreement with the original, %", ".1f", 100),
}


def committed() -> dict[str, dict[str, Any]]:
    """The results by network, in the order of NETWORKS.

    What was trained for 30 epochs may be in a file of its own, with fewer rivals.
    """
    found = {}
    for name in NETWORKS:
        paths = [RESULTS / f"compression-{name}{more}-fashion-mnist.json" for more in _PARTS]
        parts = [json.loads(path.read_text()) for path in paths if path.exists()]
        if parts:
            found[name] = _together(*parts)
    return found


def tables(every: dict[str, dict[str, Any]]) -> str:
    """One table for each figure: SimMIM and its best rival, by network and length of training."""
    seeds = sorted({tuple(results["seeds"]) for results in every.values()})
    lines = [
        f"Means over seeds {' or '.join(map(_listed, seeds))}, on test images, SimMIM / the best"
        " of its rivals (for units L1, L2, FPGM, Taylor, Hessian, activation and random as"
        " torch-pruning ranks them, each with SimMIM's layer widths and its own, with the same"
        " refit and without; for zeros magnitude, LAMP and Wanda), after reconstruction and after"
        " epochs of the same distillation, the learning rate chosen for each. **Bold**: ahead by"
        " more than two standard errors; *slanted*: behind by more."
    ]
    rivals = {name: _rivals(results["rows"]) for name, results in every.items()}
    most = max(rivals.values(), key=len)
    for name, results in every.items():
        if rivals[name] < most:
            lines[0] += f" For {NETWORKS[name]}, the rivals are {_described(results['rows'])}."
        elif later := results.get("later"):
            lines[0] += f" For {NETWORKS[name]}, after 30 epochs, they are {_described(later)}."
    found = {one["column"] for results in every.values() for one in results["standings"]}
    columns = [column for column in COLUMNS if column in found]
    for figure, (words, form, scale) in FIGURES.items():
        lines += ["", f"| {words} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
        for name, results in every.items():
            cells = _cells(results, columns, figure, form, scale)
            lines.append(f"| {NETWORKS[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _listed(seeds: tuple[int, ...]) -> str:
    *most, last = map(str, seeds)
    return f"{', '.join(most)} and {last}" if most else last


def _together(results: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    """The results with those columns of the others that they lack, whose rows are "later"."""
    for other in others:
        columns = {one["column"] for one in results["standings"]}
        lengths = {row["epochs"] for row in results["rows"]}
        assert other["seeds"] == results["seeds"]
        results["later"] = [row for row in other["rows"] if row["epochs"] not in lengths]
        results["standings"] += [one for one in other["standings"] if one["column"] not in columns]
    return results


def _rivals(rows: list[dict[str, Any]]) -> set[str]:
    """The criteria that SimMIM was compared with."""
    methods = {row["method"] for row in rows} - {"simmim"}
    return {method for method in methods if not method.startswith("scratch")}


def _described(rows: list[dict[str, Any]]) -> str:
    words = ", ".join(sorted(_rivals(rows)))
    own = any(row["widths"] == "own" for row in rows)
    return words if own else f"{words}, at SimMIM's widths alone"


def _cells(
    results: dict[str, Any], columns: list[str], figure: str, form: str, scale: int
) -> Iterator[str]:
    standings = {(one["column"], one["figure"]): one for one in results["standings"]}
    for column in columns:
        one = standings.get((column, figure))
        if one is None:
            yield ""
            continue
        epochs = 0 if column == "reconstructed" else int(column.split()[0])
        ours = next(
            mean(row[figure])
            for row in results["rows"] + results.get("later", [])
            if (row["method"], row["widths"], row["reconstruct"]) == ("simmim", "shared", True)
            and row["epochs"] == epochs
        )
        sign = -1 if figure == "kl" else 1
        rival = ours - sign * one["lead"]
        mark = "**" if one["lead"] > one["noise"] else "*" if one["lead"] < -one["noise"] else ""
        yield (
            f"{mark}{format(scale * ours, form)}{mark} / {format(scale * rival, form)}"
            f" {one['best_rival']}"
        )


def bars() -> str:
    """What the default recipe reaches."""
    cases = json.loads(BARS.read_text())["cases"]
    lines = [
        "| network, what is kept | original | compressed | KL, nats | agreement |",
        "|---|---|---|---|---|",
    ]
    for name, words in CASES.items():
        one = cases[name]
        accuracy, kl, agreement = (
            one[figure]["mean"] for figure in ("accuracy", "kl", "agreement")
        )
        original = mean(one["teacher_accuracy"])
        lines.append(f"| {words} | {original:.1%} | {accuracy:.1%} | {kl:.4f} | {agreement:.1%} |")
    return "\n".join(lines)


def pretrained() -> str:
    """What is left of networks with published weights, by criterion."""
    cases = json.loads(PRETRAINED.read_text())["cases"]
    figures = {
        name: [f for f in case["rows"][0] if f not in _NO_FIGURES] for name, case in cases.items()
    }
    headings = [
        f"{name}, {value:.0%} of {cost}: {figure.replace('_', ' ').replace('kl', 'KL')}"
        for name, case in cases.items()
        for cost, value in case["budget"].items()
        for figure in figures[name]
    ]
    lines = [f"| criterion | {' | '.join(headings)} |", f"|---|{'---|' * len(headings)}"]
    for rows in zip(*(case["rows"] for case in cases.values()), strict=True):
        method, own = rows[0]["method"], rows[0]["widths"] == "own"
        words = method if method == "simmim" or not own else f"{method}, its own widths"
        values = [
            f"{mean(row[figure]):.3f}"
            for name, row in zip(cases, rows, strict=True)
            for figure in figures[name]
        ]
        lines.append(f"| {words} | {' | '.join(values)} |")
    return "\n".join(lines)


def write_readme(text: str) -> str:
    """The README with its tables of compression drawn anew."""
    for name, table in (
        ("bars", bars()),
        ("contests", tables(committed())),
        ("pretrained", pretrained()),
    ):
        before, rest = text.split(f"<!-- {name} -->")
        end = f"<!-- end of {name} -->"
        text = f"{before}<!-- {name} -->\n{table}\n{end}{rest.split(end)[1]}"
    return text
