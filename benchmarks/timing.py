"""Timing that a busy machine cannot bend: rivals take turns, and medians are compared."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

LOOP = ", in a loop"


def interleaved(
    rivals: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 100,
    seconds: float = 2.0,
    calls: int = 1,
) -> dict[str, float]:
    """The median seconds of one call of each rival.

    In each round every rival runs once, in an order that is drawn anew, so that what disturbs the
    machine, and the caches that one rival leaves to the next, meet them all alike. A call on
    another device must synchronise itself.

    Args:
        rivals: name -> a call without arguments.
        rounds: how many; at least 3 are run.
        seconds: after so long no further round begins; what takes five times as long by itself is
            not called again after its first call.
        calls: of each rival in a row, all of which count but the first of several: it finds what
            another rival left in the caches, the others what a loop around one call finds.
    """
    times: dict[str, list[float]] = {name: [] for name in rivals}
    names = []
    for name, call in rivals.items():  # for caches, lazy initialisation, threads
        begin = time.perf_counter()
        call()
        taken = time.perf_counter() - begin
        if taken > 5 * seconds:
            times[name].append(taken)
        else:
            names.append(name)
    order = random.Random(0)
    end = time.perf_counter() + seconds
    for turn in range(rounds):
        if turn >= 3 and time.perf_counter() > end:
            break
        for name in order.sample(names, len(names)):
            call = rivals[name]
            for i in range(calls):
                begin = time.perf_counter()
                call()
                if i > 0 or calls == 1:
                    times[name].append(time.perf_counter() - begin)
    return {name: median(taken) for name, taken in times.items()}


def report(
    benchmark: Any,
    rivals: Mapping[str, Callable[[], Any]],
    *,
    elements: int = 0,
    operations: int = 0,
    read: Tensor | None = None,
    loops: Sequence[str] = (),
    note: str = "",
) -> None:
    """Times each rival in turn with "ours", prints and records how many times as fast that is.

    Rivals are met one by one: one that allocates or reads much would leave cold caches and page
    faults to all the others.

    Args:
        benchmark: pytest-benchmark's fixture, whose own columns are those of "ours" alone.
        rivals: name -> call; "ours" among them.
        elements, operations: of one call, for the rate.
        read: what "ours" must read once: the fraction of the read bandwidth that it reaches is
            recorded too.
        loops: rivals that are met a second time, each in a loop of five calls.
        note: what "ours" chose to do.
    """
    ours = rivals["ours"]
    others = {name: call for name, call in rivals.items() if name != "ours"}
    if read is not None:
        others["one read"] = lambda: read.sum()
    ratios, taken = {}, []
    for name, call in others.items():
        pair = interleaved({"ours": ours, name: call}, seconds=4.0 / len(others))
        ratios[name] = pair[name] / pair["ours"]
        taken.append(pair["ours"])
        if name in loops:
            pair = interleaved({"ours": ours, name: call}, seconds=1.0, calls=5)
            ratios[f"{name}{LOOP}"] = pair[name] / pair["ours"]
    rates = {"elements": elements / median(taken), "operations": operations / median(taken)}
    rates = {f"{name}_per_second": round(rate) for name, rate in rates.items() if rate}
    record(benchmark, ratios, note, **rates)
    benchmark.pedantic(ours, rounds=3)


def record(benchmark: Any, ratios: Mapping[str, float], note: str = "", **more: Any) -> None:
    """Prints and records how many times as fast "ours" is as each rival, and what else is known."""
    ratios = {name: round(ratio, 3) for name, ratio in ratios.items()}
    benchmark.extra_info.update(times_as_fast=ratios, note=note, **more)
    figures = [f"{ratio:.2f}x {name}" for name, ratio in ratios.items()]
    rates = {name: value for name, value in more.items() if name.endswith("_per_second")}
    figures += [f"{rate / 1e9:.4g}e9 {name.replace('_', ' ')}" for name, rate in rates.items()]
    print(f"\n{benchmark.name}: {', '.join(filter(None, [note, *figures]))}")


def report_scaling(
    benchmark: Any, work: Callable[[], Any], loops: Mapping[str, Callable[[], Any]]
) -> None:
    """Times work and plain loops on one thread and on two, in turn, and records how work scales.

    Recorded as "times as fast" is the speedup that a second thread brings to the work, divided by
    the one it brings to each loop: what two threads of this machine have to give is in both.

    Args:
        benchmark: pytest-benchmark's fixture, whose own columns are those of the work on two.
        work: what is judged.
        loops: name -> what does nothing but read memory, or nothing but compute.
    """

    def on(threads: int, call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            torch.set_num_threads(threads)
            call()

        return run

    calls = {"ours": work, **loops}
    timed = {f"{name} on {n}": on(n, call) for name, call in calls.items() for n in (1, 2)}
    seconds = interleaved(timed, seconds=8.0)
    speedup = {name: seconds[f"{name} on 1"] / seconds[f"{name} on 2"] for name in calls}
    ratios = {f"scaling of {name}": speedup["ours"] / speedup[name] for name in loops}
    note = ", ".join(f"{name} {value:.2f}x on two threads" for name, value in speedup.items())
    record(benchmark, ratios, note)
    benchmark.pedantic(timed["ours on 2"], rounds=3)
