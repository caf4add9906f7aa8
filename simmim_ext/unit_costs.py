"""What a unit costs at given widths, from shapes alone.

A parameter's size, and the operations of the products it is in, are proportional to the width of
each axis. That is enough to tell which units are cheap; whether a model meets its budget is
counted on the model itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .data import Batch, take, to_device
from .forward import ForwardFn, forward
from .layers import Weighted, is_convolution, parameter_axis
from .modes import evaluating
from .recording import Recorder
from .units import UnitGroup
from .widths import Widths


@dataclass(frozen=True)
class _Term:
    """The cost of one parameter, and for each axis that shrinks the groups' shares of it."""

    cost: float
    axes: tuple[tuple[tuple[str, float], ...], ...]


class UnitCosts:
    """A network's cost as a function of the widths of its groups of units.

    Args:
        model: the network.
        groups: its groups.
        costs: parameter name -> what it costs as it is.
    """

    def __init__(
        self, model: nn.Module, groups: Iterable[UnitGroup], costs: Mapping[str, float]
    ) -> None:
        groups = tuple(groups)
        self._units = {group.name: group.units for group in groups}
        shares = _shares(model, groups)
        self._terms = [_Term(cost, shares.get(name, ())) for name, cost in costs.items()]

    def of(self, widths: Widths) -> float:
        """The cost at these widths."""
        gone = {name: 1 - width / self._units[name] for name, width in widths.items()}
        total = 0.0
        for term in self._terms:
            cost = term.cost
            for axis in term.axes:
                cost *= 1 - sum(share * gone[name] for name, share in axis)
            total += cost
        return total

    def of_another_unit(self, widths: Widths) -> dict[str, float]:
        """What one more unit of each group would add."""
        now = self.of(widths)
        return {name: self.of(widths | {name: width + 1}) - now for name, width in widths.items()}


class UnitCount:
    """The number of units, as a cost of the same interface."""

    def of(self, widths: Widths) -> float:
        """How many there are."""
        return float(sum(widths.values()))

    def of_another_unit(self, widths: Widths) -> dict[str, float]:
        """One, whichever it is."""
        return dict.fromkeys(widths, 1.0)


def costs_of(
    budget: str,
    model: nn.Module,
    groups: Sequence[UnitGroup],
    batch: Batch,
    forward_fn: ForwardFn | None = None,
) -> UnitCosts | UnitCount:
    """What a budget counts, by widths. Latency is taken to go with the operations."""
    if budget == "units":
        return UnitCount()
    counted = "flops" if budget == "latency" else budget
    return UnitCosts(model, groups, shape_costs(counted, model, batch, forward_fn))


def shape_costs(
    budget: str, model: nn.Module, batch: Batch, forward_fn: ForwardFn | None = None
) -> dict[str, float]:
    """Parameter name -> elements, bytes, or operations for one sample."""
    parameters = dict(model.named_parameters())
    if budget == "params":
        return {name: p.numel() for name, p in parameters.items()}
    if budget == "bytes":
        return {name: p.nbytes for name, p in parameters.items()}
    layers = {n: m for n, m in model.named_modules() if isinstance(m, Weighted)}
    recorder = Recorder(model, layers)
    device = next(iter(parameters.values())).device
    with torch.no_grad(), evaluating(model), recorder.recording():
        forward(model, to_device(take(batch, slice(0, 1)), device), forward_fn)
    found = {}
    for name, calls in recorder.calls.items():
        outputs = sum(z.numel() for _, z in calls)
        channels = calls[0][1].shape[1 if is_convolution(layers[name]) else -1] if calls else 1
        found[f"{name}.weight"] = 2.0 * layers[name].weight.numel() * (outputs // channels)
    return found


def _shares(
    model: nn.Module, groups: Sequence[UnitGroup]
) -> dict[str, tuple[tuple[tuple[str, float], ...], ...]]:
    """Parameter name -> for each axis that shrinks (group, share of the axis) of all its groups."""
    parameters = dict(model.named_parameters())
    found: dict[str, dict[int, list[tuple[str, float]]]] = {}
    for group in groups:
        for member in group.members:
            for name, axis in _parameter_axes(model, member.module, member.axis):
                if name in parameters:
                    share = len(member.indices) / parameters[name].shape[axis]
                    found.setdefault(name, {}).setdefault(axis, []).append((group.name, share))
    return {name: tuple(tuple(one) for one in axes.values()) for name, axes in found.items()}


def _parameter_axes(model: nn.Module, member: str, axis: str) -> list[tuple[str, int]]:
    if axis not in ("out", "in"):  # a parameter that no layer holds
        return [(member, int(axis))]
    layer = model.get_submodule(member)
    named = ((name, parameter_axis(name, axis, layer)) for name, _ in layer.named_parameters())
    return [(f"{member}.{name}", place) for name, place in named if place is not None]
