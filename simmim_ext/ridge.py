"""Ridge regression of a layer from second moments; held-out samples choose the ridge.

The ridge draws the weights to those that the layer has, not to zero: where the samples are too few
to say anything better, the layer stays as it is.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from .moments import Moments

# Ridges to choose from, as shares of the inputs' mean variance.
SHARES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

# The least ridge, as a share of E|x|^2: rounding leaves inputs that do not vary a covariance of
# about 1e-16 of it in any direction, with negative eigenvalues as well.
_ROUNDING = 1e-12


def regression(
    weight: Tensor, bias: Tensor | None, seen: Moments, held_out: Moments
) -> tuple[Tensor, Tensor | None]:
    """The weight [outputs, inputs] and bias [outputs] that predict z from x best.

    Args:
        weight, bias: what the layer has now; without a bias the regression has none.
        seen: moments of the samples that are fitted.
        held_out: of the others, which choose the ridge; then all are fitted. Where no fit is
            better on them than what the layer has, that is returned.
    """
    weight = weight.detach().double()
    bias = None if bias is None else bias.detach().double()
    if not held_out.samples:
        return weight, bias
    best, least = None, _error(weight, bias, held_out)
    for share, fit in zip(SHARES, _fits(weight, bias, seen, SHARES), strict=True):
        error = _error(*fit, held_out)
        if error < least:
            best, least = share, error
    return (weight, bias) if best is None else next(_fits(weight, bias, seen + held_out, [best]))


def _fits(
    weight: Tensor, bias: Tensor | None, moments: Moments, shares: Iterable[float]
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The weight and bias that each ridge leads to."""
    n = moments.samples
    xx, xz = moments.xx / n, moments.xz / n
    if bias is not None:
        xx -= torch.outer(moments.x, moments.x) / n**2
        xz -= torch.outer(moments.x, moments.z) / n**2
    missing = xz - xx @ weight.T
    variance, least = xx.diagonal().mean(), _ROUNDING * (moments.xx.trace() / n).clamp(min=1e-18)
    for share in shares:
        damped = xx.clone()
        damped.diagonal().add_((share * variance).clamp(min=least))
        change = torch.cholesky_solve(missing, torch.linalg.cholesky(damped))
        fit = weight + change.T
        yield fit, None if bias is None else (moments.z - fit @ moments.x) / n


def _error(weight: Tensor, bias: Tensor | None, moments: Moments) -> float:
    """Mean squared error of the prediction, summed over outputs."""
    n = moments.samples
    error = moments.zz.trace() + ((weight @ moments.xx - 2 * moments.xz.T) * weight).sum()
    if bias is not None:
        error = error + bias @ (2 * (weight @ moments.x - moments.z) + n * bias)
    return float(error) / n
