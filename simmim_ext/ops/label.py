"""Information of coded features about a class label, hard or soft."""

import torch
from torch import Tensor
from torch.library import register_fake

from ._library import check_same_device, operator

_label_information = operator("label_information")
_soft_label_information = operator("soft_label_information")


def label_information(
    x: Tensor,
    labels: Tensor,
    bins: int,
    low: Tensor | None,
    high: Tensor | None,
    edges: Tensor | None,
    nan_policy: str,
    outliers: str,
    quantity: str,
    estimator: str = "plugin",
    normalized: str | None = None,
    base: float | None = None,
    caller: str = "label_information",
) -> Tensor:
    """Information of every feature and one class label; values are binned as they are counted.

    Args:
        x: [samples, features] float16/bfloat16/float32/float64 of any strides, or uint8 codes
            below bins, of which 255 is no sample.
        labels: [samples] bool or integer, 0..65,535. Their alphabet, which the shrinkage estimator
            needs, is the largest label + 1.
        bins: 2..256 (255 where samples may be left out).
        low, high, edges, nan_policy, outliers: how values are binned, as for histogram.
        quantity: "joint_entropy", "conditional_entropy" (of x given the label) or
            "mutual_information".
        estimator: "plugin", "miller_madow", "grassberger", "chao_shen" or "shrink".
        normalized: None, "min", "max", "arithmetic" or "geometric".
        base: of the logarithm; None: nats.
        caller: the public function that error texts begin with.

    Returns:
        [features] float32.

    Raises:
        ValueError: naming the argument, the rule and the value, and the feature or sample at fault.
        TypeError: x or labels are of another dtype.
    """
    return _label_information(  # type: ignore[no-any-return]
        x, labels, bins, low, high, edges, nan_policy, outliers, quantity, estimator, normalized,
        base, caller,
    )  # fmt: skip


@register_fake("simmim_ext::label_information")
def _(  # type: ignore[no-untyped-def]
    x, labels, bins, low, high, edges, nan_policy, outliers, quantity, estimator, normalized, base,
    caller,
):  # fmt: skip
    check_same_device(x, labels, caller, "y")
    return x.new_empty((x.shape[1],), dtype=torch.float32)


def soft_label_information(
    x: Tensor,
    probabilities: Tensor,
    bins: int,
    normalized: str | None = None,
    base: float | None = None,
    caller: str = "soft_label_information",
) -> Tensor:
    """Plug-in mutual information of every feature and a label known by its probabilities.

    Joint counts are sums of probabilities, in float64, the same on any number of threads.

    Args:
        x: codes [features, samples] uint8 below bins, or 255 for no sample.
        probabilities: [samples, classes] float16/bfloat16/float32/float64; rows sum to 1.
        bins: 2..256.
        normalized: None, "min", "max", "arithmetic" or "geometric".
        base: of the logarithm; None: nats.
        caller: the public function that error texts begin with.

    Returns:
        [features] float32.

    Raises:
        ValueError: naming the argument, the rule and the value, and the feature or sample at fault.
        TypeError: codes or probabilities are of another dtype.
    """
    return _soft_label_information(x, probabilities, bins, normalized, base, caller)  # type: ignore[no-any-return]


@register_fake("simmim_ext::soft_label_information")
def _(x, probabilities, bins, normalized, base, caller):  # type: ignore[no-untyped-def]
    check_same_device(x, probabilities, caller, "probabilities")
    return x.new_empty((x.shape[0],), dtype=torch.float32)
