"""Chooses the kernels of a sparse layer on CUDA.

By arithmetic, not yet by measurement: no GPU has run them. A product of so few samples takes the
time of reading its weight. "row" reads 12 bits and the value for each kept weight, and gathers from
shared memory what 8 (float32: 4) samples have for it at a time. "tile" reads the value of each kept
weight and one bit for every weight, but takes some 290 instructions for 16 x 64 weights to make
fragments of what it reads, whatever the density. "list" reads the value and the place of each kept
weight, and takes some 180 at 80% zeros, and 290 with 64 samples, where "tile" takes 400: as many as
fit into the time in which dense reads its weight.

Of torch's kernels for structured weights (structured_cuda.py), which serve batches so large that
multiplying takes the time, "2:4" does half of dense's products on sparse tensor cores, which are
reported to reach some 1.4 times cuBLAS's speed and not twice. "bsr" does the kept blocks' products,
but reads a block and its part of x from the L2 cache for each: at 5.5 TB/s that feeds 80 TFLOP/s in
blocks of 16 x 16, 155 in 32 x 32 and 235 in 64 x 64, where dense reaches 700.
"""

from __future__ import annotations

import math
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
TILE_16 = ((1.0, 1 / 16), (0.0, 0.55))
LIST_16 = ((2.0, 0.01), (0.0, 0.35))
HALF: dict[int, dict[str, Parts]] = {  # by the largest batch
    8: {"row": ((1.8, 0.0), (1.0, 0.05)), "tile": TILE_16, "list": LIST_16},
    16: {"row": ((1.8, 0.0), (2.0, 0.1)), "tile": TILE_16, "list": LIST_16},
    64: {"list": ((2.0, 0.01), (0.0, 0.65))},
}
FLOAT: dict[int, dict[str, Parts]] = {
    4: {"row": ((1.4, 0.0), (0.5, 0.05)), "tile": ((1.0, 1 / 32), (0.0, 0.4))},
    8: {"row": ((1.4, 0.0), (1.0, 0.05)), "tile": ((1.0, 1 / 32), (0.0, 0.55))},
    16: {"row": ((2.0, 0.1),)},
}
TWO_OF_FOUR: Parts = ((0.0, 0.7),)
BSR: dict[int, Parts] = {16: ((9.0, 0.0),), 32: ((4.5, 0.0),), 64: ((3.0, 0.0),)}  # by their side
# Both are called through Python code of torch's, which takes some 0.15 ms: while dense takes less,
# it is faster. That is so many products of a weight and a sample.
STRUCTURED_WORK = 0.15e-3 * 700e12 / 2
KERNELS = {torch.float32: FLOAT, torch.float16: HALF, torch.bfloat16: HALF}


def fastest(density: float, kernels: dict[str, Parts]) -> str:
    """The kernel that promises most, or "dense"."""
    parts = {
        name: max(factor * density + added for factor, added in terms)
        for name, terms in kernels.items()
    }
    best = min(parts, key=parts.__getitem__)
    return best if parts[best] * MARGIN <= 1 else "dense"


def choose_on_cuda(
    pattern: Pattern, weights: int, dtype: torch.dtype, structured: str | None = None
) -> Choice:
    """The fastest kernels for a layer on CUDA.

    Args:
        pattern: of the layer's mask.
        weights: how many the layer has, masked ones included.
        dtype: of the layer's values.
        structured: torch's kernel that the layer can take, if any; see ``structured_cuda.offered``.
    """

    def fixed(kernel: str, reason: str) -> Choice:
        return Choice(pattern.name, pattern.density, ((None, kernel),), reason)

    if pattern.name == "rows/columns" and pattern.density * MARGIN <= 1:
        return fixed("compact", "a smaller dense layer does it")
    if weights < SMALLEST:
        return fixed("dense", f"fewer than {SMALLEST} weights")
    if dtype not in KERNELS:
        return fixed("dense", "sparse kernels compute in float32")
    ranges: list[tuple[int | None, str]] = [
        (limit, fastest(pattern.density, kernels)) for limit, kernels in KERNELS[dtype].items()
    ]
    last = "dense"
    if structured is not None:
        parts = TWO_OF_FOUR if structured == "2:4" else BSR[pattern.square]
        last = fastest(pattern.density, {structured: parts})
    if last != "dense":
        largest = max(KERNELS[dtype])
        ranges.append((max(math.ceil(STRUCTURED_WORK / weights) - 1, largest + 1), "dense"))
    ranges.append((None, last))
    runs = [list(run)[-1] for _, run in groupby(ranges, key=lambda entry: entry[1])]
    if runs == [(None, "dense")]:
        return fixed("dense", "too many weights are kept")
    reason = "fastest by arithmetic, not measured"
    return Choice(pattern.name, pattern.density, tuple(runs), reason)
