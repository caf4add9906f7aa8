"""Measures the table that kernels are chosen by."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.sparse_linear import pack_sparse_weight, sparse_linear
from .pattern import BLOCK_ROWS
from .speedups import BATCHES, DENSITIES, Table


def measure_speedups(
    size: int = 1024, seconds: float = 0.1, progress: Callable[[float], None] = lambda share: None
) -> Table:
    """Times every kernel against dense float32 on this machine, with torch's number of threads.

    Args:
        size: of the square weight.
        seconds: how long each kernel is timed at each batch and density.
        progress: called with the share of the work that is done.

    Returns:
        kernel -> a row for each of BATCHES, a column for each of DENSITIES: dense's median time
        divided by the kernel's, measured in turn.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, size, generator=generator)
    inputs = [torch.randn(batch, size, generator=generator) for batch in BATCHES]
    kernels = ("element", "gather", "block")
    columns: dict[str, list[list[float]]] = {name: [] for name in kernels}
    for done, (density, name) in enumerate((d, k) for d in DENSITIES for k in kernels):
        progress(done / (len(DENSITIES) * len(kernels)))
        groups = BLOCK_ROWS if name == "block" else 1
        mask = torch.rand(size // groups, size, generator=generator) < density
        packed = pack_sparse_weight(weight, mask.repeat_interleave(groups, 0), name)
        columns[name].append([_speedup(x, weight, packed, seconds) for x in inputs])
    return {name: tuple(zip(*columns[name], strict=True)) for name in kernels}


def _speedup(x: Tensor, weight: Tensor, packed: Tensor, seconds: float) -> float:
    def dense() -> float:
        begin = time.perf_counter()
        F.linear(x, weight)
        return time.perf_counter() - begin

    def sparse() -> float:
        begin = time.perf_counter()
        sparse_linear(x, packed, None, weight.shape[0])
        return time.perf_counter() - begin

    with torch.inference_mode():
        dense(), sparse()
        times: list[tuple[float, float]] = []
        end = time.perf_counter() + seconds
        while len(times) < 5 or time.perf_counter() < end:
            times.append((dense(), sparse()))
    return median(d for d, _ in times) / median(s for _, s in times)
