"""Backward elimination of a regression's inputs: the optimal brain surgeon.

The block of weights W_b that costs least goes first, which for a least-squares fit is the one with
the smallest tr(W_b [H^-1]_bb^-1 W_b^T) (for a single weight w^2 / [H^-1]_jj; Hassibi & Stork, 1993;
the Gaussian information that these inputs add to the others), and the others take over what it
said.
"""

import torch
from torch import Tensor

# Share of a stripe's remaining blocks that one elimination step takes.
_STEP = 0.05


def surviving(
    weight: Tensor,
    inverse: Tensor,
    counts: Tensor,
    *,
    columns: int = 1,
    keep: tuple[int, int] | None = None,
) -> list[Tensor]:
    """The blocks that survive in each stripe, as index tensors.

    Args:
        weight: [stripes, rows, inputs] least-squares weights; a stripe's rows keep the same inputs.
        inverse: [inputs, inputs] inverse of the damped covariance, which every stripe starts with.
        counts: [stripes] blocks to keep in each.
        columns: inputs of a block.
        keep: (n, m): of every m neighbours at least n survive; for blocks of one column.
    """
    stripes, blocks = len(weight), weight.shape[2] // columns
    weight = weight.clone()
    inverses = inverse.expand(stripes, -1, -1).clone()
    left = torch.full((stripes,), blocks, device="cpu")
    alive = torch.ones(stripes, blocks, dtype=torch.bool, device="cpu")
    index = torch.arange(blocks, device="cpu").expand(stripes, -1)
    while (left > counts).any():
        take = ((left * _STEP).long().clamp(min=1)).minimum(left - counts)
        most = int(take.max())
        cost = _costs(weight, inverses, alive, columns).masked_fill(~alive, torch.inf)
        if keep is not None:
            cost = cost.masked_fill(~_expendable(cost, index, blocks, *keep), torch.inf)
        gone = cost.topk(most, dim=1, largest=False).indices
        active = torch.arange(most, device="cpu") < take[:, None]
        _remove(weight, inverses, _columns_of(gone, columns), active.repeat_interleave(columns, 1))
        alive.scatter_(1, gone, alive.gather(1, gone) & ~active)
        left -= take
        width = int(left.max())
        if width <= 0.7 * alive.shape[1]:
            # Drops dead blocks; stripes with fewer live ones than width keep some dead ones.
            chosen = (~alive).to(torch.int8).argsort(dim=1, stable=True)[:, :width].sort(1).values
            weight, inverses = _compacted(weight, inverses, _columns_of(chosen, columns))
            alive, index = alive.gather(1, chosen), index.gather(1, chosen)
    return [index[stripe][alive[stripe]] for stripe in range(stripes)]


def _costs(weight: Tensor, inverses: Tensor, alive: Tensor, columns: int) -> Tensor:
    """[stripes, blocks] what the fit loses with each block; anything for dead ones."""
    if columns == 1:
        return weight.square().sum(1) / inverses.diagonal(dim1=1, dim2=2).clamp(min=1e-30)
    stripes, rows, width = weight.shape
    blocks = width // columns
    own = inverses.view(stripes, blocks, columns, blocks, columns).diagonal(dim1=1, dim2=3)
    own = torch.where(
        alive[..., None, None],
        own.movedim(-1, 1),
        torch.eye(columns, dtype=own.dtype, device="cpu"),
    )
    values = weight.view(stripes, rows, blocks, columns).permute(0, 2, 3, 1)
    lost: Tensor = values * torch.linalg.solve(own, values)
    return lost.sum((2, 3))


def _expendable(cost: Tensor, index: Tensor, columns: int, least: int, group: int) -> Tensor:
    """Which columns may go at once with all others that may, each group keeping its least."""
    whole = cost.new_full((len(cost), columns), torch.inf).scatter_(1, index, cost)
    grouped = whole.view(len(cost), -1, group)
    rank = grouped.argsort(dim=-1, stable=True).argsort(dim=-1)
    room = grouped.isfinite().sum(-1, keepdim=True) - least
    return (rank < room).view(len(cost), -1).gather(1, index)


def _remove(weight: Tensor, inverses: Tensor, gone: Tensor, active: Tensor) -> None:
    """Takes columns gone [stripes, r], where active, out of the regressions, in place."""
    rows, columns = weight.shape[1:]
    across = inverses.gather(2, gone[:, None, :].expand(-1, columns, -1))
    block = across.gather(1, gone[:, :, None].expand(-1, -1, gone.shape[1]))
    # Columns that a stripe does not take are decoupled: identity in the block, zero across.
    both = active[:, :, None] & active[:, None, :]
    block = torch.where(both, block, torch.eye(gone.shape[1], dtype=block.dtype, device="cpu"))
    across = across * active[:, None, :]
    solved = torch.linalg.solve(block, across.mT)
    places = gone[:, None, :].expand(-1, rows, -1)
    weight -= (weight.gather(2, places) * active[:, None, :]) @ solved
    inverses -= across @ solved
    weight.scatter_(2, places, weight.gather(2, places) * ~active[:, None, :])


def _columns_of(blocks: Tensor, columns: int) -> Tensor:
    """[stripes, n] blocks as [stripes, n * columns] columns."""
    return (blocks[..., None] * columns + torch.arange(columns, device="cpu")).flatten(1)


def _compacted(weight: Tensor, inverses: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The regressions on the columns chosen [stripes, n]."""
    rows = inverses.gather(1, chosen[:, :, None].expand(-1, -1, inverses.shape[2]))
    inverses = rows.gather(2, chosen[:, None, :].expand(-1, chosen.shape[1], -1))
    places = chosen[:, None, :].expand(-1, weight.shape[1], -1)
    return weight.gather(2, places), inverses.contiguous()
