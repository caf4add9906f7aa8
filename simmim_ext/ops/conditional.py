"""Information that pairs of coded features share beyond a third variable."""

import torch
from torch import Tensor
from torch.library import register_fake

from ._library import check_same_device, operator

_conditional_mutual_information = operator("conditional_mutual_information")


def conditional_mutual_information(
    x: Tensor,
    y: Tensor | None,
    z: Tensor,
    x_bins: int,
    y_bins: int | None,
    z_bins: int | None = None,
    estimator: str = "plugin",
    base: float | None = None,
    caller: str = "conditional_mutual_information",
) -> Tensor:
    """I(X;Y|Z) = H(X,Z) + H(Y,Z) - H(X,Y,Z) - H(Z), each entropy by the estimator.

    Args:
        x: codes [x_features, samples] uint8 below x_bins, or 255 for no sample.
        y: codes [y_features, samples] uint8 below y_bins; or class labels [samples] integer,
            0..65,535; None: all pairs within x.
        z: class labels [samples] integer, 0..65,535, or, with z_bins, codes [1, samples] uint8.
        x_bins: 2..256.
        y_bins: 2..256 where y is codes.
        z_bins: 2..256 where z is codes.
        estimator: "plugin", "miller_madow", "grassberger", "chao_shen" or "shrink".
        base: of the logarithm; None: nats.
        caller: the public function that error texts begin with.

    Returns:
        [x_features, y_features] float32, or [x_features] where y is labels.

    Raises:
        ValueError: naming the argument, the rule and the value, and the feature or sample at fault.
        TypeError: codes or labels are of another dtype.
    """
    return _conditional_mutual_information(  # type: ignore[no-any-return]
        x, y, z, x_bins, y_bins, z_bins, estimator, base, caller
    )


@register_fake("simmim_ext::conditional_mutual_information")
def _(x, y, z, x_bins, y_bins, z_bins, estimator, base, caller):  # type: ignore[no-untyped-def]
    if y is None:
        y = x
    check_same_device(x, y, caller, "y")
    check_same_device(x, z, caller, "z")
    shape = (x.shape[0],) if y.dim() == 1 else (x.shape[0], y.shape[0])
    return x.new_empty(shape, dtype=torch.float32)
