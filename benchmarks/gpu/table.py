"""What ran on a GPU: the table that ends `make gpu`, and the README's word on it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MARKERS = ("<!-- gpu -->", "<!-- end of gpu -->")

NEVER = (
    "**No CUDA kernel of this package has run on a GPU yet.** They are compiled for sm_80 and "
    "sm_90 without a warning or a spilt register, and every one runs in the tests under an "
    "emulation of CUDA on the CPU (AddressSanitizer, shuffled threads, missing barriers caught), "
    "which proves answers but says nothing of speed, memory order or drivers. `make gpu`, on a "
    "machine with a GPU, measures and checks them within ten minutes and puts the figures here."
)


def table(results: dict[str, Any]) -> str:
    """Stages, then figures with what they are measured against."""
    device = results["device"]
    lines = [
        f"{device['name']} (compute capability {device['capability']}), torch {device['torch']}, "
        "from `make gpu`:",
        "",
        "| stage | outcome | what | s |",
        "|---|---|---|---|",
    ]
    for name, stage in results["stages"].items():
        lines.append(
            f"| {name} | {stage['outcome']} | {stage['detail']} | {stage['seconds']:.0f} |"
        )
    if results.get("missing"):
        lines += ["", f"Not installed there, and what needs them skipped: {results['missing']}."]
    if results.get("figures"):
        measured = results["measured"]
        lines += [
            "",
            f"A copy there moves {measured['copy_gb_per_s']:.0f} GB/s, counting bytes read and "
            f"written; a bf16 product reaches {measured['bf16_tflop_per_s']:.0f} TFLOP/s.",
            "",
            "| work | ms | rate | of the copy bandwidth | of the bf16 product | times as fast as |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_row(name, figure) for name, figure in results["figures"].items()]
    return "\n".join(lines)


def _row(name: str, figure: dict[str, Any]) -> str:
    rivals = ", ".join(f"**{x:.2g}** {rival}" for rival, x in figure["times_as_fast"].items())
    ms = "" if figure["ms"] is None else f"{figure['ms']:.3g}"
    shares = (figure.get(key) for key in ("of_copy", "of_tensor_peak"))
    parts = " | ".join("" if share is None else f"{share:.0%}" for share in shares)
    return f"| {name} | {ms} | {figure['rate']} | {parts} | {rivals} |"


def kept() -> list[dict[str, Any]]:
    """The committed results, a device each."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("gpu-*.json"))]


def section(results: list[dict[str, Any]]) -> str:
    """What the README says of GPUs."""
    return "\n\n".join(table(one) for one in results) if results else NEVER


def write_readme(text: str, results: list[dict[str, Any]]) -> str:
    """The README with that section drawn anew."""
    begin, end = MARKERS
    before, rest = text.split(begin)
    return f"{before}{begin}\n{section(results)}\n{end}{rest.split(end)[1]}"


def keep(results: dict[str, Any]) -> None:
    """Writes the device's results, a stage that did not run this time as it was, and the README.

    A run that did not even build is not worth keeping.
    """
    if results["stages"].get("build", {"outcome": "passed"})["outcome"] != "passed":
        return
    name = re.sub(r"[^a-z0-9]+", "-", results["device"]["name"].lower()).strip("-")
    path = RESULTS / f"gpu-{name}.json"
    merged = dict(results)
    if path.exists():
        before = json.loads(path.read_text())
        merged = {**before, **results, "stages": {**before["stages"], **results["stages"]}}
    path.write_text(json.dumps(merged, indent=1) + "\n")
    readme = ROOT / "README.md"
    readme.write_text(write_readme(readme.read_text(), kept()))


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(write_readme(path.read_text(), kept()))
