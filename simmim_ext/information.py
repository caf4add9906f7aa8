"""Entropies and information of many features at once.

Every function takes x [samples, features], floating point of any stride or a
:class:`~simmim_ext.Discretized`, and returns float32 in nats (units of ``base`` where that is
given), accumulated exactly: results do not depend on threads, on the order of the samples or on
how the work is split, and no gradient flows through them.

Keywords that all of them share:

- ``bins``: 2..256 (None: 16), or edges, [bins + 1] or [features, bins + 1]; bins are half-open, the
  last one closed, as numpy.histogram. Where samples may be left out 255 are the most, but for
  ``entropy``.
- ``range``: (low, high), two floats, which hold for x, y and z alike, or two [features] tensors,
  which hold for x; None: each feature's minimum and maximum.
- ``binning``: "uniform", or "quantile": equally many samples in each bin, except that equal values
  always share one.
- ``estimator``: "plugin" (maximum likelihood), "miller_madow" (Miller 1955), "grassberger"
  (Grassberger 2003, arXiv:physics/0307138), "chao_shen" (Chao and Shen 2003) or "shrink" (Hausser
  and Strimmer 2009, with the bins, or pairs of bins, as its alphabet). Information combines
  entropies by the same estimator, and may be negative where that is a corrected one.
- ``base`` of the logarithm; None: nats.
- ``nan_policy``: "raise", or "omit" for the samples where a feature is NaN.
- ``outliers``: "raise", "drop" or "clip" infinity and values outside an explicit range. A pair
  counts the samples that are valid in both of its features.

Errors are ValueError or TypeError and name function, argument, rule and value. Fewer than two
valid samples raise.
"""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor

from .discretization import Binning, Discretized, Range
from .ops.conditional import conditional_mutual_information as _conditional_mutual_information
from .ops.joint import pairwise_information
from .ops.label import label_information, soft_label_information
from .ops.predictive import predictive_information as _predictive_information
from .values import check_dense, not_a_tensor


def entropy(
    x: Tensor | Discretized,
    *,
    bins: int | Tensor | None = None,
    range: Range | None = None,
    binning: str = "uniform",
    estimator: str = "plugin",
    base: float | None = None,
    nan_policy: str = "raise",
    outliers: str = "raise",
) -> Tensor:
    """H(X) of every feature of x; a constant feature has exactly 0 (plug-in).

    Args:
        x: [samples, features], or a Discretized.
        bins, range, binning, estimator, base, nan_policy, outliers: as the module says.

    Returns:
        [features] float32.
    """
    binned = Binning("entropy", bins, range, binning, nan_policy, outliers)
    return binned.entropy(x, estimator, base)


def joint_entropy(
    x: Tensor | Discretized,
    y: Tensor | Discretized | None = None,
    *,
    bins: int | Tensor | None = None,
    range: Range | None = None,
    binning: str = "uniform",
    estimator: str = "plugin",
    base: float | None = None,
    nan_policy: str = "raise",
    outliers: str = "raise",
) -> Tensor:
    """H(X,Y) of every pair of a feature of x and one of y.

    Args:
        x: [samples, features], or a Discretized.
        y: [samples, y_features], a Discretized, or class labels [samples]: bool or 0..65,535;
            None: all pairs within x, whose diagonal is H(X).
        bins, range, binning, estimator, base, nan_policy, outliers: as the module says.

    Returns:
        [x_features, y_features] float32, or [x_features] where y is labels.
    """
    binned = Binning("joint_entropy", bins, range, binning, nan_policy, outliers)
    return _pairs("joint_entropy", binned, x, y, estimator, None, base)


def conditional_entropy(
    x: Tensor | Discretized,
    y: Tensor | Discretized | None,
    *,
    bins: int | Tensor | None = None,
    range: Range | None = None,
    binning: str = "uniform",
    estimator: str = "plugin",
    base: float | None = None,
    nan_policy: str = "raise",
    outliers: str = "raise",
) -> Tensor:
    """H(X|Y) = H(X,Y) - H(Y) of every pair of a feature of x and one of y.

    Args:
        x: [samples, features], or a Discretized.
        y: [samples, y_features], a Discretized, or class labels [samples]: bool or 0..65,535;
            None: all pairs within x, whose diagonal is 0.
        bins, range, binning, estimator, base, nan_policy, outliers: as the module says.

    Returns:
        [x_features, y_features] float32, or [x_features] where y is labels.
    """
    binned = Binning("conditional_entropy", bins, range, binning, nan_policy, outliers)
    return _pairs("conditional_entropy", binned, x, y, estimator, None, base)


def mutual_information(
    x: Tensor | Discretized,
    y: Tensor | Discretized | None = None,
    *,
    bins: int | Tensor | None = None,
    range: Range | None = None,
    binning: str = "uniform",
    estimator: str = "plugin",
    base: float | None = None,
    nan_policy: str = "raise",
    outliers: str = "raise",
    probabilities: Tensor | None = None,
    normalized: str | None = None,
) -> Tensor:
    """I(X;Y) = H(X) + H(Y) - H(X,Y) of every pair of a feature of x and one of y.

    Args:
        x: [samples, features], or a Discretized.
        y: [samples, y_features], a Discretized, or class labels [samples]: bool or 0..65,535;
            None: all pairs within x, symmetric bit for bit, whose diagonal is H(X).
        bins, range, binning, estimator, base, nan_policy, outliers: as the module says.
        probabilities: [samples, classes] floating point in place of y: soft labels, such as a
            teacher's predictive distribution; rows sum to 1. Plug-in only.
        normalized: None, or the information divided by the "min", "max", "arithmetic" or
            "geometric" mean of the two entropies; 0 where one of them is 0.

    Returns:
        [x_features, y_features] float32, or [x_features] where y is labels or soft labels.
    """
    caller = "mutual_information"
    binned = Binning(caller, bins, range, binning, nan_policy, outliers)
    if probabilities is None:
        return _pairs(caller, binned, x, y, estimator, normalized, base)
    if y is not None:
        raise ValueError(f"{caller}: y must be None where probabilities are given")
    if estimator != "plugin":
        raise ValueError(
            f"{caller}: estimator must be 'plugin' where probabilities are given, got {estimator!r}"
        )
    if not isinstance(probabilities, Tensor):
        raise not_a_tensor(caller, "probabilities", probabilities)
    check_dense(caller, "probabilities", probabilities)
    codes = binned.discretize(x)
    return soft_label_information(
        codes.codes, probabilities.detach(), codes.bins, normalized, base, caller
    )


def conditional_mutual_information(
    x: Tensor | Discretized,
    y: Tensor | Discretized | None,
    z: Tensor | Discretized,
    *,
    bins: int | Tensor | None = None,
    range: Range | None = None,
    binning: str = "uniform",
    estimator: str = "plugin",
    base: float | None = None,
    nan_policy: str = "raise",
    outliers: str = "raise",
) -> Tensor:
    """I(X;Y|Z) of every pair of a feature of x and one of y, given one variable z.

    Args:
        x: [samples, features], or a Discretized.
        y: [samples, y_features], a Discretized, or class labels [samples]: bool or 0..65,535;
            None: all pairs within x, whose diagonal is H(X|Z).
        z: class labels [samples], bool or 0..65,535; or one feature [samples, 1], binned as the
            others or a Discretized. A sample without z counts nowhere.
        bins, range, binning, estimator, base, nan_policy, outliers: as the module says.

    Returns:
        [x_features, y_features] float32, or [x_features] where y is labels.
    """
    caller = "conditional_mutual_information"
    binned = Binning(caller, bins, range, binning, nan_policy, outliers)
    codes = binned.discretize(x)
    y_codes, y_bins = (None, None) if y is None else _codes_or_labels(binned, y, "y")
    z_codes, z_bins = _codes_or_labels(binned, z, "z")
    return _conditional_mutual_information(
        codes.codes, y_codes, z_codes, codes.bins, y_bins, z_bins, estimator, base, caller
    )


def predictive_information(logits: Tensor, *, base: float | None = None) -> Tensor:
    """I(prediction; input) of a classifier: H(mean_x p(y|x)) - mean_x H(p(y|x)).

    Exact over the given samples, since a classifier states its predictive distribution; it is 0
    where every prediction is the same, and at most ln(classes).

    Args:
        logits: [samples, classes] floating point, of which softmax is p(y|x); -inf rules a class
            out.
        base: of the logarithm; None: nats.

    Returns:
        a float32 scalar.
    """
    if not isinstance(logits, Tensor):
        raise not_a_tensor("predictive_information", "logits", logits)
    check_dense("predictive_information", "logits", logits)
    return _predictive_information(logits.detach(), base)


def is_labels(y: Tensor | Discretized | None) -> TypeGuard[Tensor]:
    """Whether y holds class labels [samples], rather than features."""
    return isinstance(y, Tensor) and not (y.is_floating_point() or y.is_complex())


def _codes_or_labels(
    binned: Binning, y: Tensor | Discretized, argument: str
) -> tuple[Tensor, int | None]:
    """Codes [features, samples] and their bins, or class labels [samples] as they are and None."""
    if is_labels(y):
        check_dense(binned.caller, argument, y)
        return y, None
    codes = binned.discretize(y, argument)
    return codes.codes, codes.bins


def _pairs(
    quantity: str,
    binned: Binning,
    x: Tensor | Discretized,
    y: Tensor | Discretized | None,
    estimator: str,
    normalized: str | None,
    base: float | None,
) -> Tensor:
    """The quantity for every pair, named as the public function that asks."""
    options = (quantity, estimator, normalized, base, quantity)
    if is_labels(y):
        check_dense(quantity, "y", y)
        values, bins = binned.operand(x)
        return label_information(values, y, *bins, *options)
    codes = binned.discretize(x)
    if y is None:
        return pairwise_information(codes.codes, None, codes.bins, None, *options)
    other = binned.discretize(y, "y")
    return pairwise_information(codes.codes, other.codes, codes.bins, other.bins, *options)
