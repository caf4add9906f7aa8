"""Whether information is more than chance: plug-in estimates of it are never zero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from numbers import Integral

import torch
from torch import Tensor

from .discretization import Binning, Discretized, Range
from .information import is_labels
from .ops.histogram import histogram
from .ops.joint import joint_histogram, pairwise_information
from .ops.label import label_information
from .values import check_dense

_CALLER = "independence_test"
_BYTES = 32 * 2**20  # of permuted samples, or of joint counts, at a time
_MISSING = 255


@dataclass(frozen=True, eq=False)
class IndependenceTest:
    """What :func:`independence_test` found, [x_features, y_features], or [x_features] for labels.

    Attributes:
        information: float32 nats, the plug-in estimate.
        statistic: float64, G = 2 N I with the N samples that are valid in both.
        degrees_of_freedom: int64, (rows - 1) (columns - 1) of the bins that are not empty.
        p_value: float64, how likely such a G or a larger one is where x and y are independent.
    """

    information: Tensor
    statistic: Tensor
    degrees_of_freedom: Tensor
    p_value: Tensor


def independence_test(
    x: Tensor | Discretized,
    y: Tensor | Discretized | None = None,
    *,
    method: str = "g",
    permutations: int = 1000,
    seed: int = 0,
    bins: int | Tensor | None = None,
    range: Range | None = None,
    binning: str = "uniform",
    nan_policy: str = "raise",
    outliers: str = "raise",
) -> IndependenceTest:
    """Tests whether a feature of x and one of y are independent, for every pair of them.

    "g" is the likelihood-ratio test of a contingency table (Woolf 1957, "The log likelihood ratio
    test (the G-test)"; Sokal and Rohlf, Biometry): G = 2 N I follows a chi-squared distribution
    where x and y are independent and samples are many, some five for each pair of bins.

    "permutation" holds for any number of samples: it shuffles the samples of y, among those that
    are valid in it, and counts the b of m permutations whose information is at least what was
    found; p = (b + 1) / (m + 1) (Phipson and Smyth 2010, arXiv:1603.05766), so never below
    1 / (m + 1).

    Many pairs need a correction for multiple tests, such as scipy.stats.false_discovery_control.

    Args:
        x: [samples, features], or a Discretized.
        y: [samples, y_features], a Discretized, or class labels [samples]: bool or 0..65,535;
            None: all pairs within x, symmetric bit for bit.
        method: "g" or "permutation".
        permutations: how many; at least 1. One permutation serves all pairs.
        seed: of the permutations. Results depend on nothing else, such as threads or memory.
        bins, range, binning, nan_policy, outliers: as for mutual_information.

    Returns:
        an IndependenceTest; p is 1 where x or y is constant.
    """
    if method not in ("g", "permutation"):
        raise ValueError(f"{_CALLER}: method must be one of 'g', 'permutation', got {method!r}")
    for name, value, least in (("permutations", permutations, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{_CALLER}: {name} must be an int, got {type(value).__name__}")
        if not least <= value < 2**64:  # as torch's generators take it
            raise ValueError(f"{_CALLER}: {name} must be in {least}..2**64 - 1, got {value}")
    binned = Binning(_CALLER, bins, range, binning, nan_policy, outliers)
    own = binned.discretize(x)
    if own.codes.is_meta:
        raise ValueError(
            f"{_CALLER}: x must have values, and is on the meta device, where tensors have none; "
            "give it on another device"
        )
    other: Discretized | Tensor
    if is_labels(y):
        check_dense(_CALLER, "y", y)
        information = _of_labels(own, y)[:, None]
        other = _as_codes(y)
    else:
        other = own if y is None else binned.discretize(y, "y")
        information = _of_pairs(own, None if y is None else other)
    samples, degrees = _degrees(own, other)
    statistic = 2 * samples * information.double()
    if method == "g":
        p_value = torch.special.gammaincc(degrees.clamp(min=1) / 2.0, statistic / 2)
        p_value = p_value.masked_fill(degrees == 0, 1.0)
    else:
        reached = _count_reached(own, other, information, int(permutations), int(seed))
        p_value = (reached + 1).double() / (permutations + 1)
        if y is None:
            p_value = p_value.triu() + p_value.triu(1).t()
    results = (information, statistic, degrees, p_value)
    return IndependenceTest(*(r[:, 0] if is_labels(y) else r for r in results))


def _of_pairs(x: Discretized, y: Discretized | None) -> Tensor:
    y_codes, y_bins = (None, None) if y is None else (y.codes, y.bins)
    return pairwise_information(
        x.codes, y_codes, x.bins, y_bins, "mutual_information", caller=_CALLER
    )


def _of_labels(x: Discretized, labels: Tensor) -> Tensor:
    bins = (x.bins, None, None, None, "raise", "raise")
    return label_information(x.codes.t(), labels, *bins, "mutual_information", caller=_CALLER)


def _as_codes(labels: Tensor) -> Discretized | Tensor:
    """Labels as codes of one feature where they are few enough, else as they are."""
    if _distinct(labels) > 256:
        return labels
    seen = labels.long().bincount() > 0
    codes = (seen.cumsum(0) - 1)[labels.long()].to(torch.uint8)
    return Discretized(codes[None], max(2, int(seen.sum())))


def _valid(x: Discretized) -> Tensor | None:
    """Where there are samples, or None where there are all."""
    valid = x.codes != _MISSING
    return None if x.bins == 256 or valid.all() else valid


def _degrees(x: Discretized, y: Discretized | Tensor) -> tuple[Tensor, Tensor]:
    """N, and (rows - 1) (columns - 1) of the bins with any of these samples, of every pair."""
    if isinstance(y, Tensor):
        return _degrees_of_labels(x, y)
    if _valid(x) is None and _valid(y) is None:
        rows, columns = (_occupied(histogram(v.codes.t(), v.bins)) for v in (x, y))
        degrees = (rows[:, None] - 1) * (columns - 1)
        return torch.full_like(degrees, x.samples), degrees
    samples = x.codes.new_empty((x.features, y.features), dtype=torch.int64)
    degrees = torch.empty_like(samples)
    many = max(1, _BYTES // (8 * x.bins * y.bins))  # pairs at a time
    j = 0
    for some in torch.split(y.codes, many):
        i = 0
        for few in torch.split(x.codes, max(1, many // max(1, len(some)))):
            counts = joint_histogram(few, some, x.bins, y.bins, _CALLER)
            rows, columns = (_occupied(counts.sum(axis)) for axis in (3, 2))
            samples[i : i + len(few), j : j + len(some)] = counts.sum((2, 3))
            degrees[i : i + len(few), j : j + len(some)] = (rows - 1) * (columns - 1)
            i += len(few)
        j += len(some)
    return samples, degrees


def _occupied(counts: Tensor) -> Tensor:
    return (counts > 0).sum(-1)


def _distinct(labels: Tensor) -> int:
    return int(_occupied(labels.long().bincount()))


def _degrees_of_labels(x: Discretized, labels: Tensor) -> tuple[Tensor, Tensor]:
    rows = _occupied(histogram(x.codes.t(), x.bins))
    valid = _valid(x)
    if valid is None:
        samples = torch.full_like(rows, x.samples)
        columns = torch.full_like(rows, _distinct(labels))
    else:
        samples = valid.sum(1)
        columns = rows.new_tensor([_distinct(labels[own]) for own in valid])
    return samples[:, None], ((rows - 1) * (columns - 1))[:, None]


def _count_reached(
    x: Discretized, y: Discretized | Tensor, information: Tensor, permutations: int, seed: int
) -> Tensor:
    """How many permutations of y bring every pair at least the information it has."""
    reached = torch.zeros_like(information, dtype=torch.int64)
    if isinstance(y, Tensor):
        for order in _orders(x.codes, permutations, seed):
            reached += _of_labels(x, y[order])[:, None] >= information
        return reached
    width = max(1, _BYTES // max(1, x.samples + 4 * x.features))  # features of y at a time
    for first in range(0, y.features, width):
        columns = slice(first, first + width)
        codes, found = y.codes[columns], information[:, None, columns]
        valid = _valid(Discretized(codes, y.bins))
        at_once = max(1, _BYTES // (codes.numel() + 4 * found.numel()))
        orders = _orders(x.codes, permutations, seed)
        while some := list(islice((_shuffled(codes, valid, order) for order in orders), at_once)):
            shuffled = Discretized(torch.cat(some), y.bins)
            by_chance = _of_pairs(x, shuffled).view(x.features, len(some), len(codes))
            reached[:, columns] += (by_chance >= found).sum(1)
    return reached


def _orders(codes: Tensor, permutations: int, seed: int) -> Iterator[Tensor]:
    """The same permutations of the samples whenever it is called, and on any device."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(permutations):
        order = torch.randperm(codes.shape[1], generator=generator, device="cpu")
        yield order.to(codes.device)


def _shuffled(codes: Tensor, valid: Tensor | None, order: Tensor) -> Tensor:
    """Codes [features, samples] with their samples in that order, missing ones where they were."""
    if valid is None:
        return codes[:, order]
    result = codes.clone()
    for own, mask in zip(result, valid, strict=True):
        own[mask] = own[order[mask[order]]]
    return result
