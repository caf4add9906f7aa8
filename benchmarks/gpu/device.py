"""Times on the device, and what it does at best."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

Figure = tuple[str, dict[str, Any]]


def seconds_of(call: Callable[[], Any], rounds: int = 7) -> float:
    """The median time of a call on the device, by its own clock."""
    call()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return median(times)


def seconds_of_each(calls: list[Callable[[], Any]]) -> float:
    """The median time of one of the calls, run in turn from a CUDA graph.

    A weight of these sizes fits the L2 cache: with one for each call, none is still there when its
    turn comes. A graph leaves out what launching from Python takes, for rivals too.
    """
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]  # or the graph would use the memory of one for another
    taken = seconds_of(graph.replay) / len(calls)
    del kept
    return taken


def measured() -> dict[str, float]:
    """What this device's memory and tensor cores do at best, random data."""
    source, target = torch.randn(2, 1 << 29, device="cuda")  # 2 GiB each
    copy = 2 * source.nbytes / seconds_of(lambda: target.copy_(source)) / 1e9
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = 2 * 8192**3 / seconds_of(lambda: a @ b) / 1e12
    return {"copy_gb_per_s": round(copy, 1), "bf16_tflop_per_s": round(product, 1)}
