"""Greedy selection of units by Gaussian conditional information.

For jointly Gaussian units T and targets Z, the information that unit j adds to a set S is

    I(T_j; Z | T_S) = 1/2 log det Var(T_j | T_S) - 1/2 log det Var(T_j | T_S, Z).

Taking the largest each time is forward regression with an information gain. Both covariances,
of the units and of the units given the targets, are factorized by Cholesky with the units taken as
pivots: after the targets were conditioned on once, a step costs no more for many than for few.
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

# Columns that are subtracted from a covariance at a time.
_PANEL = 64

# The share of a covariance's units that must have been taken before it is copied without them.
_TAKEN_SHARE = 1 / 8

# Variances below it are none.
_FLOOR = 1e-300


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
        outputs: over how many targets their mean variance is, where those given are the directions
            in which that many vary; None: over those given.
    """

    def __init__(
        self,
        xx: Tensor,
        xz: Tensor,
        zz: Tensor,
        *,
        block: int = 1,
        outputs: int | None = None,
    ) -> None:
        columns = len(xz)
        if columns % block:
            raise ValueError(
                f"ConditionalInformation: block must divide the {columns} columns, got {block}"
            )
        noisy = xx.double().clone()
        noisy.diagonal().add_(UNIT_NOISE * noisy.diagonal().mean().clamp(min=1e-30))
        targets_noisy = zz.double().clone()
        scale = (targets_noisy.trace() / (outputs or len(zz))).clamp(min=1e-30)
        targets_noisy.diagonal().add_(TARGET_NOISE * scale)
        # xz zz^-1 zx = half half^T.
        root = _root(targets_noisy)
        half = torch.linalg.solve_triangular(root, xz.double().T, upper=False)
        covariances = torch.stack([noisy, noisy])
        covariances[1].addmm_(half.T, half, alpha=-1)
        kind = _Conditional if block == 1 else _ConditionalBlocks
        self._given = kind(covariances, block)
        self._units = columns // block

    def gains(self) -> Tensor:
        """[units] nats that each unit would add to those taken; anything for those."""
        alone, given_targets = self._given.logdets()
        gains: Tensor = alone.new_zeros(self._units)
        gains[self._given.units] = 0.5 * (alone - given_targets)
        return gains

    def take_(self, unit: int) -> None:
        """Conditions everything on a unit."""
        self._given.take_(unit)


class _Conditional:
    """Covariances of units given those taken: Cholesky factorizations, pivot by pivot.

    The units' and the units' given the targets go side by side: most steps are too small to take
    much longer for two. What was taken is left out of the covariances now and then.

    Args:
        covariances: [2, columns, columns], positive definite; changed.
        block: columns per unit; 1.

    Attributes:
        units: [left] of which units the covariances still are, in increasing order.
    """

    def __init__(self, covariances: Tensor, block: int) -> None:
        self._covariances, self._block = covariances, block
        count = covariances.shape[1] // block
        self.units = torch.arange(count, device=covariances.device)
        self._places = torch.arange(count, device="cpu")  # of each unit among those that are left
        self._taken = torch.zeros(count, dtype=torch.bool, device="cpu")  # by place
        # Rows l of which l^T l is still to be subtracted from the covariances: a product of
        # matrices now and then costs a fraction of as many of single rows.
        self._panel = covariances.new_empty(2, max(_PANEL, block), covariances.shape[1])
        self._used = 0
        self._variances = covariances.diagonal(dim1=1, dim2=2).clone()

    def logdets(self) -> Tensor:
        """[2, left] log-determinants of each unit's covariance given those taken."""
        return self._variances.clamp(min=_FLOOR).log_()

    def take_(self, unit: int) -> None:
        """Conditions on a unit."""
        place = int(self._places[unit])
        row = self._rows(slice(place, place + 1))
        # Of what hardly varies the variance is nothing but a rounding error, of either sign.
        row *= row[:, :, place, None].abs().clamp_(min=1e-30).rsqrt_()
        self._variances.addcmul_(row[:, 0], row[:, 0], value=-1)
        self._append_(row, place)

    def _rows(self, own: slice) -> Tensor:
        """[2, block, columns] of the covariances as they are now, of a unit's columns."""
        panel = self._panel[:, : self._used]
        return torch.baddbmm(self._covariances[:, own], panel[:, :, own].mT, panel, alpha=-1)

    def _append_(self, rows: Tensor, place: int) -> None:
        self._panel[:, self._used : self._used + self._block] = rows
        self._used += self._block
        self._taken[place] = True
        if self._used + self._block > self._panel.shape[1]:
            if int(self._taken.sum()) >= _TAKEN_SHARE * len(self._taken):
                places = (~self._taken).nonzero().to(self.units.device)
                self._keep_(places.flatten(), (places * self._block + self._offsets()).flatten())
            panel = self._panel[:, : self._used]
            self._covariances.baddbmm_(panel.mT, panel, alpha=-1)
            self._used = 0

    def _offsets(self) -> Tensor:
        """[block] of a unit's columns from its first."""
        return torch.arange(self._block, device=self.units.device)

    def _keep_(self, places: Tensor, columns: Tensor) -> None:
        """Leaves out the units at all other places, whose columns are all others."""
        self._covariances = self._covariances[:, columns[:, None], columns]
        self._variances = self._variances[:, columns]
        self._panel = self._panel[:, :, columns]
        self.units = self.units[places]
        self._places[self.units.cpu()] = torch.arange(len(places), device="cpu")
        self._taken = torch.zeros(len(places), dtype=torch.bool, device="cpu")


class _ConditionalBlocks(_Conditional):
    """The same of units of several columns, which are neighbours."""

    def __init__(self, covariances: Tensor, block: int) -> None:
        super().__init__(covariances, block)
        index = self.units[:, None] * block + self._offsets()
        self._within = covariances[:, index[:, :, None], index[:, None, :]].clone()

    def logdets(self) -> Tensor:
        """[2, left] log-determinants of each unit's covariance given those taken."""
        roots, _ = torch.linalg.cholesky_ex(self._within)
        found: Tensor = 2 * roots.diagonal(dim1=2, dim2=3).clamp(min=_FLOOR).log().sum(-1)
        return found

    def take_(self, unit: int) -> None:
        """Conditions on a unit, whose columns are whitened first."""
        place = int(self._places[unit])
        own = slice(place * self._block, (place + 1) * self._block)
        rows = self._rows(own)
        root = torch.stack([_root(within) for within in rows[:, :, own]])
        rows = torch.linalg.solve_triangular(root, rows, upper=False)
        blocks = rows.mT.unflatten(1, (-1, self._block))
        self._within -= blocks @ blocks.mT
        self._append_(rows, place)

    def _keep_(self, places: Tensor, columns: Tensor) -> None:
        self._within = self._within[:, places]
        super()._keep_(places, columns)


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
    taken = torch.zeros(units, dtype=torch.bool, device="cpu")
    order, gains = [], []
    for _ in range(units if count is None else count):
        total = sum(
            (layer.gains().cpu() for layer in layers), torch.zeros(units, device="cpu").double()
        )
        total.masked_fill_(taken, -torch.inf)
        best = float(total.max())
        unit = int((total >= best - _TIE * max(abs(best), 1e-6)).byte().argmax())
        taken[unit] = True
        order.append(unit)
        gains.append(best)
        for layer in layers:
            layer.take_(unit)
    return Selection(tuple(order), tuple(gains))


def divergences(
    xx: Tensor, xz: Tensor, zz: Tensor, fisher: Tensor, order: Sequence[int], *, block: int = 1
) -> Tensor:
    """KL divergence to expect when a layer's targets are predicted from its first k units.

    To second order it is 1/2 tr(F R), R the covariance of what their regression on the units
    leaves open.

    Args:
        xx, xz, zz, block: as of ``ConditionalInformation``, in no metric.
        fisher: [targets, targets] Fisher information F of the targets.
        order: all units.

    Returns:
        [units + 1] float64 nats, for k = 0 to all units; it falls.
    """
    index = torch.arange(len(xx), device=xx.device).view(-1, block)
    columns = index[list(order)].flatten()
    noisy = xx.double()[columns[:, None], columns]
    noisy.diagonal().add_(UNIT_NOISE * noisy.diagonal().mean().clamp(min=1e-30))
    root = _root(noisy)
    explained = torch.linalg.solve_triangular(root, xz.double()[columns], upper=False)
    saved = ((explained @ fisher.double()) * explained).sum(1).view(-1, block).sum(1)
    everything = (zz.double() * fisher.double()).sum().view(1)
    return 0.5 * torch.cat([everything, everything - saved.cumsum(0)]).clamp(min=0).cpu()


def _root(covariance: Tensor) -> Tensor:
    """Its Cholesky factor.

    Of what hardly varies the covariance is nothing but rounding errors, some of them negative; it
    gets so much noise that they do not count.
    """
    root: Tensor
    root, failed = torch.linalg.cholesky_ex(covariance)
    if failed == 0:
        return root
    least = torch.linalg.eigvalsh(covariance)[0]
    noise = (-2 * least).clamp(min=1e-30) + 1e-12 * covariance.diagonal().abs().mean()
    root = torch.linalg.cholesky(
        covariance + noise * torch.eye(len(covariance), device="cpu").to(covariance)
    )
    return root
