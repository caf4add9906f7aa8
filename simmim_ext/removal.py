"""Removes units physically, and remembers how.

A history is plain JSON, one step after the other: a shrunken axis,

    {"module": "features.0", "axis": "out", "size": 64, "kept": [0, 3, 17]}

where size is the number of channels before (a parameter that no layer holds has its name as module
and its dimension as axis); a number that a module keeps of its units,

    {"module": "blocks.0.attention", "attribute": "num_heads", "value": 3}

or a layer's other form, {"module": "h.0.mlp.c_fc", "convert": "Linear"} (see ``conversion``).
A fresh instance of the architecture takes the same shape again from it, without any tracing.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from .conversion import convert_
from .errors import SimMIMError
from .layers import Axis, axis_size, place_of, shrink
from .sharing import shared_parameters
from .storage import set_submodule
from .units import UnitGroup

History = list[dict[str, Any]]

_STEPS = (
    {"module", "axis", "size", "kept"},
    {"module", "attribute", "value"},
    {"module", "convert"},
)


def remove_units(
    model: nn.Module, groups: Iterable[UnitGroup], kept: Mapping[str, Sequence[int] | Tensor]
) -> tuple[nn.Module, History]:
    """A copy of the model that has only the kept units, and the history of how it came about.

    Args:
        model: the network that the groups were traced on.
        groups: its groups of units.
        kept: for each group's name the units to keep, at least one; a group that is not named
            keeps all of its units.

    Returns:
        The smaller model, with the original's device, dtypes, modes and ``requires_grad``, and
        without gradients; and its history.

    Raises:
        SimMIMError: an unknown group, no unit, a repeated unit or one that does not exist.
    """
    groups = tuple(groups)
    chosen = {group.name: _checked(group, kept) for group in groups if group.name in kept}
    unknown = sorted(set(kept) - {group.name for group in groups})
    if unknown:
        raise SimMIMError(f"remove_units: {unknown[0]!r} is no group of units")
    # Several groups can meet on one axis (behind a concatenation), so collect before removing.
    removed: dict[tuple[str, Axis], set[int]] = {}
    for group in groups:
        if group.name not in chosen:
            continue
        for member in group.members:
            lost = removed.setdefault((member.module, member.axis), set())
            pairs = zip(member.indices, member.units, strict=True)
            lost.update(index for index, unit in pairs if unit not in chosen[group.name])
    history: History = []
    for (name, axis), lost in removed.items():
        size = axis_size(place_of(model, name, axis), axis)
        if max(lost, default=0) >= size:
            raise SimMIMError(
                f"remove_units: axis {axis!r} of {name!r} has {size} channels, the groups were "
                "traced on a model with more; trace or score this model"
            )
        if lost:
            left = [index for index in range(size) if index not in lost]
            if not left:
                makers = [g.name for g in groups if g.name in chosen and _in(g, name, axis)]
                raise SimMIMError(
                    f"remove_units: {name!r} would lose all of its {size} channels; put "
                    f"{' and '.join(map(repr, makers))} in ignored_layers"
                )
            history.append({"module": name, "axis": axis, "size": size, "kept": left})
    history += _attributes(groups, chosen)
    return apply_history(model, history), history


def apply_history(model: nn.Module, history: Iterable[Mapping[str, Any]]) -> nn.Module:
    """A copy of the model, shrunk as the history says.

    Raises:
        SimMIMError: the history is none, or does not fit the model.
    """
    pruned = deepcopy(model)
    for parameter in pruned.parameters():
        parameter.grad = None
    shared = shared_parameters(pruned)
    for step in history:
        if not isinstance(step, Mapping) or step.keys() not in _STEPS:
            raise SimMIMError(
                f"apply_history: {step!r} is no step of a history, which has "
                f"{' or '.join(', '.join(sorted(keys)) for keys in _STEPS)}"
            )
        if "convert" in step:
            convert_(pruned, step, model)
        elif "attribute" in step:
            _set_attribute(pruned, step)
        else:
            _shrink(pruned, step)
    for names in shared:
        _tie(pruned, names)
    return pruned


def _in(group: UnitGroup, name: str, axis: Axis) -> bool:
    """Whether the group's units are channels of that axis."""
    return any((member.module, member.axis) == (name, axis) for member in group.members)


def _attributes(groups: Iterable[UnitGroup], chosen: Mapping[str, frozenset[int]]) -> History:
    return [
        {"module": module, "attribute": attribute, "value": each * len(chosen[group.name])}
        for group in groups
        if len(chosen.get(group.name, ())) not in (0, group.units)
        for module, attribute, each in group.attributes
    ]


def _set_attribute(model: nn.Module, step: Mapping[str, Any]) -> None:
    name, attribute, value = (step[key] for key in ("module", "attribute", "value"))
    module = dict(model.named_modules()).get(name)
    present = getattr(module, attribute, None)
    if not isinstance(present, int) or not isinstance(value, int) or not 0 < value <= present:
        raise SimMIMError(
            f"apply_history: {name!r} has no {attribute} of at least {value} (it is {present!r}); "
            "give an instance of the architecture that was compressed"
        )
    setattr(module, attribute, value)


def _shrink(model: nn.Module, step: Mapping[str, Any]) -> None:
    name, axis, size, kept = (step[key] for key in ("module", "axis", "size", "kept"))
    try:
        place = place_of(model, name, axis)
        found = axis_size(place, axis)
    except (AttributeError, IndexError, TypeError) as error:
        raise SimMIMError(
            f"apply_history: the model has no layer {name!r} whose {axis!r} axis can shrink; "
            "give an instance of the architecture that was compressed"
        ) from error
    if found != size:
        raise SimMIMError(
            f"apply_history: axis {axis!r} of {name!r} has {found} channels, "
            f"the history expects {size}; give an instance of the original architecture"
        )
    if not kept or sorted(set(kept)) != list(kept) or kept[0] < 0 or kept[-1] >= size:
        raise SimMIMError(
            f"apply_history: kept channels of {name!r} must be increasing and within "
            f"0..{size - 1}, got {kept}"
        )
    if isinstance(place, nn.Module):
        shrink(place, axis, kept)
    else:
        values = place.detach().index_select(int(axis), torch.tensor(kept, device=place.device))
        set_submodule(model, name, nn.Parameter(values, requires_grad=place.requires_grad))


def _tie(model: nn.Module, names: Sequence[str]) -> None:
    """Makes parameters one again that were one, and were shrunk alike."""
    first = model.get_parameter(names[0])
    for name in names[1:]:
        other = model.get_parameter(name)
        alike = other.shape == first.shape and (other.is_meta or torch.equal(other, first))
        if other is not first and not alike:
            raise SimMIMError(
                f"apply_history: {names[0]!r} and {name!r} were one parameter and would differ; "
                "untie them, or put their layers in ignored_layers"
            )
        set_submodule(model, name, first)


def _checked(group: UnitGroup, kept: Mapping[str, Sequence[int] | Tensor]) -> frozenset[int]:
    chosen = [int(unit) for unit in kept[group.name]]
    if not chosen:
        raise SimMIMError(f"remove_units: {group.name!r} must keep at least one unit, got none")
    if len(set(chosen)) < len(chosen) or min(chosen) < 0 or max(chosen) >= group.units:
        raise SimMIMError(
            f"remove_units: kept units of {group.name!r} must be distinct and within "
            f"0..{group.units - 1}, got {chosen}"
        )
    return frozenset(chosen)
