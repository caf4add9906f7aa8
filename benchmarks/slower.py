"""The slower of several machines' speed tables, as a default that is not too hopeful on any.

    python benchmarks/slower.py a.json b.json simmim_ext/nn/speeds/avx2.json

takes tables that `simmim tune --output` wrote, the last path is where theirs goes.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from simmim_ext.nn.speed_table import SpeedTable, parse


def slower(a: SpeedTable, b: SpeedTable) -> SpeedTable:
    """The least speed of each kernel in each cell."""
    axes = ("capability", "threads", "sizes", "batches", "densities")
    if any(getattr(a, axis) != getattr(b, axis) for axis in axes):
        raise ValueError(f"slower: tables must agree in {', '.join(axes)}")
    speeds = {name: _least(values, b.speeds[name]) for name, values in a.speeds.items()}
    return replace(a, cpu=f"{a.cpu}, or {b.cpu} where that is slower", speeds=speeds)


def _least(a: Any, b: Any) -> Any:
    if isinstance(a, tuple):
        return tuple(_least(x, y) for x, y in zip(a, b, strict=True))
    return min(a, b)


def main(first: str, *others: str) -> None:
    table = parse(Path(first).read_text())
    for other in others[:-1]:
        table = slower(table, parse(Path(other).read_text()))
    Path(others[-1]).write_text(table.text())


if __name__ == "__main__":
    main(*sys.argv[1:])
