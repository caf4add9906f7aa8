"""The criteria by which units are ranked, side by side and through one interface."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .collect import GroupStatistics, LayerStatistics, Predictions
from .config import CompressConfig
from .discretization import discretize
from .importance import importance
from .information import (
    conditional_entropy,
    conditional_mutual_information,
    entropy,
    mutual_information,
)
from .ranking import Criterion, Ranking, Setting, by_order, by_score
from .selection import ConditionalInformation, divergences, select_units


def simmim(stats: GroupStatistics, setting: Setting) -> Ranking:
    """Conditional information about the next layers' pre-activations, taken greedily.

    A unit's score is what would be lost with it and all that were taken after it, in nats.
    """
    layers = []
    found = []
    for reader in stats.readers.values():
        everything, xz, zz = reader.moments.covariances()
        chosen = reader.columns
        block = len(chosen) // stats.group.units
        xx = everything[chosen][:, chosen]
        found.append((xx, xz[chosen], zz, reader, block))
        targets = _in_metric(everything, xz, zz, reader)
        layers.append(
            ConditionalInformation(xx, targets[0][chosen], targets[1], block=block, outputs=len(zz))
        )
    selection = select_units(layers, stats.group.units)
    gains = torch.tensor(selection.gains, dtype=torch.float64, device="cpu")
    scores = torch.empty_like(gains)
    scores[list(selection.order)] = gains.flip(0).cumsum(0).flip(0)
    divergence = torch.zeros(stats.group.units + 1, dtype=torch.float64, device="cpu")
    for xx, xz, zz, reader, block in found:
        expected = divergences(xx, xz, zz, reader.fisher, selection.order, block=block)
        divergence += reader.places * expected
    return Ranking(scores.float(), selection.order, divergence)


def _in_metric(
    xx: Tensor, xz: Tensor, zz: Tensor, reader: LayerStatistics
) -> tuple[Tensor, Tensor]:
    """Cov(x, t) and Cov(t, t) of all columns x with targets t: the outputs in their metric.

    More outputs than columns say no more than as many as columns: A x = Q (R x), and what the
    rotation Q makes of targets says the same.
    """
    root = metric_root(reader.fisher)
    if reader.weight is None or len(zz) <= len(xx):
        return xz @ root, root.T @ zz @ root
    few: Tensor = torch.linalg.qr(root.T @ reader.weight.detach().double(), mode="r").R
    across = xx @ few.T
    return across, few @ across


def metric_root(fisher: Tensor) -> Tensor:
    """A root L of the output metric L L^T = F / (2 tr F) + I / (2 o), [outputs, outputs].

    Errors count by what they change in the predictions (the Fisher information F), and a little
    in every direction. Of the roots it is Cholesky's: what outputs say in this metric is the same
    with any.
    """
    outputs = len(fisher)
    metric = fisher / (2 * fisher.trace().clamp(min=1e-30))
    metric.diagonal().add_(1 / (2 * outputs))
    root: Tensor = torch.linalg.cholesky(metric)
    return root


def marginal_entropy(stats: GroupStatistics, setting: Setting) -> Ranking:
    """H(T)."""
    return by_score(unit_entropy(stats.activations, setting.config))


def relevance(stats: GroupStatistics, setting: Setting) -> Ranking:
    """I(T; Yhat)."""
    return by_score(unit_information(stats.activations, setting.predictions, setting.config))


def redundancy(stats: GroupStatistics, setting: Setting) -> Ranking:
    """Greedy: the largest entropy given the most similar unit kept, min over j of H(Ti | Tj)."""
    x, bins = stats.activations, _pair_bins(stats, setting)
    given = conditional_entropy(x, x, **bins).cpu()
    return _greedy(entropy(x, **bins).cpu(), lambda unit: given[:, unit], torch.minimum)


def mrmr(stats: GroupStatistics, setting: Setting) -> Ranking:
    """Greedy: I(Ti; Yhat) less the mean I(Ti; Tj) with the units kept (Peng et al., 2005)."""
    relevant = unit_information(stats.activations, setting.predictions, setting.config).cpu()
    pairs = mutual_information(stats.activations, **_pair_bins(stats, setting)).cpu()
    taken = 0

    def less_mean(current: Tensor, shared: Tensor) -> Tensor:
        nonlocal taken
        mean = (relevant - current) * taken
        taken += 1
        return relevant - (mean + shared) / taken

    return _greedy(relevant, lambda unit: pairs[:, unit], less_mean)


def jmi(stats: GroupStatistics, setting: Setting) -> Ranking:
    """Greedy: sum over the units kept of I(Ti, Tj; Yhat) (Yang & Moody, 1999)."""
    taken = 0

    def add(current: Tensor, given: Tensor) -> Tensor:
        nonlocal taken
        taken += 1
        # The first unit has no company: its relevance starts no sum.
        return given if taken == 1 else current + given

    return _greedy(*_conditional(stats, setting), add)


def cmim(stats: GroupStatistics, setting: Setting) -> Ranking:
    """Greedy: the least I(Ti; Yhat | Tj) over the units kept (Fleuret, 2004)."""
    return _greedy(*_conditional(stats, setting), torch.minimum)


def random(stats: GroupStatistics, setting: Setting) -> Ranking:
    """A seeded draw, another for every layer."""
    position = [group.name for group in setting.groups].index(stats.group.name)
    generator = torch.Generator().manual_seed(setting.config.seed * 1_000_003 + position)
    return by_score(torch.rand(stats.group.units, generator=generator, device="cpu"))


def unit_entropy(x: Tensor, config: CompressConfig) -> Tensor:
    """H(T) of every unit in nats, [units], from x [samples, units]."""
    bins: dict[str, Any] = {"bins": config.bins, "range": layer_range(x, config)}
    return entropy(x, estimator=config.estimator, **bins)


def unit_information(x: Tensor, predictions: Predictions, config: CompressConfig) -> Tensor:
    """I(T; Yhat) of every unit in nats, [units], from x [samples, units].

    With classes Yhat is the predictive distribution itself (soft labels); with values it is the
    outputs, and the mean over them is taken. Plug-in estimates: soft labels have no other.
    """
    bins: dict[str, Any] = {"bins": config.bins, "range": layer_range(x, config)}
    if predictions.noise is None:
        return mutual_information(x, probabilities=predictions.rows, **bins)
    targets = discretize(predictions.rows, bins=config.bins)
    return mutual_information(discretize(x, **bins), targets).mean(1)


def layer_range(x: Tensor, config: CompressConfig) -> tuple[float, float] | None:
    """One range of bins for the whole layer, which keeps the units' scale; None: one each."""
    if not config.shared_range:
        return None
    low, high = float(x.min()), float(x.max())
    return (low, high) if low < high else None


def _pair_bins(stats: GroupStatistics, setting: Setting) -> dict[str, Any]:
    shared = layer_range(stats.activations, setting.config)
    return {
        "bins": setting.config.pair_bins,
        "range": shared,
        "estimator": setting.config.estimator,
    }


def _conditional(
    stats: GroupStatistics, setting: Setting
) -> tuple[Tensor, Callable[[int], Tensor]]:
    """I(Ti; Yhat), and I(Ti; Yhat | Tj) as a function of j, with the predicted class as Yhat."""
    x, rows = stats.activations, setting.predictions.rows
    bins = _pair_bins(stats, setting)
    classes = setting.predictions.noise is None
    target = rows.argmax(1) if classes else _quantile_classes(rows)
    first = mutual_information(x, target, **bins).cpu()

    def given(unit: int) -> Tensor:
        return conditional_mutual_information(x, target, x[:, unit : unit + 1], **bins).cpu()

    return first, given


def _quantile_classes(rows: Tensor) -> Tensor:
    """Outputs [samples, outputs] as 16 classes: quantiles along their main direction."""
    centred = rows.double() - rows.double().mean(0)
    direction: Tensor = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1:]
    return discretize(centred @ direction, bins=16, binning="quantile").codes[0].long()


def _greedy(
    first: Tensor,
    given: Callable[[int], Tensor],
    combine: Callable[[Tensor, Tensor], Tensor],
) -> Ranking:
    """Takes the unit with the highest value, then combines all values with those given it."""
    value = first.double()
    left = torch.ones(len(value), dtype=torch.bool, device="cpu")
    order: list[int] = []
    while len(order) < len(value):
        candidates = value.masked_fill(~left, -torch.inf)
        unit = int((candidates == candidates.max()).nonzero()[0])
        order.append(unit)
        left[unit] = False
        value = combine(value, given(unit).double())
    return by_order(order)


def _of_each(rank: Callable[[GroupStatistics, Setting], Ranking]) -> Criterion:
    """A criterion that looks at one group at a time."""
    return lambda setting: lambda stats: rank(stats, setting)


CRITERIA: dict[str, Criterion] = {
    "simmim": _of_each(simmim),
    "entropy": _of_each(marginal_entropy),
    "relevance": _of_each(relevance),
    "redundancy": _of_each(redundancy),
    "mrmr": _of_each(mrmr),
    "jmi": _of_each(jmi),
    "cmim": _of_each(cmim),
    "random": _of_each(random),
    **{
        name: partial(importance, name)
        for name in ("magnitude_l1", "magnitude_l2", "fpgm", "taylor", "hessian", "activation")
    },
}
