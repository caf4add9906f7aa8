"""Entropy of counts, and of values by way of their counts."""

import torch
from torch import Tensor
from torch.library import register_fake

from ._library import operator

_entropy = operator("entropy")
_marginal_entropy = operator("marginal_entropy")


def entropy(
    counts: Tensor, estimator: str = "plugin", base: float | None = None, caller: str = "entropy"
) -> Tensor:
    """Entropy of the distribution that the last axis counts.

    Args:
        counts: [..., bins] int64, at least 2 samples in each row and fewer than 2^63.
        estimator: "plugin", "miller_madow", "grassberger", "chao_shen" or "shrink".
        base: of the logarithm; None: nats.
        caller: the public function that error texts begin with.

    Returns:
        entropy [...] float32.

    Raises:
        ValueError: naming the argument, the rule and the value.
        TypeError: counts is of another dtype.
    """
    return _entropy(counts, estimator, base, caller)  # type: ignore[no-any-return]


@register_fake("simmim_ext::entropy")
def _(counts, estimator, base, caller):  # type: ignore[no-untyped-def]
    return counts.new_empty(counts.shape[:-1], dtype=torch.float32)


def marginal_entropy(
    x: Tensor,
    bins: int,
    low: Tensor | None = None,
    high: Tensor | None = None,
    edges: Tensor | None = None,
    shared_low: float | None = None,
    shared_high: float | None = None,
    nan_policy: str = "raise",
    outliers: str = "raise",
    estimator: str = "plugin",
    base: float | None = None,
    caller: str = "marginal_entropy",
) -> Tensor:
    """Entropy of the histogram of each feature, in one call, however small.

    Args:
        x, bins, low, high, edges, nan_policy, outliers: as for histogram.
        shared_low, shared_high: instead of low and high, the range of every feature.
        estimator, base: as for entropy.
        caller: the public function that error texts begin with.

    Returns:
        entropy [features] float32.

    Raises:
        ValueError: as histogram and entropy do.
        TypeError: x is of another dtype.
    """
    return _marginal_entropy(  # type: ignore[no-any-return]
        x, bins, low, high, edges, shared_low, shared_high, nan_policy, outliers, estimator, base,
        caller,
    )  # fmt: skip


@register_fake("simmim_ext::marginal_entropy")
def _(x, *arguments):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[1], dtype=torch.float32)
