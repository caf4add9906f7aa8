"""How results show themselves when printed: a few lines, however large the network."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

# Layers that are shown.
_MOST = 6


def listed(heading: str, lines: Sequence[str]) -> str:
    """The heading, the first of the lines below it, and how many more there are."""
    more = len(lines) - _MOST
    ending = [f"and {more} more"] if more > 0 else []
    return "\n  ".join([heading, *lines[:_MOST], *ending])


def counted(count: int, noun: str) -> str:
    """A number of things in words."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def result_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What was kept, and how alike the two models predict where that was looked at."""
    from .report import fidelity_rows

    if not report.keys() >= {"layers", "teacher", "student", "fidelity"}:
        return  # a result that was made by hand
    layers = report["layers"]
    kind = "units" if all("information" in layer for layer in layers) else "weights"
    before, after = (sum(layer[when] for layer in layers) for when in ("before", "after"))
    yield f"{kind}: {after:,} of {before:,} kept, in {counted(len(layers), 'layer')}"
    old, new = report["teacher"]["params"], report["student"]["params"]
    yield f"parameters: {old:,} -> {new:,} ({new / old:.1%})"
    for label, _, value, interval in fidelity_rows(dict(report)):
        yield f"{label}: {value}" + (f" ({interval})" if interval else "")


def score_lines(scores: Mapping[str, Tensor]) -> list[str]:
    """For each layer how many units there are and what their scores are."""
    return [
        f"{name!r}: {counted(len(values), 'unit')}, {float(values.min()):.3g} to "
        f"{float(values.max()):.3g}"
        for name, values in scores.items()
    ]
