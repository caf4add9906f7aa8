"""Removes units physically, remembers how, and proves that nothing else changed.

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
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .conversion import convert_
from .data import Batch, ForwardFn, device_of, evaluating, forward, to_device
from .errors import SimMIMError
from .layers import Axis, axis_size, is_channel_norm, place_of, shrink
from .sharing import shared_parameters
from .standin import running
from .storage import set_submodule
from .units import UnitGroup

History = list[dict[str, Any]]


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
                raise SimMIMError(
                    f"remove_units: {name!r} would lose all of its {size} channels; keep a unit "
                    "that it has a part in"
                )
            history.append({"module": name, "axis": axis, "size": size, "kept": left})
    history += _attributes(groups, chosen)
    return apply_history(model, history), history


def apply_history(model: nn.Module, history: Iterable[Mapping[str, Any]]) -> nn.Module:
    """A copy of the model, shrunk as the history says.

    Raises:
        SimMIMError: the history does not fit the model.
    """
    pruned = deepcopy(model)
    for parameter in pruned.parameters():
        parameter.grad = None
    shared = shared_parameters(pruned)
    for step in history:
        if "convert" in step:
            convert_(pruned, step, model)
        elif "attribute" in step:
            _set_attribute(pruned, step)
        else:
            _shrink(pruned, step)
    for names in shared:
        _tie(pruned, names)
    return pruned


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


def check_mask_equivalence(
    model: nn.Module,
    pruned: nn.Module,
    history: Iterable[Mapping[str, Any]],
    batch: Batch,
    *,
    forward_fn: ForwardFn | None = None,
) -> None:
    """Raises SimMIMError unless the pruned model is the model with the removed slices zeroed.

    Shapes alone miss a wrong index; equal outputs do not. Both are compared on copies in eval
    mode. A norm over channels (LayerNorm, RMSNorm, GroupNorm of one group), whose statistics
    rightly change with the channels, divides by the root mean square over the original's channels
    in both. To be called before any weight is refitted.
    """
    batch = to_device(batch, device_of(model))
    masked, history = deepcopy(model), list(history)
    with torch.no_grad():
        for step in history:
            if step.get("convert") not in (None, "Conv1D"):  # the way back changes nothing here
                convert_(masked, step)
        original = deepcopy(masked)
        whole = {n: axis_size(m, "out") for n, m in masked.named_modules() if _over_channels(m)}
        for step in history:
            if "kept" in step:
                gone = sorted(set(range(step["size"])) - set(step["kept"]))
                _zero(place_of(masked, step["module"], step["axis"]), step["axis"], gone)
    expected = _fixed_outputs(masked, whole, batch, forward_fn)
    copy = deepcopy(pruned)
    with running(copy) as names:
        try:
            outputs = _fixed_outputs(copy, whole, batch, forward_fn)
        except SimMIMError as error:
            where = repr(names[-1]) if names else "its forward"
            raise SimMIMError(
                f"the pruned model does not run: {where} fails ({error}), as happens where code "
                "relies on a width (a buffer of it, a reshape into heads); put the layers that "
                "have it in ignored_layers"
            ) from error
    allowed, difference = 0.0, torch.inf
    if outputs.shape == expected.shape:
        effect = (_fixed_outputs(original, whole, batch, forward_fn) - expected).abs().max()
        rounding = _ROUNDING[expected.dtype] * expected.abs().max()
        allowed = float(_SHARE * effect + rounding)
        difference = float((outputs - expected).abs().max())
    if not difference <= allowed:
        raise SimMIMError(
            "the pruned model differs from the original with the removed units zeroed (by "
            f"{difference:.2g}, {allowed:.2g} may be rounding): units were removed at the wrong "
            "place; please report the architecture, and put the layers concerned in ignored_layers"
        )


# What outputs may differ by: a share of what zeroing changes, and what rounding can make of it.
_SHARE = 1e-4
_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


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


def _zero(place: nn.Module | nn.Parameter, axis: Axis, channels: list[int]) -> None:
    if isinstance(place, nn.Parameter):
        place.movedim(int(axis), 0)[channels] = 0
        return
    for name, parameter in place.named_parameters(recurse=False):
        if axis == "out" and not isinstance(place, nn.Embedding):
            parameter[channels] = 0
        elif name == "weight":
            parameter[:, channels] = 0
    statistics = getattr(place, "running_mean", None)
    if axis == "out" and statistics is not None:
        statistics[channels] = 0  # so that a norm without affine part gives zero as well


def _over_channels(module: nn.Module) -> bool:
    """Whether it normalizes over all channels: also GroupNorm of a single group."""
    single = isinstance(module, nn.GroupNorm) and module.num_groups == 1
    return single or is_channel_norm(module)


def _fixed_norm(norm: Any, channels: int, x: Tensor) -> Tensor:
    """What a norm over channels gives if it does not change with their number.

    Removed channels are zero in the masked model and absent in the pruned one: the sum of squares
    is the same in both.
    """
    if isinstance(norm, nn.GroupNorm):  # over all positions as well
        squares = x.square().reshape(*x.shape[:2], -1).mean(2).sum(1)
        squares = squares.view(-1, *[1] * (x.dim() - 1))
        x = x * (squares / channels + 1e-6).rsqrt()
        shape = (-1, *[1] * (x.dim() - 2))
        return x if norm.weight is None else x * norm.weight.view(shape) + norm.bias.view(shape)
    dim = -1 if x.shape[-1] == axis_size(norm, "out") else 1
    x = x * (x.square().sum(dim, keepdim=True) / channels + 1e-6).rsqrt()
    x = x.movedim(dim, -1)
    if getattr(norm, "weight", None) is not None:
        x = x * norm.weight
    if getattr(norm, "bias", None) is not None:
        x = x + norm.bias
    return x.movedim(-1, dim)


def _fixed_outputs(
    model: nn.Module, whole: Mapping[str, int], batch: Batch, forward_fn: ForwardFn | None
) -> Tensor:
    """Outputs of a copy that may be changed; ``whole`` has the channels of the original's norms."""
    for name, channels in whole.items():
        norm: Any = model.get_submodule(name)
        norm.forward = partial(_fixed_norm, norm, channels)
    with torch.no_grad(), evaluating(model):
        return forward(model, batch, forward_fn).clone()
