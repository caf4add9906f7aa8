"""The divergence that a layer's lost units cause, measured at a few widths.

What is expected of second moments takes a layer's outputs for independent from position to position
and from sample to sample, and later layers for what they were. Where a budget is divided between
layers that is not enough: in a residual network with BatchNorm it is from equal to what is found to
five times less, and whole branches are left with nothing. So each layer is tried with some of its
units, and what is expected at all widths is scaled to what was found at these.
"""

import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .data import Batch, batches, samples_of, split, take
from .equivalence import RemovalError, caused_by, check_mask_equivalence
from .errors import SimMIMError
from .forward import ForwardFn
from .memory_format import fastest_format
from .modes import device_of
from .original import Original
from .outputs import kl_per_sample
from .plan import guarded
from .progress import bar
from .reconstruction import refit_
from .removal import History, remove_units
from .scoring import Scores

# The shares of its units that a layer is tried with, ascending; one where there are many layers.
_SHARES, _SHARE = (1 / 8, 1 / 2), (1 / 4,)
_MANY = 12

# Samples for each layer, within bounds: so many divided between the layers, and once more, since in
# a deeper network each sample takes longer, too.
_SAMPLES, _LEAST, _MOST = 40_000, 64, 2000

# With fewer, all are refitted to and judged by: a fifth would say too little.
_FEW = 500

# How many layers behind are refitted: most of what they mend is mended by the first.
_DEPTH = 6

# Nats that do not count: of what hardly diverges the ratio is noise.
_NOTHING = 1e-5


def measured(
    scores: Scores,
    model: nn.Module,
    data: Iterable[Batch],
    *,
    reconstructed: bool = True,
    noise: float | None = None,
    seed: int = 0,
    forward_fn: ForwardFn | None = None,
    progress: bool = False,
) -> Scores:
    """The scores, their divergences scaled to what was found.

    Args:
        scores: of the model, from ``score``; where they expect no divergence, or of a single layer,
            for which nothing is divided, they are returned as they are.
        model: the network; it is not changed.
        data: calibration batches.
        reconstructed: whether the layers behind are refitted.
        noise: None for classes; for values the variance of the outputs' Gaussian noise.
        seed: of the positions that a refit looks at.
        forward_fn: as in ``score``.
        progress: show progress where standard error is a terminal.

    Raises:
        SimMIMError: the network with fewer units of a layer does not run, or is another.
    """
    names = [group.name for group in scores.groups if group.name in scores.divergence]
    if len(names) < 2:
        return scores
    order, needed = guarded(scores)
    samples = min(_MOST, max(_LEAST, _SAMPLES // len(names) ** 2))
    some = list(batches(data, limit=samples, name="calibration"))
    fit, judged = split(some) if sum(map(samples_of, some)) >= _FEW else (some, some)
    everything = {group.name: range(group.units) for group in scores.groups}
    network = deepcopy(model)
    if (device := device_of(network)).type == "cpu":
        few = next(iter(batches(some, device=device, limit=2)))
        network = fastest_format(network, few, forward_fn)
    options: dict[str, Any] = {"samples": samples, "seed": seed, "forward_fn": forward_fn}
    original = Original(network, fit, **options)
    judge = original if judged is fit else Original(network, judged, **options)

    def found(name: str, width: int) -> float:
        """Nats from the network with that layer's best units alone."""
        kept = everything | {name: sorted(order[name][:width])}
        student, history = remove_units(network, scores.groups, kept)
        try:
            return nats(student, history)
        except Exception as error:
            # The refit may have begun to change the student.
            student, history = remove_units(network, scores.groups, kept)
            few = take(scores.example, slice(0, 16))
            reason = _reason(error, network, student, history, few, forward_fn)
            raise SimMIMError(f"{reason}{caused_by([name])}") from error

    def nats(student: nn.Module, history: History) -> float:
        """Nats from the network with fewer units."""
        changed = [step["module"] for step in history]
        runs = original.resumed(student, changed)
        if reconstructed:
            refit_(runs, original, history, depth=_DEPTH)
        if judge is not original:
            runs = judge.resumed(student, changed)
        each = [
            kl_per_sample(theirs.float(), ours.float(), noise=noise)
            for theirs, ours in zip(judge.outputs, runs.outputs(), strict=True)
        ]
        return float(torch.cat(each).double().mean())

    # In the order in which they run, so that each trial goes on from where the last one began.
    begin = {g.name: original.course.begin(m.module for m in g.members) for g in scores.groups}
    divergence = dict(scores.divergence)
    with bar("measure", len(names), enabled=progress) as advance:
        for name in sorted(names, key=begin.__getitem__):
            shares = _SHARES if len(names) <= _MANY else _SHARE
            widths = sorted({max(int(share * len(order[name])), needed[name]) for share in shares})
            divergence[name] = scaled(divergence[name], {w: found(name, w) for w in widths})
            advance(1)
    return replace(scores, divergence=divergence)


def _reason(
    error: Exception,
    network: nn.Module,
    student: nn.Module,
    history: History,
    batch: Batch,
    forward_fn: ForwardFn | None,
) -> str:
    """Why a trial failed."""
    try:
        check_mask_equivalence(network, student, history, batch, forward_fn=forward_fn)
    except RemovalError as found:
        return str(found)
    return (
        "measure: the model with fewer units failed on calibration data "
        f"({type(error).__name__}: {error}); put the layers concerned in ignored_layers"
    )


def scaled(expected: Tensor, found: Mapping[int, float]) -> Tensor:
    """[units + 1] nats expected at every width, made those found where some were.

    Between two widths the ratio is interpolated on logarithmic axes; beyond them it stays.
    """
    widths = [width for width, value in found.items() if math.isfinite(value)]
    if not widths:
        return expected
    ratios = [
        math.log((found[width] + _NOTHING) / (float(expected[width]) + _NOTHING))
        for width in widths
    ]
    places = np.log(np.arange(len(expected)).clip(min=1))
    factors = np.exp(np.interp(places, np.log(widths), ratios))
    return (expected * torch.from_numpy(factors)).cummin(0).values
