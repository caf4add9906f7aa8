"""Greedy selection of units by Gaussian conditional information.

For jointly Gaussian units T and targets Z, the information that unit j adds to a set S is

    I(T_j; Z | T_S) = 1/2 log det Var(T_j | T_S) - 1/2 log det Var(T_j | T_S, Z).

Taking the largest each time is forward regression with an information gain. Covariances are
conditioned on each unit taken by updates of its own rank, so no step inverts a whole matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Share of the mean variance that is added as noise: to the units, so that a copy of a unit adds
# nothing, and to the targets, so that no direction of them counts as known exactly.
UNIT_NOISE = 1e-3
TARGET_NOISE = 0.05

# Gains that differ by less than this share are ties, whatever rounding made of them.
_TIE = 1e-9


@dataclass(frozen=True)
class Selection:
    """Units in the order in which they were taken.

    Attributes:
        order: unit indices, the most informative first.
        gains: nats that each of them added to those before it.
    """

    order: tuple[int, ...]
    gains: tuple[float, ...]


class ConditionalInformation:
    """I(T_j; Z | T_S) of every unit j with one layer's targets, as S grows.

    Args:
        xx: [units * block, units * block] second moments (or covariances) of the units' columns;
            a unit's columns are neighbours.
        xz: [units * block, targets] with the targets, in the metric in which errors matter.
        zz: [targets, targets] of the targets.
        block: columns per unit: 1 for a neuron, a filter's patch for a channel.
    """

    def __init__(self, xx: Tensor, xz: Tensor, zz: Tensor, *, block: int = 1) -> None:
        columns, targets = xz.shape
        if columns % block:
            raise ValueError(
                f"ConditionalInformation: block must divide the {columns} columns, got {block}"
            )
        self._block = block
        self._xx = xx.double()
        diagonal = self._xx.diagonal()
        self._noise = UNIT_NOISE * float(diagonal.mean().clamp(min=1e-30))
        zz = zz.double()
        scale = zz.diagonal().mean().clamp(min=1e-30)
        eye = torch.eye(targets, dtype=torch.float64, device=zz.device)
        self._inverse = torch.linalg.inv(zz + TARGET_NOISE * scale * eye)
        self._xz = xz.double().clone()
        self._solved = self._xz @ self._inverse  # xz zz^-1, kept up to date with both
        index = torch.arange(columns, device=xx.device).view(-1, block)
        self._within = self._xx[index[:, :, None], index[:, None, :]].clone()
        # Columns l with xx - sum l l^T the covariance given the units taken; the matrix itself
        # is never formed.
        self._factor = torch.empty(columns, 0, dtype=torch.float64, device=xx.device)
        self._used = 0

    def gains(self) -> Tensor:
        """[units] nats that each unit would add to those taken."""
        units = len(self._within)
        shape = (units, self._block, -1)
        explained = self._xz.view(shape) @ self._solved.view(shape).mT
        noisy = self._within + self._noise * torch.eye(self._block).to(self._within)
        if self._block == 1:
            ratio = (explained / noisy).flatten().clamp(0, 1 - 1e-12)
            return -0.5 * torch.log1p(-ratio)
        rest = noisy - (explained + explained.mT) / 2
        return 0.5 * (_logdet(noisy, self._noise) - _logdet(rest, 1e-12 * self._noise))

    def take_(self, unit: int) -> None:
        """Conditions everything on a unit, whose columns are whitened first."""
        own = slice(unit * self._block, (unit + 1) * self._block)
        taken = self._factor[:, : self._used]
        covariance = self._xx[:, own] - taken @ taken[own].T
        eye = torch.eye(self._block).to(covariance)
        root = torch.linalg.cholesky(covariance[own] + self._noise * eye)
        column = torch.linalg.solve_triangular(root, covariance.T, upper=False).T
        cross = torch.linalg.solve_triangular(root, self._xz[own], upper=False)
        solved = cross @ self._inverse
        # Woodbury: the targets' covariance loses cross^T cross.
        left = eye * (1 + 1e-12) - solved @ cross.T
        update = torch.linalg.solve(left, solved)
        self._inverse += solved.T @ update
        self._xz -= column @ cross
        self._solved -= column @ solved
        self._solved += self._xz @ solved.T @ update
        blocks = column.view(-1, self._block, self._block)
        self._within -= blocks @ blocks.mT
        self._append_(column)

    def _append_(self, column: Tensor) -> None:
        used = self._used + column.shape[1]
        if used > self._factor.shape[1]:
            room = self._factor.new_empty(len(column), max(used, 16))
            self._factor = torch.cat([self._factor, room], dim=1)
        self._factor[:, self._used : used] = column
        self._used = used


def select_units(
    layers: Sequence[ConditionalInformation], units: int, *, count: int | None = None
) -> Selection:
    """Takes units greedily, each time the one that adds the most information.

    Args:
        layers: the layers that read the units, fresh; their information is added up.
        units: number of units.
        count: how many to take; None orders them all.

    Returns:
        The units in the order taken; ties go to the lowest index.
    """
    left = torch.ones(units, dtype=torch.bool)
    order, gains = [], []
    for _ in range(units if count is None else count):
        total = sum((layer.gains().cpu() for layer in layers), torch.zeros(units).double())
        total = total.masked_fill(~left, -torch.inf)
        best = float(total.max())
        unit = int((total >= best - _TIE * max(abs(best), 1e-6)).nonzero()[0])
        left[unit] = False
        order.append(unit)
        gains.append(best)
        for layer in layers:
            layer.take_(unit)
    return Selection(tuple(order), tuple(gains))


def _logdet(matrices: Tensor, floor: float) -> Tensor:
    """Log-determinants of positive semi-definite matrices, eigenvalues clamped to the floor."""
    values: Tensor = torch.linalg.eigvalsh(matrices)
    return values.clamp(min=floor).log().sum(-1)
