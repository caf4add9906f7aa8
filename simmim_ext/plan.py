"""Which units to keep: the scores' order cut at widths that meet the budget."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .budget import check_round_to, split_budget
from .config import ALLOCATIONS
from .costs import LONG_SECONDS, Costs
from .data import Batch
from .errors import SimMIMError
from .forward import ForwardFn
from .names import matching
from .scoring import Scores
from .unit_costs import costs_of
from .units import UnitGroup
from .widths import (
    Count,
    Goal,
    Widths,
    allocate,
    allocate_by_loss,
    is_count,
    rounded,
    share_of,
    unreachable,
    warn_of_counts,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """The units that a model keeps.

    Attributes:
        kept: layer -> unit indices in increasing order.
        layers: for each layer its name, "before" and "after" (units), "kept" (unit indices) and
            "information": the share of the layer's information that the kept units carry. That is
            conditional information for the "simmim" criterion, the sum of I(T; Yhat) for all
            others; None for scores that are not from ``score``. With those that are,
            "unit_information" has every unit's I(T; Yhat) in nats.
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
        allocation: "information" grows layers by the divergence that a unit saves for its cost,
            with scores of "simmim", and by their units' I(T; Yhat), pooled over layers, with all
            others. "score" grows them by the scores themselves, "uniform" by equal shares.
        round_to: widths are multiples of it (or whole layers).
        forward_fn: as in ``score``.

    Raises:
        ValueError: a constraint, allocation or round_to that is none.
        SimMIMError: a budget that even the least widths exceed, or a latency that is not reached.
    """
    limits, per_layer = split_budget(constraints)
    if allocation not in ALLOCATIONS:
        raise ValueError(f"allocation must be one of {', '.join(ALLOCATIONS)}, got {allocation!r}")
    check_round_to(round_to)
    order, needed = guarded(scores)
    scores = replace(scores, order=order)
    costs = Costs(model, scores, example_inputs, forward_fn)
    warn_of_counts(limits, costs.original)
    own = own_widths(scores.groups, per_layer, round_to)
    priorities = _priorities(scores, allocation)
    free = {name: values for name, values in priorities.items() if name not in own}

    def complete(widths: Widths) -> Widths:
        return {name: max(width, needed[name]) for name, width in (widths | own).items()}

    least = complete({name: min(round_to, len(values)) for name, values in free.items()})
    ceilings = _ceilings(limits, costs, least, round_to)

    def fits(widths: Widths) -> bool:
        whole = complete(widths)
        return all(costs.of(name, whole) <= limit for name, limit in ceilings.items())

    options: dict[str, Any] = {"round_to": round_to, "fill": "latency" not in limits}
    by_loss = allocation == "information" and limits and scores.divergence
    if by_loss:
        shares = {name: ceilings[name] / costs.original(name) for name in limits}
        prices, seems_to_fit = _prices(model, scores, own, shares, example_inputs, forward_fn)
        losses = {name: scores.divergence[name] for name in free}

    def widest() -> Widths:
        if by_loss:
            widths = allocate_by_loss(losses, prices, seems_to_fit, fits, **options)
        else:
            widths = allocate(free, fits, **options)
        if widths is not None:
            return complete(widths)
        raise costs.latency_unmet(limits["latency"], costs.of("latency", least))

    widths = widest()
    if "latency" in limits:
        alone = len(constraints) == 1
        reached = costs.unsettled(widths, limits["latency"], alone=alone)
        if reached is not None:  # measured for too short a time, as on a busy machine
            costs.measure_for(LONG_SECONDS)
            widths = widest()
            reached = costs.unsettled(widths, limits["latency"], alone=alone)
        if reached is not None:
            raise costs.latency_unmet(limits["latency"], reached)
        if alone:  # no other budget can be why few units are left
            costs.warn_of_overhead(limits["latency"], widths, least)
    kept = {g.name: tuple(sorted(scores.order[g.name][: widths[g.name]])) for g in scores.groups}
    return Plan(kept, [_layer(scores, name, units) for name, units in kept.items()])


def check_reachable(
    model: nn.Module,
    groups: tuple[UnitGroup, ...],
    constraints: Mapping[str, Any],
    example_inputs: Batch,
    *,
    round_to: int = 1,
    forward_fn: ForwardFn | None = None,
) -> None:
    """Raises the errors of ``make_plan`` that need no scores; those of a latency do.

    Where layers make some of a group's units only, what the least widths cost depends on scores.

    Args:
        groups: the model's units.
        model, constraints, example_inputs, round_to, forward_fn: as in ``make_plan``.
    """
    limits, per_layer = split_budget(constraints)
    own = own_widths(groups, per_layer, round_to)
    if any(len(set(m.units)) < group.units for group in groups for m in group.members):
        return
    order = {group.name: tuple(range(group.units)) for group in groups}
    scores = Scores({}, order, {}, "none", groups, example_inputs)
    least = {group.name: own.get(group.name, min(round_to, group.units)) for group in groups}
    _ceilings(limits, Costs(model, scores, example_inputs, forward_fn), least, round_to)


def own_values(groups: Iterable[UnitGroup], per_layer: Mapping[str, T]) -> dict[str, T]:
    """Group -> the value that ``per_layer`` has for one of the layers that make its units."""
    names = {g.name: [m.module for m in g.members if m.axis == "out"] for g in groups}
    return matching(per_layer, names)


def own_widths(
    groups: Iterable[UnitGroup], per_layer: Mapping[str, float | int], round_to: int
) -> Widths:
    """The widths of the groups that have their own."""
    groups = tuple(groups)
    units = {group.name: group.units for group in groups}
    widths = {}
    for name, value in own_values(groups, per_layer).items():
        count = int(value) if is_count(value) else share_of(value, units[name])
        if count > units[name] and not isinstance(value, Count):
            raise SimMIMError(
                f"constraints: per_layer asks for {count} units of {name!r}, which has "
                f"{units[name]}; give at most as many, or a fraction"
            )
        widths[name] = rounded(count, units[name], round_to)
    return widths


def _ceilings(
    limits: Mapping[str, float | int], costs: Costs, least: Widths, round_to: int
) -> dict[str, float]:
    """What the limits allow, as numbers of things, and the latency as a share.

    Raises SimMIMError where the least widths exceed one that is no latency, which takes long to
    find out, and no goal, which gives way.
    """
    ceilings: dict[str, float] = {}
    for name, value in limits.items():
        if name == "latency":
            ceilings[name] = value
            continue
        ceilings[name] = value if is_count(value) else share_of(value, costs.original(name))
        reached = costs.of(name, least)
        if reached > ceilings[name] and not isinstance(value, Goal):
            raise unreachable(name, value, reached, costs.original(name), round_to)
        ceilings[name] = max(ceilings[name], reached)
    return ceilings


def _prices(
    model: nn.Module,
    scores: Scores,
    own: Widths,
    shares: Mapping[str, float],
    example: Batch,
    forward_fn: ForwardFn | None,
) -> tuple[Callable[[Widths], dict[str, float]], Callable[[Widths], bool]]:
    """What units cost as a share of the budgets, and whether widths seem to be within them.

    Args:
        own: widths that are settled.
        shares: budget -> the fraction of the original's that is allowed.
    """
    costs = [costs_of(name, model, scores.groups, example, forward_fn) for name in shares]
    whole = {group.name: group.units for group in scores.groups}
    limits = [share * cost.of(whole) for share, cost in zip(shares.values(), costs, strict=True)]

    def prices(widths: Widths) -> dict[str, float]:
        each = [cost.of_another_unit(widths | own) for cost in costs]
        return {
            name: sum(one[name] / limit for one, limit in zip(each, limits, strict=True))
            for name in widths
        }

    def seems_to_fit(widths: Widths) -> bool:
        return all(
            cost.of(widths | own) <= limit for cost, limit in zip(costs, limits, strict=True)
        )

    return prices, seems_to_fit


def guarded(scores: Scores) -> tuple[dict[str, tuple[int, ...]], Widths]:
    """An order of each layer's units in which no layer loses all, and the least widths for that.

    Before a concatenation layers make some of a group's units only: the best of each come first.
    """
    order, needed = dict(scores.order), {}
    for group in scores.groups:
        first: list[int] = []
        for member in group.members:
            own = set(member.units)
            if len(own) < group.units and not own & set(first):
                first.append(next(unit for unit in order[group.name] if unit in own))
        needed[group.name] = max(1, len(first))
        rest = (unit for unit in order[group.name] if unit not in first)
        order[group.name] = (*first, *rest)
    return order, needed


def _priorities(scores: Scores, allocation: str) -> Mapping[str, Tensor]:
    groups = scores.groups
    if allocation == "information":
        return {group.name: scores.information[group.name] for group in groups}
    if allocation == "score":
        return {group.name: scores[group.name] for group in groups}
    return {group.name: -torch.arange(group.units, device="cpu") / group.units for group in groups}


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
    layer = {"name": name, "before": units, "after": len(kept), "information": share}
    layer["kept"] = list(kept)
    if name in scores.information:
        layer["unit_information"] = scores.information[name].tolist()
    return layer
