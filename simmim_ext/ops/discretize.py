"""Values turned into codes."""

import torch
from torch import Tensor
from torch.library import register_fake

from ._library import operator

_discretize = operator("discretize")
_quantile_edges = operator("quantile_edges")


def discretize(
    x: Tensor,
    bins: int,
    low: Tensor | None = None,
    high: Tensor | None = None,
    edges: Tensor | None = None,
    nan_policy: str = "raise",
    outliers: str = "raise",
    caller: str = "discretize",
    argument: str = "x",
) -> tuple[Tensor, Tensor]:
    """The bin of every sample, in the layout that all pairwise operators read.

    Args:
        x: [samples, features] float16/bfloat16/float32/float64 of any strides.
        bins: 2..256 (255 where samples may be left out); half-open, the last one closed.
        low, high: [features] range of the bins; None: each feature's minimum and maximum.
        edges: [bins + 1] or [features, bins + 1] ascending, instead of low and high.
        nan_policy: "raise" or "omit".
        outliers: "raise", "drop" or "clip": what happens to values outside the range.
        caller: the public function that error texts begin with.
        argument: what error texts call x.

    Returns:
        codes [features, samples] uint8, 255 where a sample was omitted or dropped, and
        edges [features, bins + 1] float64.

    Raises:
        ValueError: naming the argument, the rule and the value, and the feature at fault.
        TypeError: x is of another dtype.
    """
    return _discretize(x, bins, low, high, edges, nan_policy, outliers, caller, argument)  # type: ignore[no-any-return]


@register_fake("simmim_ext::discretize")
def _(x, bins, low, high, edges, nan_policy, outliers, caller, argument):  # type: ignore[no-untyped-def]
    samples, features = x.shape
    return (
        x.new_empty((features, samples), dtype=torch.uint8),
        x.new_empty((features, bins + 1), dtype=torch.float64),
    )


def quantile_edges(
    x: Tensor,
    bins: int,
    nan_policy: str = "raise",
    outliers: str = "raise",
    caller: str = "quantile_edges",
    argument: str = "x",
) -> Tensor:
    """Edges of bins that hold equally many samples, as far as equal values allow.

    Edge k is the k / bins quantile, interpolated linearly as numpy.quantile does. Edges coincide
    where a value is frequent, so that equal values always share a bin.

    Args:
        x: [samples, features] float16/bfloat16/float32/float64 of any strides.
        bins: 2..256.
        nan_policy: "raise" or "omit".
        outliers: "raise", or "drop" or "clip", which both leave infinity out.
        caller: the public function that error texts begin with.
        argument: what error texts call x.

    Returns:
        edges [features, bins + 1] float64, ascending.

    Raises:
        ValueError: naming the argument, the rule and the value, and the feature at fault.
        TypeError: x is of another dtype.
    """
    return _quantile_edges(x, bins, nan_policy, outliers, caller, argument)  # type: ignore[no-any-return]


@register_fake("simmim_ext::quantile_edges")
def _(x, bins, nan_policy, outliers, caller, argument):  # type: ignore[no-untyped-def]
    return x.new_empty((x.shape[1], bins + 1), dtype=torch.float64)
