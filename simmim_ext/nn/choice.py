"""Chooses the kernels of a sparse layer, by pattern, density, size and batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from .pattern import Pattern
from .speed_table import DENSE_BFLOAT16, KERNELS, ROUNDING, SpeedTable
from .tuned import InForce, in_force

# A sparse kernel must promise so much more than dense, or dense is taken.
MARGIN = 1.25
# A kernel that is nowhere so much faster than the others is left out: each has a layout of its own.
WORTH = 1.1
# Below so many weights a layer's time is that of the call, and dense has the shortest.
SMALLEST = 1 << 14
# No layout has more rows or columns; see csrc/kernels/sparse_linear.h.
LARGEST = 1 << 30


@dataclass(frozen=True)
class Choice:
    """Which kernel serves which batch sizes.

    Attributes:
        pattern: what the mask is made of; see ``Pattern.name``.
        density: the share of the weights that is kept, 0..1.
        kernels: (largest batch, kernel) in ascending order, the last without a limit (None).
            Kernels: "dense", "compact" (dense on the kept rows and columns), "element", "pair",
            "gather", "window", "planes", "block", "tile", "row" and "list" (CUDA's), "2:4" and
            "bsr" (torch's own on CUDA, by cuSPARSELt and Triton; gradients and torch.compile get
            "dense" there), "compressed" (decompresses block by block: memory="small").
        reason: why, in words.
        speeds: (batch, how many times as fast as dense float32 the layer should be there), for
            every batch of the speed table; empty where the table was not asked.
    """

    pattern: str
    density: float
    kernels: tuple[tuple[int | None, str], ...]
    reason: str
    speeds: tuple[tuple[int, float], ...] = ()

    def kernel(self, batch: int) -> str:
        """The kernel that serves a batch of so many samples."""
        return next(name for limit, name in self.kernels if limit is None or batch <= limit)

    def kernels_text(self) -> str:
        """The kernels in words, as "gather, element from batch 8"."""
        parts, first = [], 0
        for limit, name in self.kernels:
            parts.append(f"{name} from batch {first}" if first else name)
            first = (limit or 0) + 1
        return ", ".join(parts)

    def speeds_text(self) -> str:
        """The speeds expected at some batches in words, as "4.9x at 1, 7.0x at 16"."""
        shown = [(batch, speed) for batch, speed in self.speeds if batch in (1, 16, 128)]
        return ", ".join(f"{speed:.1f}x at {batch}" for batch, speed in shown)

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON: "kernels" by the first batch that each serves, "speeds" by batch."""
        firsts = [0, *((limit or 0) + 1 for limit, _ in self.kernels)]
        kernels = {str(first): name for first, (_, name) in zip(firsts, self.kernels, strict=False)}
        speeds = {str(batch): round(speed, 3) for batch, speed in self.speeds}
        density, reason = self.density, self.reason
        return {"pattern": self.pattern, "density": density, "kernels": kernels, "reason": reason,
                "speeds": speeds}  # fmt: skip

    def __str__(self) -> str:
        return f"{self.pattern}, {self.density:.1%} kept: {self.kernels_text()} ({self.reason})"


def choose(pattern: Pattern, shape: tuple[int, int], capability: str, dtype: torch.dtype) -> Choice:
    """The fastest kernels for a layer, by the speed table that is in force.

    Args:
        pattern: of the layer's mask.
        shape: out_features, in_features.
        capability: of the CPU; see ``simmim info``.
        dtype: of the layer's values.
    """

    def dense(reason: str) -> Choice:
        return Choice(pattern.name, pattern.density, ((None, "dense"),), reason)

    if math.prod(shape) < SMALLEST:
        return dense(f"fewer than {SMALLEST} weights")
    if max(shape) > LARGEST:
        return dense("more than 2^30 inputs or outputs")
    if dtype == torch.float64 and pattern.name != "rows/columns":
        return dense("sparse kernels compute in float32")
    size = math.sqrt(math.prod(shape))
    return choose_from(in_force(capability), pattern.name, pattern.density, size, dtype)


def choose_from(
    found: InForce, pattern: str, density: float, size: float, dtype: torch.dtype
) -> Choice:
    """The fastest kernels by one speed table.

    Args:
        found: the table, and where it is from.
        pattern: a ``Pattern.name``.
        density, dtype: of the layer.
        size: the side of a square weight of as many weights.
    """
    table = found.table
    rows = _worthwhile(list(_speeds(table, pattern, density, size, dtype)))
    kernels = tuple(_merged(table.batches, rows))
    speeds = tuple((b, row[_best(row)]) for b, row in zip(table.batches, rows, strict=True))
    whose = "the default speed table" if found.path is None else "this machine's speed table"
    is_dense = kernels == ((None, "dense"),)
    reason = f"nothing is faster in {whose}" if is_dense else f"fastest in {whose}"
    return Choice(pattern, density, kernels, reason, speeds)


def _speeds(
    table: SpeedTable, pattern: str, density: float, size: float, dtype: torch.dtype
) -> Iterator[dict[str, float]]:
    """For each of the table's batches: dense and every kernel that fits -> its speed."""

    def fits(kernel: str) -> bool:
        if kernel in ("compact", "block"):
            return pattern.startswith({"compact": "rows/columns", "block": "block"}[kernel])
        return dtype == torch.bfloat16 if kernel in ROUNDING else dtype != torch.float64

    names = [name for name in KERNELS[table.capability] if fits(name)]
    for row in range(len(table.batches)):
        speeds = {name: table.speed(name, size, row, density) for name in names}
        is_half = dtype == torch.bfloat16
        yield {"dense": table.speed(DENSE_BFLOAT16, size, row, 1.0) if is_half else 1.0, **speeds}


def _worthwhile(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """The rows without kernels that the others can stand for at every batch."""

    def loss(name: str) -> float:
        """How much slower a batch is without the kernel, at the worst."""
        rest = [{k: v for k, v in row.items() if k != name} for row in left]
        return max(
            row[_best(row)] / other[_best(other)] for row, other in zip(rows, rest, strict=True)
        )

    left = rows
    while used := {_best(row) for row in left} - {"dense"}:
        name = min(sorted(used), key=loss)
        if loss(name) >= WORTH:
            break
        left = [{k: v for k, v in row.items() if k != name} for row in left]
    return left


def _best(speeds: dict[str, float]) -> str:
    kernel = max(speeds, key=lambda name: speeds[name])
    return kernel if speeds[kernel] >= MARGIN * max(speeds["dense"], 1.0) else "dense"


def _merged(
    batches: tuple[int, ...], rows: list[dict[str, float]]
) -> Iterator[tuple[int | None, str]]:
    """Ranges of batches: the last of each, and the kernel.

    Between two batches that were measured each kernel is taken to be as slow as at the slower: it
    takes as long for a vector of few samples as for a full one.
    """
    ends: list[tuple[int | None, str]] = []
    for i, (batch, row) in enumerate(zip(batches, rows, strict=True)):
        if i > 0 and batch > batches[i - 1] + 1:
            slower = {name: min(speed, rows[i - 1][name]) for name, speed in row.items()}
            ends.append((batch - 1, _best(slower)))
        ends.append((batch, _best(row)))
    for (last, kernel), (_, following) in pairwise(ends):
        if kernel != following:
            yield last, kernel
    yield None, ends[-1][1]
