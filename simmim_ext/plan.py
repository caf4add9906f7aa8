"""Which units to keep: the scores' order cut at widths that meet the budget."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .config import ALLOCATIONS
from .data import Batch, ForwardFn
from .measure import count_bytes, count_flops, count_params, measure_latency
from .removal import remove_units
from .scoring import Scores
from .unit_costs import SHAPE_BUDGETS, UnitCosts, shape_costs
from .widths import Widths, allocate, allocate_by_loss, check_constraints, unreachable

# How long each candidate's latency is measured.
_SECONDS = 0.2


@dataclass(frozen=True)
class Plan:
    """The units that a model keeps.

    Attributes:
        kept: layer -> unit indices in increasing order.
        layers: for each layer its name, "before" and "after" (units), and "information": the
            share of the layer's information that the kept units carry. That is conditional
            information for the "simmim" criterion, the sum of I(T; Yhat) for all others; None for
            scores that are not from ``score``.
    """

    kept: dict[str, tuple[int, ...]]
    layers: list[dict[str, Any]]


def make_plan(
    model: nn.Module,
    scores: Scores,
    constraints: Mapping[str, Any],
    example_inputs: Batch,
    *,
    allocation: str = "information",
    round_to: int = 1,
    forward_fn: ForwardFn | None = None,
) -> Plan:
    """Chooses the widest layers that meet the constraints, and their best units.

    Args:
        model: the network that was scored.
        scores: from ``score``.
        constraints: see ``compress``; each is a ceiling, and all hold.
        example_inputs: a batch; FLOPs are counted on its first sample, latency is measured on
            all of it.
        allocation: "information" grows layers by their units' I(T; Yhat), pooled over layers;
            under a budget in params, flops or bytes, with scores of "simmim", by the divergence
            that a unit saves for its cost. "score" grows them by the scores themselves, "uniform"
            by equal shares.
        round_to: widths are multiples of it (or whole layers).
        forward_fn: as in ``score``.

    Raises:
        ValueError: a constraint, allocation or round_to that is none.
        SimMIMError: a budget that even the least widths exceed.
    """
    limits = check_constraints(constraints)
    if allocation not in ALLOCATIONS:
        raise ValueError(f"allocation must be one of {', '.join(ALLOCATIONS)}, got {allocation!r}")
    if not isinstance(round_to, int) or isinstance(round_to, bool) or round_to < 1:
        raise ValueError(f"round_to must be an integer of at least 1, got {round_to!r}")
    costs = _Costs(model, scores, example_inputs, forward_fn)
    ceilings = {
        name: value if isinstance(value, int) and value > 1 else value * costs.original(name)
        for name, value in limits.items()
    }

    def fits(widths: Widths) -> bool:
        return all(costs.of(name, widths) <= ceiling for name, ceiling in ceilings.items())

    options: dict[str, Any] = {"round_to": round_to, "fill": "latency" not in limits}
    priced = [name for name in SHAPE_BUDGETS if name in limits]
    if allocation == "information" and priced and scores.divergence:
        shares = {name: ceilings[name] / costs.original(name) for name in priced}
        prices, seems_to_fit = _prices(model, scores, shares, example_inputs, forward_fn)
        losses = {group.name: scores.divergence[group.name] for group in scores.groups}
        widths = allocate_by_loss(losses, prices, seems_to_fit, fits, **options)
    else:
        widths = allocate(_priorities(scores, allocation), fits, **options)
    if widths is None:
        least = {g.name: min(round_to, g.units) for g in scores.groups}
        name = next(n for n, ceiling in ceilings.items() if costs.of(n, least) > ceiling)
        raise unreachable(name, limits[name], costs.of(name, least), costs.original(name))
    kept = {name: tuple(sorted(scores.order[name][:width])) for name, width in widths.items()}
    return Plan(kept, [_layer(scores, name, units) for name, units in kept.items()])


class _Costs:
    """What models of given widths cost; each is built once and measured as a user would.

    Parameters are counted on shapes alone.
    """

    def __init__(
        self, model: nn.Module, scores: Scores, example: Batch, forward_fn: ForwardFn | None
    ) -> None:
        self._model, self._scores = model, scores
        self._example, self._forward_fn = example, forward_fn
        self._original: dict[str, float] = {}
        self._shapes = deepcopy(model).to("meta")

    def original(self, name: str) -> float:
        """The cost of the model as it is."""
        if name == "latency":
            return 1.0
        if name not in self._original:
            units = sum(group.units for group in self._scores.groups)
            self._original[name] = units if name == "units" else self._count(name, self._model)
        return self._original[name]

    def of(self, name: str, widths: Widths) -> float:
        """The cost of the model at these widths; latency is relative to the original's."""
        if name == "units":
            return sum(widths.values())
        kept = {layer: self._scores.order[layer][:width] for layer, width in widths.items()}
        model = self._shapes if name == "params" else self._model
        return self._count(name, remove_units(model, self._scores.groups, kept)[0])

    def _count(self, name: str, model: nn.Module) -> float:
        if name == "params":
            return count_params(model)
        if name == "flops":
            return count_flops(model, self._example, self._forward_fn)
        if name == "bytes":
            return count_bytes(model)
        new, old = measure_latency(
            [model, self._model], self._example, self._forward_fn, seconds=_SECONDS
        )
        return new / old


def _prices(
    model: nn.Module,
    scores: Scores,
    shares: Mapping[str, float],
    example: Batch,
    forward_fn: ForwardFn | None,
) -> tuple[Callable[[Widths], dict[str, float]], Callable[[Widths], bool]]:
    """What units cost as a share of the budgets, and whether widths seem to be within them.

    Args:
        shares: budget -> the fraction of the original's that is allowed.
    """
    costs = [
        UnitCosts(model, scores.groups, shape_costs(name, model, example, forward_fn))
        for name in shares
    ]
    whole = {group.name: group.units for group in scores.groups}
    limits = [share * cost.of(whole) for share, cost in zip(shares.values(), costs, strict=True)]

    def prices(widths: Widths) -> dict[str, float]:
        each = [cost.of_another_unit(widths) for cost in costs]
        return {
            name: sum(one[name] / limit for one, limit in zip(each, limits, strict=True))
            for name in widths
        }

    def seems_to_fit(widths: Widths) -> bool:
        return all(cost.of(widths) <= limit for cost, limit in zip(costs, limits, strict=True))

    return prices, seems_to_fit


def _priorities(scores: Scores, allocation: str) -> Mapping[str, Tensor]:
    groups = scores.groups
    if allocation == "information":
        return {group.name: scores.information[group.name] for group in groups}
    if allocation == "score":
        return {group.name: scores[group.name] for group in groups}
    return {group.name: -torch.arange(group.units) / group.units for group in groups}


def _layer(scores: Scores, name: str, kept: Sequence[int]) -> dict[str, Any]:
    units = len(scores.order[name])
    share: float | None = None
    if len(kept) == units:
        share = 1.0
    elif scores.criterion == "simmim":
        # The score of the first unit dropped is what all dropped ones would have added.
        total = float(scores[name].max())
        lost = float(scores[name][scores.order[name][len(kept)]])
        share = 1 - lost / total if total > 0 else 1.0
    elif name in scores.information:
        information = scores.information[name]
        total = float(information.sum())
        share = float(information[list(kept)].sum()) / total if total > 0 else 1.0
    return {"name": name, "before": units, "after": len(kept), "information": share}
