"""Timing that a busy machine cannot bend: rivals take turns, and medians are compared."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any


def interleaved(
    rivals: Mapping[str, Callable[[], Any]], *, rounds: int = 30, seconds: float = 2.0
) -> dict[str, float]:
    """The median seconds of one call of each rival.

    In each round every rival runs once, in an order that is drawn anew, so that what disturbs the
    machine, and the caches that one rival leaves to the next, meet them all alike. A call on
    another device must synchronise itself.

    Args:
        rivals: name -> a call without arguments.
        rounds: how many; at least 5 are run.
        seconds: after so long no further round begins.
    """
    names = list(rivals)
    for name in names:  # caches, lazy initialisation, threads
        rivals[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    order = random.Random(0)
    end = time.perf_counter() + seconds
    for turn in range(rounds):
        if turn >= 5 and time.perf_counter() > end:
            break
        for name in order.sample(names, len(names)):
            call = rivals[name]
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    return {name: median(taken) for name, taken in times.items()}
