"""Confidence intervals of what is measured on a sample."""

import math

import torch
from torch import Tensor

_GROUPS = 10_000


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a proportion (Clopper and Pearson, 1934).

    Both ends are found by bisection on the binomial tails.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(
            f"clopper_pearson: successes must be between 0 and trials >= 1, got {successes} of "
            f"{trials}"
        )
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else _binomial_root(successes, trials, tail)
    high = 1.0 if successes == trials else 1 - _binomial_root(trials - successes, trials, tail)
    return low, high


def proportion_at_least(successes: int, trials: int, confidence: float = 0.95) -> float:
    """The exact one-sided lower bound of a proportion."""
    return clopper_pearson(successes, trials, 2 * confidence - 1)[0]


def _binomial_root(k: int, n: int, tail: float) -> float:
    """The p at which P(X >= k) = tail for X ~ Binomial(n, p)."""
    count = torch.arange(k, n + 1, dtype=torch.float64, device="cpu")
    log_choose = math.lgamma(n + 1) - torch.lgamma(count + 1) - torch.lgamma(n - count + 1)
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        terms = log_choose + count * math.log(p) + (n - count) * math.log1p(-p)
        if float(terms.logsumexp(0)) < math.log(tail):
            low = p
        else:
            high = p
    return (low + high) / 2


def bootstrap_mean(
    values: Tensor, *, seed: int, confidence: float = 0.95, resamples: int = 1000
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of ``values`` [samples] (Efron, 1979).

    More than 10,000 values are first averaged in random groups of equal size, which leaves the
    variance of the mean what it was and bounds the cost.
    """
    generator = torch.Generator().manual_seed(seed)
    values = values.double()
    size = -(-len(values) // _GROUPS)
    if size > 1:
        order = torch.randperm(len(values), generator=generator, device="cpu")
        order = order[: len(values) // size * size]
        values = values[order].view(-1, size).mean(dim=1)
    means = torch.cat(
        [
            values[
                torch.randint(len(values), (50, len(values)), generator=generator, device="cpu")
            ].mean(dim=1)
            for _ in range(resamples // 50)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = means.quantile(
        torch.tensor([tail, 1 - tail], dtype=torch.float64, device="cpu")
    ).tolist()
    return low, high


def spearman(x: Tensor, y: Tensor) -> float:
    """Spearman's rank correlation of two vectors [samples]; NaN where one is constant."""
    ranks = torch.stack([_ranks(x), _ranks(y)])
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(x: Tensor) -> Tensor:
    """Ranks from 0, equal values sharing the mean of theirs."""
    _, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    ranks: Tensor = counts.cumsum(0) - (counts + 1) / 2
    return ranks.double()[inverse]
