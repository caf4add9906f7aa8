"""Removes single weights of Linear layers: the rows that predict the same from fewer inputs.

How many weights a row keeps is set by their magnitude over the whole model. Which ones is
decided row by row, by backward elimination: the weight that costs least goes first, which for a
least-squares fit is the one with the smallest w^2 / [H^-1]_jj (optimal brain surgeon, Hassibi &
Stork, 1993; the Gaussian information that input j adds to the others), and the others take over
what it said.
"""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from .data import Batch, ForwardFn
from .errors import SimMIMError
from .layers import weighted
from .moments import Moments
from .nn import MaskedLinear
from .reconstruction import RIDGE, Pair, layers_in_order, output_layer, refit_to_predictions

# Share of a row's remaining weights that one elimination step takes.
_STEP = 0.05

# Elements of the inverse matrices that rows are worked on with at a time.
_CHUNK = 1 << 24


def prune_weights(
    model: nn.Module,
    data: Iterable[Batch],
    *,
    sparsity: float,
    samples: int,
    seed: int = 0,
    ignored_layers: frozenset[str] = frozenset(),
    refit_outputs: bool = False,
    forward_fn: ForwardFn | None = None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A copy of the model whose Linear layers are MaskedLinear with few weights left.

    From input to output each layer is refitted, on the smaller network's own inputs, to what
    the original layer said. Convolutions stay as they are.

    Args:
        model: the network.
        data: calibration batches.
        sparsity: fraction of the Linear layers' weights to remove, in (0, 1); rounded up to a
            weight.
        samples: most calibration samples to use.
        seed: of whatever is drawn.
        ignored_layers: qualified names of layers that stay dense.
        refit_outputs: whether the last layer's weights are refitted to the model's predictions by
            KL divergence; a distillation that follows does that better.
        forward_fn: as in ``score``.

    Returns:
        The sparse model, and for each layer its name, "before" and "after" (weights), and for
        convolutions and ignored layers "dense" true.

    Raises:
        SimMIMError: the model has no Linear layer to remove weights from.
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"prune_weights: sparsity must be in (0, 1), got {sparsity!r}")
    student = deepcopy(model)
    pair = Pair(student, deepcopy(model), data, samples, seed, forward_fn)
    order = layers_in_order(model, pair.example, forward_fn)
    linear = [n for n in order if type(weighted(model, n)) is nn.Linear and n not in ignored_layers]
    if not linear:
        raise SimMIMError("prune_weights: the model has no Linear layer to remove weights from")
    counts = _weights_per_row({n: weighted(model, n).weight for n in linear}, sparsity)
    for name in linear:
        layer = weighted(student, name)
        weight, bias = _eliminate(pair.moments({name: None})[name], counts[name])
        with torch.no_grad():
            layer.weight.copy_(weight)
            if layer.bias is not None:
                layer.bias.copy_(bias)
        parent, _, child = name.rpartition(".")
        assert isinstance(layer, nn.Linear)
        mask = (weight != 0).to(layer.weight.device)
        setattr(student.get_submodule(parent), child, MaskedLinear.from_linear(layer, mask))
    if refit_outputs and linear[-1] == output_layer(student, pair.example, linear, forward_fn):
        masked = student.get_submodule(linear[-1])
        assert isinstance(masked, MaskedLinear)
        refit_to_predictions(masked, *pair.features(linear[-1]), mask=masked.mask)
    return student, [_described(model, name, counts) for name in order]


def _is_plain_linear(layer: nn.Module) -> bool:
    return (isinstance(layer, nn.Linear) and layer.bias is not None) or type(layer) is nn.Linear


def _weights_per_row(weights: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Layer -> [outputs] weights that each row keeps: those of largest magnitude overall."""
    magnitudes = torch.cat([w.detach().abs().flatten().float() for w in weights.values()])
    keep = int(len(magnitudes) * (1 - sparsity) + 1e-6)
    kept = torch.zeros_like(magnitudes)
    kept[magnitudes.argsort(descending=True, stable=True)[:keep]] = 1
    parts = torch.split(kept, [w.numel() for w in weights.values()])
    return {
        name: part.view(weight.shape).sum(1).long().cpu()
        for (name, weight), part in zip(weights.items(), parts, strict=True)
    }


def _eliminate(moments: Moments, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [outputs, inputs] with counts[i] weights in row i, and the bias [outputs]."""
    xx, xz, _ = moments.covariances()
    inputs, outputs = xz.shape
    damped = xx + RIDGE[nn.Linear] * xx.diagonal().mean().clamp(min=1e-30) * torch.eye(inputs)
    inverse = torch.linalg.inv(damped)
    full = (inverse @ xz).T.float()
    weight = torch.zeros(outputs, inputs, dtype=torch.float64)
    # Rows that keep alike numbers of weights go together.
    rows = counts.argsort(descending=True, stable=True)
    rows = rows[counts[rows] > 0]
    for chunk in torch.split(rows, max(1, _CHUNK // inputs**2)):
        support = _supports(full[chunk], inverse.float(), counts[chunk])
        for row, columns in zip(chunk.tolist(), support, strict=True):
            block = damped[columns[:, None], columns]
            weight[row, columns] = torch.linalg.solve(block, xz[columns, row])
    bias = (moments.z - weight @ moments.x) / moments.samples
    return weight, bias


def _supports(weight: Tensor, inverse: Tensor, counts: Tensor) -> list[Tensor]:
    """The columns that survive the elimination in each row, as index tensors.

    Args:
        weight: [rows, columns] least-squares weights.
        inverse: [columns, columns] inverse of the damped covariance, which every row starts with.
        counts: [rows] weights to keep in each.
    """
    rows, columns = weight.shape
    weight = weight.clone()
    inverses = inverse.expand(rows, -1, -1).clone()
    left = torch.full((rows,), columns)
    alive = torch.ones(rows, columns, dtype=torch.bool)
    index = torch.arange(columns).expand(rows, -1)
    while (left > counts).any():
        take = ((left * _STEP).long().clamp(min=1)).minimum(left - counts)
        most = int(take.max())
        cost = weight.square() / inverses.diagonal(dim1=1, dim2=2).clamp(min=1e-30)
        gone = cost.masked_fill(~alive, torch.inf).topk(most, dim=1, largest=False).indices
        active = torch.arange(most) < take[:, None]
        _remove(weight, inverses, gone, active)
        alive.scatter_(1, gone, alive.gather(1, gone) & ~active)
        left -= take
        width = int(left.max())
        if width <= 0.7 * alive.shape[1]:
            weight, inverses, alive, index = _compacted(weight, inverses, alive, index, width)
    return [index[row][alive[row]] for row in range(rows)]


def _remove(weight: Tensor, inverses: Tensor, gone: Tensor, active: Tensor) -> None:
    """Takes columns gone [rows, r], where active, out of the regressions, in place."""
    columns = weight.shape[1]
    across = inverses.gather(2, gone[:, None, :].expand(-1, columns, -1))
    block = across.gather(1, gone[:, :, None].expand(-1, -1, gone.shape[1]))
    # Columns that a row does not take are decoupled: identity in the block, zero across.
    both = active[:, :, None] & active[:, None, :]
    block = torch.where(both, block, torch.eye(gone.shape[1]))
    across = across * active[:, None, :]
    solved = torch.linalg.solve(block, across.mT)
    value = weight.gather(1, gone) * active
    weight -= (value[:, None, :] @ solved)[:, 0]
    inverses -= across @ solved
    weight.scatter_(1, gone, weight.gather(1, gone) * ~active)


def _compacted(
    weight: Tensor, inverses: Tensor, alive: Tensor, index: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Drops columns that are dead; rows with fewer live ones than width keep some dead ones."""
    columns = (~alive).to(torch.int8).argsort(dim=1, stable=True)[:, :width].sort(1).values
    rows = inverses.gather(1, columns[:, :, None].expand(-1, -1, inverses.shape[2]))
    inverses = rows.gather(2, columns[:, None, :].expand(-1, width, -1))
    return (
        weight.gather(1, columns),
        inverses.contiguous(),
        alive.gather(1, columns),
        index.gather(1, columns),
    )


def _described(model: nn.Module, name: str, counts: dict[str, Tensor]) -> dict[str, Any]:
    before = weighted(model, name).weight.numel()
    if name not in counts:
        return {"name": name, "before": before, "after": before, "dense": True}
    return {"name": name, "before": before, "after": int(counts[name].sum()), "dense": False}
