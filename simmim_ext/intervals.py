"""Confidence intervals of what is measured on a sample."""

import math
from statistics import NormalDist

import torch
from torch import Tensor

_GROUPS = 10_000
_NORMAL = NormalDist()


def clopper_pearson(successes: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a proportion (Clopper and Pearson, 1934).

    Both ends are found by bisection on the binomial tails; between whole numbers of successes, as
    ``effective_trials`` leads to, they are interpolated.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(
            f"clopper_pearson: successes must be between 0 and trials >= 1, got {successes} of "
            f"{trials}"
        )
    whole = math.floor(successes)
    low, high = _exact(whole, trials, confidence)
    if whole < successes:
        above = _exact(whole + 1, trials, confidence)
        low += (successes - whole) * (above[0] - low)
        high += (successes - whole) * (above[1] - high)
    return low, high


def _exact(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else _binomial_root(successes, trials, tail)
    high = 1.0 if successes == trials else 1 - _binomial_root(trials - successes, trials, tail)
    return low, high


def effective_trials(hits: Tensor, counts: Tensor, confidence: float = 0.95) -> int:
    """How many independent trials say as much of a proportion as those of a sample by clusters.

    That many go into the exact interval, as by Korn & Graubard (Survey Methodology 24, 1998): the
    tokens of one text are alike, and of few texts it is uncertain how much so. It is the number of
    clusters where all trials have one outcome, which says nothing of how alike they are.

    Args:
        hits: [trials] outcomes, those of a cluster side by side.
        counts: [clusters] the number of each one's trials.
        confidence: of the interval.
    """
    clusters, trials = len(counts), len(hits)
    if clusters == trials:
        return trials
    share = float(hits.double().mean())
    if share in (0, 1) or clusters == 1:
        return clusters
    # The variance of a ratio of totals, by its linearization.
    errors = sums_of(hits.double() - share, counts)
    variance = clusters / (clusters - 1) * float(errors.square().sum()) / trials**2
    alone = share * (1 - share) / trials
    tail = (1 - confidence) / 2
    alone *= (students_t(tail, trials - 1) / students_t(tail, clusters - 1)) ** 2
    return max(1, int(trials * min(1.0, alone / variance))) if variance > 0 else trials


def students_t(tail: float, freedom: float) -> float:
    """What Student's t exceeds with probability ``tail``, by the expansion in 1 / freedom.

    Abramowitz & Stegun 26.7.5: at a tail of 2.5% it is 11% low for one degree of freedom, 0.8% for
    two, and right within 0.2% from three on.
    """
    z = -_NORMAL.inv_cdf(tail)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def sums_of(values: Tensor, counts: Tensor) -> Tensor:
    """[clusters] sums of ``values`` [n], of which ``counts`` [clusters] each are side by side."""
    of = torch.repeat_interleave(counts)
    return torch.zeros(len(counts), dtype=torch.float64, device="cpu").index_add_(0, of, values)


def proportion_at_least(successes: float, trials: int, confidence: float = 0.95) -> float:
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
    values: Tensor,
    counts: Tensor | None = None,
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 1000,
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of ``values`` [n] (Efron, 1979).

    The percentiles are those that make it as wide for few values as Student's t is (Hesterberg,
    "What Teachers Should Know About the Bootstrap", 2015). Of one value it is that value.

    Clusters, of which ``counts`` [clusters] values each are side by side, are drawn as a whole.
    More than 10,000 values or clusters are first added up in random groups of equal size, which
    leaves the variance of the mean what it was and bounds the cost.
    """
    generator = torch.Generator().manual_seed(seed)
    sums, weights = values.double(), torch.ones(len(values), dtype=torch.float64, device="cpu")
    if counts is not None:
        sums, weights = sums_of(sums, counts), counts.double()
    size = -(-len(sums) // _GROUPS)
    if size > 1:
        order = torch.randperm(len(sums), generator=generator, device="cpu")
        order = order[: len(sums) // size * size]
        sums, weights = (x[order].view(-1, size).sum(dim=1) for x in (sums, weights))
    means = []
    for _ in range(resamples // 50):
        drawn = torch.randint(len(sums), (50, len(sums)), generator=generator, device="cpu")
        means.append(sums[drawn].sum(dim=1) / weights[drawn].sum(dim=1))
    tail = (1 - confidence) / 2
    if (n := len(sums)) > 1:
        tail = _NORMAL.cdf(-math.sqrt(n / (n - 1)) * students_t(tail, n - 1))
    low, high = (
        torch.cat(means)
        .quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64, device="cpu"))
        .tolist()
    )
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
