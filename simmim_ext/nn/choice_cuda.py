"""Chooses the kernels of a sparse layer on CUDA.

By arithmetic, not yet by measurement: no GPU has run them. A product of so few samples takes the
time of reading its weight. "row" reads 12 bits and the value for each kept weight, and gathers from
shared memory what 8 (float32: 4) samples have for it at a time. "tile" reads the value of each kept
weight and one bit for every weight, but takes some 290 instructions for 16 x 64 weights to make
fragments of what it reads, whatever the density, and more the more samples there are.
"""

from __future__ import annotations

from itertools import groupby

import torch

from .choice import Choice
from .pattern import Pattern

# A sparse kernel must promise so much more than dense, or dense is taken.
MARGIN = 1.15
# Below so many weights a call takes longer to launch than to compute, and dense is one launch.
SMALLEST = 1 << 20
# What part of dense's time an H100 needs, as the largest of (factor of the density, what is added):
# for reading the weights; and for gathering samples or issuing instructions.
Parts = tuple[tuple[float, float], ...]
TILE_16 = ((1.0, 1 / 16), (0.0, 0.45))
HALF: dict[int, dict[str, Parts]] = {  # by the largest batch
    8: {"row": ((1.8, 0.0), (1.0, 0.05)), "tile": TILE_16},
    16: {"row": ((1.8, 0.0), (2.0, 0.1)), "tile": TILE_16},
    64: {"tile": ((1.0, 1 / 16), (0.0, 0.7))},
}
FLOAT: dict[int, dict[str, Parts]] = {
    4: {"row": ((1.4, 0.0), (0.5, 0.05)), "tile": ((1.0, 1 / 32), (0.0, 0.4))},
    8: {"row": ((1.4, 0.0), (1.0, 0.05)), "tile": ((1.0, 1 / 32), (0.0, 0.55))},
    16: {"row": ((2.0, 0.1),)},
}
KERNELS = {torch.float32: FLOAT, torch.float16: HALF, torch.bfloat16: HALF}


def fastest(density: float, kernels: dict[str, Parts]) -> str:
    """The kernel that promises most, or "dense"."""
    parts = {
        name: max(factor * density + added for factor, added in terms)
        for name, terms in kernels.items()
    }
    best = min(parts, key=parts.__getitem__)
    return best if parts[best] * MARGIN <= 1 else "dense"


def choose_on_cuda(pattern: Pattern, weights: int, dtype: torch.dtype) -> Choice:
    """The fastest kernels for a layer on CUDA; the arguments are those of ``choice.choose``."""

    def fixed(kernel: str, reason: str) -> Choice:
        return Choice(pattern.name, pattern.density, ((None, kernel),), reason)

    if pattern.name == "rows/columns" and pattern.density * MARGIN <= 1:
        return fixed("compact", "a smaller dense layer does it")
    if weights < SMALLEST:
        return fixed("dense", f"fewer than {SMALLEST} weights")
    if dtype not in KERNELS:
        return fixed("dense", "sparse kernels compute in float32")
    best = [(limit, fastest(pattern.density, kernels)) for limit, kernels in KERNELS[dtype].items()]
    runs = [(max(run)[0], name) for name, run in groupby(best, key=lambda entry: entry[1])]
    if runs[-1][1] == "dense":
        runs.pop()
    if not runs:
        return fixed("dense", "too many weights are kept")
    kernels = (*runs, (None, "dense"))
    return Choice(pattern.name, pattern.density, kernels, "fastest by arithmetic, not measured")
