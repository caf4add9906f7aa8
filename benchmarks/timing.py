"""Timing that a busy machine cannot bend: rivals take turns, and medians are compared."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from torch import Tensor


def interleaved(
    rivals: Mapping[str, Callable[[], Any]], *, rounds: int = 30, seconds: float = 2.0
) -> dict[str, float]:
    """The median seconds of one call of each rival.

    In each round every rival runs once, in an order that is drawn anew, so that what disturbs the
    machine, and the caches that one rival leaves to the next, meet them all alike. A call on
    another device must synchronise itself.

    Args:
        rivals: name -> a call without arguments.
        rounds: how many; at least 3 are run.
        seconds: after so long no further round begins.
    """
    names = list(rivals)
    for name in names:  # caches, lazy initialisation, threads
        rivals[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    order = random.Random(0)
    end = time.perf_counter() + seconds
    for turn in range(rounds):
        if turn >= 3 and time.perf_counter() > end:
            break
        for name in order.sample(names, len(names)):
            call = rivals[name]
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    return {name: median(taken) for name, taken in times.items()}


def report(
    benchmark: Any,
    rivals: Mapping[str, Callable[[], Any]],
    *,
    elements: int = 0,
    operations: int = 0,
    read: Tensor | None = None,
    note: str = "",
) -> None:
    """Times the rivals in turn, prints how many times as fast as each "ours" is, and records it.

    Args:
        benchmark: pytest-benchmark's fixture, whose own columns are those of "ours" alone.
        rivals: name -> call; "ours" among them.
        elements, operations: of one call, for the rate.
        read: what "ours" must read once: the fraction of the read bandwidth that it reaches is
            recorded too.
        note: what "ours" chose to do.
    """
    timed = dict(rivals)
    if read is not None:
        timed["one read"] = lambda: read.sum()
    seconds = interleaved(timed, seconds=4.0)
    ours = seconds.pop("ours")
    ratios = {name: round(taken / ours, 3) for name, taken in seconds.items()}
    rates = {"elements": elements / ours, "operations": operations / ours}
    rates = {f"{name}_per_second": round(rate) for name, rate in rates.items() if rate}
    benchmark.extra_info.update(times_as_fast=ratios, note=note, **rates)
    figures = [f"{ratio:.2f}x {name}" for name, ratio in ratios.items()]
    figures += [f"{rate / 1e9:.4g}e9 {name.replace('_', ' ')}" for name, rate in rates.items()]
    print(f"\n{benchmark.name}: {', '.join(filter(None, [note, *figures]))}")
    benchmark.pedantic(rivals["ours"], rounds=3)
