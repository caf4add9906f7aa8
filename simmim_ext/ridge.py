"""Ridge regression of a layer from second moments; held-out samples choose the ridge.

The ridge draws the weights to those that the layer has, not to zero: where the samples are too few
to say anything better, the layer stays as it is.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .moments import NormalEquations

# Ridges to choose from, as shares of the inputs' mean variance.
SHARES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

# The least ridge, as a share of E|x|^2: rounding leaves inputs that do not vary a covariance of
# about 1e-16 of it in any direction, with negative eigenvalues as well.
_ROUNDING = 1e-12


def regression(
    weight: Tensor, bias: Tensor | None, seen: NormalEquations, held_out: NormalEquations
) -> tuple[Tensor, Tensor | None]:
    """The weight [outputs, inputs] and bias [outputs] that predict z from x best.

    Args:
        weight, bias: what the layer has now; without a bias the regression has none.
        seen: of the samples that are fitted.
        held_out: of the others, which choose the ridge; then all are fitted. Where no fit is
            better on them than what the layer has, that is returned.
    """
    weight = weight.detach().double()
    bias = None if bias is None else bias.detach().double()
    if not held_out.samples:
        return weight, bias
    fits = _Fits(weight, bias, seen)
    best, error = _least(lambda i: _error(*fits.at(SHARES[i]), held_out), len(SHARES))
    if not error < _error(weight, bias, held_out):
        return weight, bias
    return _Fits(weight, bias, seen + held_out).at(SHARES[best])


def _least(error: Callable[[int], float], places: int) -> tuple[int, float]:
    """Where the error is least, and how much it is there: downhill from the middle.

    Over the ridge it has one minimum, so that not every ridge need be tried.
    """
    place = start = places // 2
    least = error(start)
    for step in (-1, 1):
        while 0 <= place + step < places and (found := error(place + step)) < least:
            place, least = place + step, found
        if place != start:
            break
    return place, least


class _Fits:
    """The weight and bias that ridges lead to."""

    def __init__(self, weight: Tensor, bias: Tensor | None, sums: NormalEquations) -> None:
        self._weight, self._bias, self._sums = weight, bias, sums
        self._xx, xz = sums.products(centred=bias is not None)
        self._missing = xz - self._xx @ weight.T
        self._variance = self._xx.diagonal().mean()
        self._rounding = _ROUNDING * (sums.xx.trace() / sums.samples).clamp(min=1e-18)

    def at(self, share: float) -> tuple[Tensor, Tensor | None]:
        """With a ridge of that share of the inputs' mean variance."""
        damped = self._xx.clone()
        damped.diagonal().add_((share * self._variance).clamp(min=self._rounding))
        change = torch.cholesky_solve(self._missing, torch.linalg.cholesky(damped))
        weight, sums = self._weight + change.T, self._sums
        bias = None if self._bias is None else (sums.z - weight @ sums.x) / sums.samples
        return weight, bias


def _error(weight: Tensor, bias: Tensor | None, sums: NormalEquations) -> float:
    """Mean squared error of the prediction, summed over outputs."""
    n = sums.samples
    error = sums.zz + ((weight @ sums.xx - 2 * sums.xz.T) * weight).sum()
    if bias is not None:
        error = error + bias @ (2 * (weight @ sums.x - sums.z) + n * bias)
    return float(error) / n
