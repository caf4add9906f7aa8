"""Chooses the kernels of a sparse layer on CUDA.

By arithmetic, not yet by measurement: no GPU has run them. A product of so few samples takes the
time of reading its weight, and "tile" reads density + 1/16 of a dense 16-bit weight (1/32 of a
32-bit one). But it takes some 290 instructions for 16 x 64 weights to make fragments of what it
reads, whatever the density, and more the more samples there are: BATCHES has what part of dense's
time an H100 issues them in.
"""

from __future__ import annotations

import torch

from .choice import MARGIN, Choice
from .pattern import Pattern

# Below so many weights a call takes longer to launch than to compute, and dense is one launch.
SMALLEST = 1 << 20
BITMAP = {torch.float32: 1 / 32, torch.float16: 1 / 16, torch.bfloat16: 1 / 16}
# dtype -> (largest batch, the least part of dense's time)
BATCHES = {
    torch.float32: ((4, 0.4), (8, 0.55)),
    torch.float16: ((16, 0.45), (64, 0.7)),
    torch.bfloat16: ((16, 0.45), (64, 0.7)),
}


def choose_on_cuda(pattern: Pattern, weights: int, dtype: torch.dtype) -> Choice:
    """The fastest kernels for a layer on CUDA; the arguments are those of ``choice.choose``."""

    def fixed(kernel: str, reason: str) -> Choice:
        return Choice(pattern.name, pattern.density, ((None, kernel),), reason)

    if pattern.name == "rows/columns" and pattern.density * MARGIN <= 1:
        return fixed("compact", "a smaller dense layer does it")
    if weights < SMALLEST:
        return fixed("dense", f"fewer than {SMALLEST} weights")
    if dtype not in BITMAP:
        return fixed("dense", "sparse kernels compute in float32")
    reading = pattern.density + BITMAP[dtype]
    batches = [batch for batch, least in BATCHES[dtype] if max(reading, least) * MARGIN <= 1]
    if not batches:
        return fixed("dense", "too many weights are kept")
    kernels = ((max(batches), "tile"), (None, "dense"))
    return Choice(pattern.name, pattern.density, kernels, "fastest by arithmetic, not measured")
