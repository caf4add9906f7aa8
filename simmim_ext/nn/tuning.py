"""Measures the table that kernels are chosen by."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from .._version import __version__
from ..ops._library import cpu_capability
from .choice import Choice
from .pattern import BLOCK_ROWS
from .sparse import SparseLinear
from .speed_table import BFLOAT16, DENSE_BFLOAT16, KERNELS, Speeds, SpeedTable
from .tuned import cpu_model

# The smallest layer that is worth a choice, one whose dense weights still fit the L2 cache of most
# CPUs, and one whose do not.
SIZES = (128, 512, 1024)
# Both sides of multiples of a vector: a kernel takes as long for a vector of few samples as for a
# full one.
BATCHES = (1, 2, 4, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 512)
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


def measure_speeds(
    *,
    sizes: tuple[int, ...] = SIZES,
    batches: tuple[int, ...] = BATCHES,
    densities: tuple[float, ...] = DENSITIES,
    seconds: float = 0.012,
    runs: int = 3,
    progress: Callable[[float], None] = lambda share: None,
) -> SpeedTable:
    """Times every kernel against dense float32 on this machine, with torch's number of threads.

    A layer is timed as it is called, in turn with the ``nn.Linear`` that it would replace.

    Args:
        sizes: of the square weights.
        batches: to time.
        densities: to time.
        seconds: how long each kernel is timed at each size, density and batch, in each run.
        runs: how often all is timed; the least time counts.
        progress: called with the share of the work that each step was.
    """
    kernels = KERNELS[cpu_capability()]
    steps = [*product(kernels, sizes, densities), *((DENSE_BFLOAT16, size, 1.0) for size in sizes)]
    seen: dict[tuple[str, int, float], Tensor] = {}
    for _ in range(runs):
        for step in steps:
            times = _times(*step, batches, seconds)
            seen[step] = times.minimum(seen.get(step, times))
            progress(1 / (runs * len(steps)))

    # Dense takes as long whatever is kept: where it took longer, something was in its way.
    usual = [
        torch.stack([times[:, 0] for (_, size, _), times in seen.items() if size == s])
        .median(0)
        .values
        for s in sizes
    ]

    def of(kernel: str, columns: tuple[float, ...]) -> Speeds:
        times = torch.stack([torch.stack([seen[kernel, s, d] for d in columns]) for s in sizes])
        dense = times[..., 0].minimum(torch.stack(usual)[:, None])  # [sizes, densities, batches]
        rows = (dense / times[..., 1]).transpose(1, 2).tolist()
        return tuple(tuple(tuple(round(v, 3) for v in row) for row in size) for size in rows)

    return SpeedTable(
        package=__version__,
        torch=torch.__version__,
        cpu=cpu_model(),
        capability=cpu_capability(),
        threads=torch.get_num_threads(),
        measured=datetime.date.today().isoformat(),
        sizes=sizes,
        batches=batches,
        densities=densities,
        speeds={
            **{kernel: of(kernel, densities) for kernel in kernels},
            DENSE_BFLOAT16: of(DENSE_BFLOAT16, (1.0,)),
        },
    )


def _times(
    name: str, size: int, density: float, batches: tuple[int, ...], seconds: float
) -> Tensor:
    """Of dense and of one kernel at one size and density, [batches, 2] float64 seconds."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, size, generator=generator)
    dense = nn.Linear(size, size)
    dense.weight = nn.Parameter(weight.where(_mask(name, size, density, generator), 0))
    dtype = torch.bfloat16 if name in BFLOAT16 else torch.float32
    layer = SparseLinear.from_linear(dense, dtype=dtype, memory="small")  # which asks no table
    kernel = "dense" if name == DENSE_BFLOAT16 else name
    layer._pack(Choice("timed", density, ((None, kernel),), "to be timed"))
    times = []
    for batch in batches:
        x = torch.randn(batch, size, generator=generator)
        times.append(_in_turn(partial(dense, x), partial(layer, x.to(dtype)), seconds))
    return torch.tensor(times, dtype=torch.float64)


def _mask(kernel: str, size: int, density: float, generator: torch.Generator) -> Tensor:
    """A random mask of the kernel's pattern."""
    if kernel == "compact":
        kept = round(size * density**0.5)
        ranks = torch.rand(2, size, generator=generator).argsort()
        rows, columns = ranks < kept
        return torch.outer(rows, columns)
    height = BLOCK_ROWS if kernel == "block" else 1
    mask = torch.rand(size // height, size, generator=generator) < density
    return mask.repeat_interleave(height, 0)


def _in_turn(
    first: Callable[[], object], second: Callable[[], object], seconds: float
) -> tuple[float, float]:
    """The time of each call, in turn.

    On one thread it is the thread's own time, so that other work on the machine counts little.
    Lower quartiles: what interrupts a call makes it longer, never shorter.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        first(), second()
        end = time.perf_counter() + seconds
        while len(times[0]) < 3 or time.perf_counter() < end:
            for call, taken in zip((first, second), times, strict=True):
                begin = clock()
                call()
                taken.append(clock() - begin)
    low, high = (sorted(taken)[len(taken) // 4] for taken in times)
    return low, high
