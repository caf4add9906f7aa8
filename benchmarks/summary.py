"""Keeps what a benchmark run measured, and shows it in the README.

    python benchmarks/summary.py results/bench.json     # as pytest-benchmark wrote it
    python benchmarks/summary.py                        # the committed figures, drawn anew

writes benchmarks/results/<machine>.json, which is committed, beside it the chart of the crossover
and the tables, and between the README's markers the highlights of what was measured last and the
comparisons of criteria (contests.py). Only ratios of medians taken in turn are kept: absolute times
say little of a shared machine.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import contests
import crossover
from timing import LOOP

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARKERS = ("<!-- figures -->", "<!-- end of figures -->")

Figures = dict[str, dict[str, Any]]

# Benchmark -> what it does, with its parameters in order.
WORK = {
    "entropy": "entropy, 65,536 x 512 float32, {1} bins, {0}",
    "entropy_dtype": "entropy, 65,536 x 512 {0}, 16 bins, range given",
    "entropy_many_features": "entropy, 8,192 x 4,096 float32, 16 bins, range given",
    "smallest_call": "entropy, 64 x 8: what a call costs",
    "pairwise": "mutual information of all pairs of 512 features, 16,384 samples, {0} bins",
    "pairwise_capability": "the same, 16 bins, with {0} instructions",
    "pairwise_many_features": "all pairs of 4,096 features, 8,192 samples, 16 bins",
    "labels": "mutual information with 10 classes, 65,536 x 512, 16 bins",
    "soft_labels": "mutual information with soft labels of 10 classes, 16,384 x 512, 16 bins",
    "conditional": "conditional information of pairs of 256 features, 8,192 samples, 8 bins",
    "predictive": "predictive information of {0} samples, {1} classes",
    "permutations": "permutation test, 64 features and 10 classes, 4,096 samples, 200 permutations",
    "discretize": "codes, 65,536 x 512 float32, 16 bins, {0}",
    "scaling": "what a second thread adds: {0}",
    "quantile": "quantile bins, 1,000,000 x 64, 16 bins",
    "mlp": "784-500-10, 10% kept, batch 64, whole model",
    "call_overhead": "8 x 8 layer: what a call costs",
    "slowest_cell": "the slowest layer: {note}",
    "input_gradient": "forward and gradient of x, {0} kept, batch {1}: {note}",
    "autocast": "bfloat16 autocast, 90% kept, batch {0}: {note}",
    "two_threads": "1024 x 1024, 10% kept, batch {0}, on two threads",
}
PARAMETERS = {
    "range": "range given",
    "no range": "range found",
    "uniform": "range given",
    "edges": "edges given",
}
# Rivals that are not shown: controls, and what no reader would choose.
HIDDEN = ("dense again", "one read", "W*M", "sparse CSR")
# Benchmarks of a matrix: its mask, its rival.
MATRIX = {
    ("inference", "element"): ("any", "dense"),
    ("inference", "block"): ("16 x 1 blocks", "dense"),
    ("large_layer",): ("any, 4096 x 4096", "dense"),
    ("bfloat16",): ("any, bfloat16", "dense"),
    ("bfloat16", "packed"): ("the same, against torch's packed bfloat16", "packed bfloat16"),
    ("training_step",): ("training step, against `F.linear(x, W*M)`", "W*M"),
}
COLUMNS = ("1", "16", "128", "512")
# What the README shows; the machines' own pages show everything.
HIGHLIGHTS = {
    *("entropy[range-16]", "entropy[no range-16]", "pairwise", "labels", "soft_labels"),
    *(
        "conditional",
        "predictive",
        "permutations",
        "quantile",
        "large_layer",
        "mlp",
        "slowest_cell",
    ),
}
HIGHLIGHT_DENSITY = 0.1  # of layers that were measured at several


def condense(run: dict[str, Any]) -> dict[str, Any]:
    """What is worth keeping of a pytest-benchmark report."""
    import torch

    from simmim_ext.ops import _library

    cpu = run["machine_info"]["cpu"]
    return {
        "machine": {
            "cpu": cpu.get("brand_raw", "unknown"),
            "family": cpu.get("family"),
            "capability": _library.cpu_capability(),
            "threads": 1,
            "torch": torch.__version__,
            "measured": run["datetime"][:10],
        },
        "figures": {one["name"].removeprefix("test_"): one["extra_info"]
                    for one in run["benchmarks"]},
    }  # fmt: skip


def tables(results: dict[str, Any], folder: str = "", *, highlights: bool = False) -> str:
    """One machine's figures in Markdown, whose files are in the folder; or the highlights alone."""
    figures = results["figures"]
    if highlights:
        figures = {name: one for name, one in figures.items() if _is_highlight(name)}
    matrix, used = _matrix(figures)
    linear = {
        *("mlp", "call_overhead", "slowest_cell", "two_threads", "input_gradient", "autocast"),
    }
    rest = {name: figure for name, figure in figures.items() if name not in used}
    layers = {name: figure for name, figure in rest.items() if _parts(name)[0] in linear}
    information = {name: figure for name, figure in rest.items() if name not in layers}
    device = crossover.device(results["machine"])
    where = f"[{_path(results).name}]({folder}{_path(results).name})"
    if highlights:
        where = f"[its page]({folder}{_path(results, 'md').name})"
    return "\n".join(
        [
            f"One thread of {device}, {results['machine']['measured']}; medians of runs in turn,"
            f" from `make bench`. Every figure is {'on' if highlights else 'in'} {where}.",
            "",
            "| information | times as fast as | of one read of x |",
            "|---|---|---|",
            *(
                f"| {_work(name, figure)} | {_ratios(figure)} | {_read(figure)} |"
                for name, figure in information.items()
            ),
            "",
            "Linear layers, times as fast as dense float32 `F.linear`, 1024 x 1024 unless said. In"
            " turn with it each call finds in the caches what the other left, as in a large model;"
            " in brackets, where measured: each in a loop, which finds its own weights there:",
            "",
            f"| mask | kept | {' | '.join(f'batch {batch}' for batch in COLUMNS)} |",
            f"|---|---|{'---|' * len(COLUMNS)}",
            *matrix,
            "",
            "| layers | times as fast as |",
            "|---|---|",
            *(f"| {_work(name, figure)} | {_ratios(figure)} |" for name, figure in layers.items()),
            "",
            f"![Speed-up over density on {device}]({folder}{_path(results, 'svg').name})",
        ]
    )


def _is_highlight(name: str) -> bool:
    base, parts = _parts(name)
    if base in ("inference", "bfloat16", "training_step"):
        return str(HIGHLIGHT_DENSITY) in parts
    return base in HIGHLIGHTS or name in HIGHLIGHTS


def _parts(name: str) -> tuple[str, list[str]]:
    """Of a test's id: inference[element-0.05-1] is "inference", ["element", "0.05", "1"]."""
    base, _, rest = name.partition("[")
    return base, rest.removesuffix("]").split("-") if rest else []


def _work(name: str, figure: dict[str, Any]) -> str:
    base, parts = _parts(name)
    if base not in WORK:
        return ", ".join([base.replace("_", " "), *parts])
    shown = [PARAMETERS.get(part, part.removeprefix("torch.")) for part in parts]
    return WORK[base].format(*shown, note=figure["note"])


def _ratios(figure: dict[str, Any]) -> str:
    shown = {k: v for k, v in figure["times_as_fast"].items() if k not in HIDDEN}
    return ", ".join(f"**{_number(ratio)}** {rival}" for rival, ratio in shown.items())


def _read(figure: dict[str, Any]) -> str:
    read = figure["times_as_fast"].get("one read")
    return "" if read is None else f"{read:.0%}"


def _number(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.1f}" if ratio >= 1.05 else f"{ratio:.2f}"


def _matrix(figures: Figures) -> tuple[list[str], set[str]]:
    """Rows of masks and densities by batch, and the names of the figures in them."""
    lines, used = [], set()
    for key, (mask, rival) in MATRIX.items():
        cells: dict[float, dict[str, str]] = {}
        for name, density, batch in _cells(figures, key):
            used.add(name)
            ratios = figures[name]["times_as_fast"]
            if rival not in ratios:  # torch has no such rival on that machine
                continue
            shown = _number(ratios[rival])
            if rival + LOOP in ratios:
                shown += f" ({_number(ratios[rival + LOOP])})"
            cells.setdefault(density, {})[batch] = shown
        for density, row in sorted(cells.items()):
            columns = " | ".join(row.get(batch, "") for batch in COLUMNS)
            lines.append(f"| {mask} | {density:.0%} | {columns} |")
    return lines, used


def _cells(figures: Figures, key: tuple[str, ...]) -> Iterator[tuple[str, float, str]]:
    for name in figures:
        base, parts = _parts(name)
        if base != key[0]:
            continue
        if base == "inference" and parts[0] == key[1]:
            yield name, float(parts[1]), parts[2]
        elif base == "large_layer":
            yield name, 0.1, parts[0]
        elif base == "bfloat16":
            yield name, float(parts[0]), parts[1]
        elif base == "training_step":
            yield name, float(parts[0]), "128"


def committed() -> list[dict[str, Any]]:
    """The results of all machines, the newest first."""
    every = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("cpu-*.json"))]
    return sorted(every, key=lambda one: one["machine"]["measured"], reverse=True)


def _path(results: dict[str, Any], kind: str = "json") -> Path:
    machine = results["machine"]
    cpu = f"{machine['cpu']} {machine.get('family') or ''}"
    name = re.sub("[^a-z0-9]+", "-", cpu.lower()).strip("-")
    return RESULTS / f"cpu-{name}-{machine['capability']}.{kind}"


def page(results: dict[str, Any]) -> str:
    """A machine's tables as a file of their own."""
    return f"# Speed on {crossover.device(results['machine'])}\n\n{tables(results)}\n"


def write_readme(text: str, every: list[dict[str, Any]]) -> str:
    """The README with its tables drawn anew."""
    begin, end = MARKERS
    before, rest = text.split(begin)
    shown = tables(every[0], "benchmarks/results/", highlights=True)
    for other in every[1:]:
        where = f"benchmarks/results/{_path(other, 'md').name}"
        machine = other["machine"]
        shown += f"\n\nThe same on [{crossover.device(machine)}]({where}), {machine['measured']}."
    return contests.write_readme(f"{before}{begin}\n{shown}\n{end}{rest.split(end)[1]}")


def main(report: str | None = None) -> None:
    if report is not None:
        results = condense(json.loads(Path(report).read_text()))
        RESULTS.mkdir(exist_ok=True)
        _path(results).write_text(json.dumps(results, indent=1) + "\n")
    for results in committed():
        crossover.draw(results, _path(results, "svg"))
        _path(results, "md").write_text(page(results))
        print(f"wrote {_path(results, '*').relative_to(ROOT)}")
    readme = ROOT / "README.md"
    readme.write_text(write_readme(readme.read_text(), committed()))


if __name__ == "__main__":
    main(*sys.argv[1:])
