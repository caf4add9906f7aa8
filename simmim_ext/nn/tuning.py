"""Measures the table that kernels are chosen by."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.sparse_linear import pack_sparse_weight, sparse_linear
from .pattern import BLOCK_ROWS
from .speedups import BATCHES, DENSITIES, KERNELS, Table


def measure_speedups(
    capability: str,
    size: int = 1024,
    seconds: float = 0.05,
    runs: int = 3,
    progress: Callable[[float], None] = lambda share: None,
) -> Table:
    """Times every kernel against dense float32 on this machine, with torch's number of threads.

    Args:
        capability: that the kernels run with; see ``simmim info``.
        size: of the square weight.
        seconds: how long each kernel is timed at each batch and density, in each run.
        runs: how often all is timed; the least speed-up counts.
        progress: called with the share of the work that each step was.

    Returns:
        kernel -> a row for each of BATCHES, a column for each of DENSITIES: dense's median time
        divided by the kernel's, measured in turn; and "dense bfloat16", whose
        row has one column.
    """
    kernels = KERNELS[capability]
    steps = [(d, k) for _ in range(runs) for k in kernels for d in DENSITIES]
    seen: dict[str, dict[float, list[float]]] = {name: {} for name in kernels}
    for density, name in steps:
        ratios = _sparse_speedups(name, density, size, seconds)
        before = seen[name].get(density, ratios)
        seen[name][density] = [min(pair) for pair in zip(before, ratios, strict=True)]
        progress(1 / len(steps))
    table = {name: tuple(zip(*columns.values(), strict=True)) for name, columns in seen.items()}
    halves = _dense_speedups(torch.bfloat16, size, runs * seconds)
    table["dense bfloat16"] = tuple((ratio,) for ratio in halves)
    return table


def _operands(size: int) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(batch, size, generator=generator) for batch in BATCHES]
    return torch.randn(size, size, generator=generator), inputs


def _sparse_speedups(kernel: str, density: float, size: int, seconds: float) -> list[float]:
    weight, inputs = _operands(size)
    groups = BLOCK_ROWS if kernel == "block" else 1
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(size // groups, size, generator=generator) < density
    packed = pack_sparse_weight(weight, mask.repeat_interleave(groups, 0), kernel)
    return [
        _ratio(partial(F.linear, x, weight), partial(sparse_linear, x, packed, None, size), seconds)
        for x in inputs
    ]


def _dense_speedups(dtype: torch.dtype, size: int, seconds: float) -> list[float]:
    weight, inputs = _operands(size)
    half = weight.to(dtype)
    return [
        _ratio(partial(F.linear, x, weight), partial(F.linear, x.to(dtype), half), seconds)
        for x in inputs
    ]


def _ratio(slow: Callable[[], object], fast: Callable[[], object], seconds: float) -> float:
    """The median time of one call divided by the other's, measured in turn."""

    def timed(call: Callable[[], object]) -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    with torch.inference_mode():
        slow(), fast()
        times: list[tuple[float, float]] = []
        end = time.perf_counter() + seconds
        while len(times) < 5 or time.perf_counter() < end:
            times.append((timed(slow), timed(fast)))
    return median(s for s, _ in times) / median(f for _, f in times)
