"""Entropy of counts."""

import torch
from torch import Tensor
from torch.library import register_fake

from ._library import operator

_entropy = operator("entropy")


def entropy(
    counts: Tensor, estimator: str = "plugin", base: float | None = None, caller: str = "entropy"
) -> Tensor:
    """Entropy of the distribution that the last axis counts.

    Args:
        counts: [..., bins] int64, at least 2 samples in each row.
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
