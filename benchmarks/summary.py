"""Keeps what a benchmark run measured, and shows it in the README.

    python benchmarks/summary.py results/bench.json     # as pytest-benchmark wrote it

writes benchmarks/results/<machine>.json, which is committed, and the table between the README's
markers. Only ratios of medians taken in turn are kept: absolute times say little of a shared
machine.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARKERS = ("<!-- figures -->", "<!-- end of figures -->")


def condense(run: dict[str, Any]) -> dict[str, Any]:
    """What is worth keeping of a pytest-benchmark report."""
    import torch

    from simmim_ext.ops import _library

    cpu = run["machine_info"]["cpu"]
    return {
        "machine": {
            "cpu": cpu.get("brand_raw", "unknown"),
            "capability": _library.cpu_capability(),
            "threads": 1,
            "torch": torch.__version__,
        },
        "figures": {one["name"].removeprefix("test_"): one["extra_info"]
                    for one in run["benchmarks"]},
    }  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """The README's table: a row for each benchmark, times as fast as each rival."""
    machine = results["machine"]
    rows = [
        f"One thread of {machine['cpu']} ({machine['capability']}), torch {machine['torch']}; "
        "medians of interleaved runs, from `make bench`:",
        "",
        "| work | times as fast as | of one read of x |",
        "|---|---|---|",
    ]
    for name, figure in results["figures"].items():
        ratios = dict(figure["times_as_fast"])
        read = ratios.pop("one read", None)
        against = ", ".join(
            f"**{ratio:.2g}** {rival}" if ratio < 10 else f"**{ratio:.0f}** {rival}"
            for rival, ratio in ratios.items()
        )
        rows.append(f"| {name} | {against} | {'' if read is None else f'{read:.0%}'} |")
    return "\n".join(rows)


def latest() -> dict[str, Any]:
    """The committed results that the README shows."""
    (path,) = RESULTS.glob("cpu-*.json")
    return json.loads(path.read_text())


def write_readme(text: str, results: dict[str, Any]) -> str:
    """The README with its table drawn anew."""
    begin, end = MARKERS
    before, rest = text.split(begin)
    return f"{before}{begin}\n{table(results)}\n{end}{rest.split(end)[1]}"


def main(report: str) -> None:
    results = condense(json.loads(Path(report).read_text()))
    name = re.sub(r"[^a-z0-9]+", "-", results["machine"]["cpu"].lower()).strip("-")
    RESULTS.mkdir(exist_ok=True)
    for old in RESULTS.glob("cpu-*.json"):
        old.unlink()
    path = RESULTS / f"cpu-{name}-{results['machine']['capability']}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    readme = ROOT / "README.md"
    readme.write_text(write_readme(readme.read_text(), results))
    print(f"wrote {path.relative_to(ROOT)} and README.md")


if __name__ == "__main__":
    main(sys.argv[1])
