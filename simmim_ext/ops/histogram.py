"""Marginal histograms of a batch of features."""

import torch
from torch import Tensor
from torch.library import register_fake

from ._library import operator

_histogram = operator("histogram")


def histogram(
    x: Tensor,
    bins: int,
    low: Tensor | None = None,
    high: Tensor | None = None,
    edges: Tensor | None = None,
    nan_policy: str = "raise",
    outliers: str = "raise",
    caller: str = "histogram",
) -> Tensor:
    """Counts the samples of each feature by bin.

    Args:
        x: [samples, features] float16/bfloat16/float32/float64 of any strides, or uint8 codes,
            each its own bin, of which 255 counts nowhere.
        bins: 2..256; half-open, the last one closed, as numpy.histogram.
        low, high: [features] range of the bins; None: each feature's minimum and maximum.
        edges: [bins + 1] or [features, bins + 1] ascending, instead of low and high.
        nan_policy: "raise" or "omit".
        outliers: "raise", "drop" or "clip": what happens to values outside the range.
        caller: the public function that error texts begin with.

    Returns:
        counts [features, bins] int64, exact.

    Raises:
        ValueError: naming the argument, the rule and the value, and the feature where one is at
            fault.
        TypeError: x is of another dtype.
    """
    return _histogram(x, bins, low, high, edges, nan_policy, outliers, caller)  # type: ignore[no-any-return]


@register_fake("simmim_ext::histogram")
def _(x, bins, low, high, edges, nan_policy, outliers, caller):  # type: ignore[no-untyped-def]
    return x.new_empty((x.shape[1], bins), dtype=torch.int64)
