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
    """The least speed of each kernel in each cell; sizes that one lacks, between its own."""
    axes = ("capability", "threads", "batches", "densities")
    if any(getattr(a, axis) != getattr(b, axis) for axis in axes):
        raise ValueError(f"slower: tables must agree in {', '.join(axes)}")
    sizes = tuple(sorted({*a.sizes, *b.sizes}))
    a, b = with_sizes(a, sizes), with_sizes(b, sizes)
    speeds = {name: _least(values, b.speeds[name]) for name, values in a.speeds.items()}
    return replace(a, cpu=f"{a.cpu}, or {b.cpu} where that is slower", speeds=speeds)


def with_sizes(table: SpeedTable, sizes: tuple[int, ...]) -> SpeedTable:
    """The same at other sizes, as `SpeedTable.speed` has it."""

    def row(name: str, size: int, batch: int) -> tuple[float, ...]:
        columns = table.densities[: len(table.speeds[name][0][batch])]
        return tuple(round(table.speed(name, size, batch, density), 3) for density in columns)

    speeds = {
        name: tuple(tuple(row(name, size, i) for i in range(len(table.batches))) for size in sizes)
        for name in table.speeds
    }
    return replace(table, sizes=sizes, speeds=speeds)


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
