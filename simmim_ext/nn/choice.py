"""Chooses the kernels of a sparse layer, by pattern, density and batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch

from .pattern import Pattern
from .speedups import BATCHES, DENSITIES, KERNELS, SPEEDUPS

# A sparse kernel must promise so much more than dense, or dense is taken.
MARGIN = 1.15
# Below so many weights a layer's time is that of the call, and dense has the shortest.
SMALLEST = 1 << 14


@dataclass(frozen=True)
class Choice:
    """Which kernel serves which batch sizes.

    Attributes:
        pattern: what the mask is made of; see ``Pattern.name``.
        density: the share of the weights that is kept, 0..1.
        kernels: (largest batch, kernel) in ascending order, the last without a limit (None).
            Kernels: "dense", "compact" (dense on the kept rows and columns), "element", "gather",
            "window", "block", "tile" (CUDA's), "compressed" (decompresses block by block:
            memory="small").
        reason: why, in words.
    """

    pattern: str
    density: float
    kernels: tuple[tuple[int | None, str], ...]
    reason: str

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

    def __str__(self) -> str:
        return f"{self.pattern}, {self.density:.1%} kept: {self.kernels_text()} ({self.reason})"


def choose(pattern: Pattern, weights: int, capability: str, dtype: torch.dtype) -> Choice:
    """The fastest kernels for a layer.

    Args:
        pattern: of the layer's mask.
        weights: out_features * in_features.
        capability: of the CPU; see ``simmim info``.
        dtype: of the layer's values.
    """

    def fixed(kernel: str, reason: str) -> Choice:
        return Choice(pattern.name, pattern.density, ((None, kernel),), reason)

    if pattern.name == "rows/columns":
        if pattern.density * MARGIN > 1:
            return fixed("dense", "nearly all is kept")
        return fixed("compact", "a smaller dense layer does it")
    if weights < SMALLEST:
        return fixed("dense", f"fewer than {SMALLEST} weights")
    if dtype == torch.float64:
        return fixed("dense", "sparse kernels compute in float32")
    is_block = pattern.name.startswith("block")
    sparse = [name for name in KERNELS[capability] if is_block or name != "block"]
    kernels = tuple(_merged(_best(sparse, pattern.density, capability, dtype)))
    if kernels == ((None, "dense"),):
        return fixed("dense", "too many weights are kept")
    return Choice(pattern.name, pattern.density, kernels, "fastest in the table of measurements")


def _best(
    sparse: list[str], density: float, capability: str, dtype: torch.dtype
) -> Iterator[tuple[int, str]]:
    table = SPEEDUPS["avx512" if capability == "amx" else capability]
    for row, batch in enumerate(BATCHES):
        speedups = {kernel: _interpolate(table[kernel][row], density) for kernel in sparse}
        kernel = max(speedups, key=lambda name: speedups[name])
        dense = max(1.0, table["dense bfloat16"][row][0]) if dtype == torch.bfloat16 else 1.0
        yield batch, kernel if speedups[kernel] >= MARGIN * dense else "dense"


def _interpolate(speedups: tuple[float, ...], density: float) -> float:
    """Between the densities of the table, on logarithmic axes; beyond its ends, its ends."""
    if density <= DENSITIES[0]:
        return speedups[0]
    for (low, fast), (high, slow) in pairwise(zip(DENSITIES, speedups, strict=True)):
        if density <= high:
            share = math.log(density / low) / math.log(high / low)
            return math.exp((1 - share) * math.log(fast) + share * math.log(slow))
    # Beyond the last, time grows with the weights.
    return speedups[-1] * DENSITIES[-1] / density


def _merged(kernels: Iterator[tuple[int, str]]) -> Iterator[tuple[int | None, str]]:
    """Ranges of batch sizes: each measured size stands for those nearer to it than to the next."""
    (batch, kernel), *rest = kernels
    for next_batch, next_kernel in rest:
        if next_kernel != kernel:
            yield math.isqrt(batch * next_batch), kernel
        batch, kernel = next_batch, next_kernel
    yield None, kernel
