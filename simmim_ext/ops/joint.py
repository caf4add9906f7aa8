"""Joint histograms of pairs of coded features, and the information of every pair."""

import torch
from torch import Tensor
from torch.library import register_fake

from ._library import check_same_device, operator

_joint_histogram = operator("joint_histogram")
_joint_information = operator("joint_information")
_pairwise_information = operator("pairwise_information")


def joint_histogram(
    x: Tensor, y: Tensor, x_bins: int, y_bins: int, caller: str = "joint_histogram"
) -> Tensor:
    """Counts the samples of every pair of features by their two bins.

    Args:
        x: codes [x_features, samples] uint8 below x_bins, or 255 for no sample.
        y: codes [y_features, samples] uint8 below y_bins, or 255 for no sample.
        x_bins: 2..256.
        y_bins: 2..256.
        caller: the public function that error texts begin with.

    Returns:
        counts [x_features, y_features, x_bins, y_bins] int64 of the samples valid in both.

    Raises:
        ValueError: naming the argument, the rule and the value.
        TypeError: codes are of another dtype.
    """
    return _joint_histogram(x, y, x_bins, y_bins, caller)  # type: ignore[no-any-return]


@register_fake("simmim_ext::joint_histogram")
def _(x, y, x_bins, y_bins, caller):  # type: ignore[no-untyped-def]
    check_same_device(x, y, caller, "y")
    return x.new_empty((x.shape[0], y.shape[0], x_bins, y_bins), dtype=torch.int64)


def joint_information(
    counts: Tensor,
    quantity: str,
    estimator: str = "plugin",
    normalized: str | None = None,
    base: float | None = None,
    caller: str = "joint_information",
) -> Tensor:
    """Information of every pair from its joint counts.

    Args:
        counts: [x_features, y_features, x_bins, y_bins] int64, at least 2 samples in each pair and
            fewer than 2^63.
        quantity: "joint_entropy", "conditional_entropy" (of x given y) or "mutual_information".
        estimator: "plugin", "miller_madow", "grassberger", "chao_shen" or "shrink".
        normalized: None, or mutual information divided by the "min", "max", "arithmetic" or
            "geometric" mean of the two entropies; 0 where one of them is 0.
        base: of the logarithm; None: nats.
        caller: the public function that error texts begin with.

    Returns:
        [x_features, y_features] float32.

    Raises:
        ValueError: naming the argument, the rule and the value.
        TypeError: counts is of another dtype.
    """
    return _joint_information(counts, quantity, estimator, normalized, base, caller)  # type: ignore[no-any-return]


@register_fake("simmim_ext::joint_information")
def _(counts, quantity, estimator, normalized, base, caller):  # type: ignore[no-untyped-def]
    return counts.new_empty(counts.shape[:2], dtype=torch.float32)


def pairwise_information(
    x: Tensor,
    y: Tensor | None,
    x_bins: int,
    y_bins: int | None,
    quantity: str,
    estimator: str = "plugin",
    normalized: str | None = None,
    base: float | None = None,
    caller: str = "pairwise_information",
) -> Tensor:
    """The same from codes, without joint counts ever reaching memory.

    Args:
        x: codes [x_features, samples] uint8 below x_bins, or 255 for no sample.
        y: codes [y_features, samples] uint8 below y_bins; None: all pairs within x, whose diagonal
            is H(X) and whose result is symmetric bit for bit where the quantity is.
        x_bins: 2..256.
        y_bins: 2..256 where y is given.
        quantity: "joint_entropy", "conditional_entropy" (of x given y) or "mutual_information".
        estimator: "plugin", "miller_madow", "grassberger", "chao_shen" or "shrink".
        normalized: as for joint_information.
        base: of the logarithm; None: nats.
        caller: the public function that error texts begin with.

    Returns:
        [x_features, y_features] float32, each pair over the samples valid in both.

    Raises:
        ValueError: naming the argument, the rule and the value, and the features at fault.
        TypeError: codes are of another dtype.
    """
    return _pairwise_information(  # type: ignore[no-any-return]
        x, y, x_bins, y_bins, quantity, estimator, normalized, base, caller
    )


@register_fake("simmim_ext::pairwise_information")
def _(x, y, x_bins, y_bins, quantity, estimator, normalized, base, caller):  # type: ignore[no-untyped-def]
    if y is None:
        y = x
    check_same_device(x, y, caller, "y")
    return x.new_empty((x.shape[0], y.shape[0]), dtype=torch.float32)
