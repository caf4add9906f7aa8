"""Weights at equal budget: SimMIM and its rivals choose as many of them, and all else is alike.

Magnitude ranks over the whole model; LAMP (Lee et al., 2021) divides each squared weight by what
its layer would have left, and ranks over the whole model too; Wanda (Sun et al., 2024) ranks |w|
times the norm of the input within each output, with as many weights for each output ("own") or as
many as magnitude and SimMIM leave it ("shared"). A refit is the ridge regression of what the
original layer said on the weights that are left.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from simmim_ext.moments import NormalEquations
from simmim_ext.nn import MaskedLinear
from simmim_ext.original import Original
from simmim_ext.reconstruction import RIDGE, Pair, refit_to_predictions
from simmim_ext.weights import prune_weights

METHODS = ("simmim", "magnitude", "lamp", "wanda")


def zeroed(
    teacher: nn.Module,
    data: Iterable[Tensor],
    zeros: float,
    *,
    method: str,
    widths: str,
    refit: bool,
    refit_outputs: bool,
    samples: int,
    seed: int,
) -> nn.Module:
    """A copy of a Sequential whose Linear layers have lost that fraction of their weights."""
    data = list(data)
    if method == "simmim" and refit:
        return prune_weights(
            teacher,
            data,
            sparsity=zeros,
            samples=samples,
            seed=seed,
            refit_outputs=refit_outputs,
        )[0]
    student = copy.deepcopy(teacher)
    original = Original(teacher, data, samples=samples, seed=seed)
    pair = Pair(original.resumed(student), original)
    names = [name for name, layer in student.named_modules() if isinstance(layer, nn.Linear)]
    weights = {name: student.get_submodule(name).weight.detach().clone() for name in names}
    if method == "simmim":
        chosen = prune_weights(teacher, data, sparsity=zeros, samples=samples, seed=seed)[0]
        masks = {name: chosen.get_submodule(name).mask for name in names}
    else:
        masks = of_whole_model(method, weights, zeros)
    for name in names:
        sums = pair.whole({name: None})[name]
        if method == "wanda":
            shared = widths == "shared"
            counts = masks[name].sum(1) if shared else evenly(weights[name], zeros)
            masks[name] = of_each_row(weights[name].abs() * sums.xx.diagonal().sqrt(), counts)
        layer = student.get_submodule(name)
        if refit:
            fit_rows(layer, masks[name], sums)
        student.set_submodule(name, MaskedLinear.from_linear(layer, masks[name]))
    if refit and refit_outputs:
        last = student.get_submodule(names[-1])
        features = pair.features(names[-1])
        assert features is not None  # of these networks the last layer makes the outputs
        refit_to_predictions(last, *features, mask=last.mask)
    return student


def of_whole_model(method: str, weights: dict[str, Tensor], zeros: float) -> dict[str, Tensor]:
    """Masks by a ranking over all layers."""
    scores = {name: weight.abs() for name, weight in weights.items()}
    if method == "lamp":
        scores = {name: lamp(weight) for name, weight in weights.items()}
    flat = torch.cat([score.flatten() for score in scores.values()])
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[flat.argsort(descending=True, stable=True)[: int(len(flat) * (1 - zeros) + 1e-6)]] = True
    parts = kept.split([score.numel() for score in scores.values()])
    return {name: part.view_as(scores[name]) for name, part in zip(scores, parts, strict=True)}


def lamp(weight: Tensor) -> Tensor:
    """Each squared weight over the sum of those of its layer that are no smaller."""
    squares = weight.flatten().double().square()
    order = squares.argsort(stable=True)
    left = squares[order].flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = squares[order] / left
    return scores.view_as(weight)


def evenly(weight: Tensor, zeros: float) -> Tensor:
    """[outputs] weights that each output keeps: alike up to one, as many as the budget allows."""
    ends = (torch.arange(len(weight) + 1) * weight.shape[1] * (1 - zeros) + 1e-6).long()
    return ends.diff()


def of_each_row(scores: Tensor, counts: Tensor) -> Tensor:
    """The counts[i] largest scores of row i."""
    places = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return places < counts[:, None]


def fit_rows(layer: nn.Linear, mask: Tensor, sums: NormalEquations) -> None:
    """Each output's ridge regression on the inputs that its mask leaves it, in place."""
    xx, xz = sums.products(centred=True)
    damped = xx.clone()
    damped.diagonal().add_(RIDGE[nn.Linear] * xx.diagonal().mean())
    weight = torch.zeros_like(mask, dtype=torch.float64)
    for row, kept in enumerate(mask):
        columns = kept.nonzero().flatten()
        if len(columns):
            block = damped[columns[:, None], columns]
            weight[row, columns] = torch.linalg.solve(block, xz[columns, row])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_((sums.z - weight @ sums.x) / sums.samples)
