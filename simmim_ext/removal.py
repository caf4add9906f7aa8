"""Removes units physically, remembers how, and proves that nothing else changed.

A history is plain JSON: one step per shrunken axis,

    {"module": "features.0", "axis": "out", "size": 64, "kept": [0, 3, 17]}

where size is the number of channels before. A fresh instance of the architecture takes the same
shape again from it, without any tracing.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from .data import Batch, ForwardFn, device_of, evaluating, forward, to_device
from .errors import SimMIMError
from .graph import UnitGroup
from .layers import Axis, axis_size, is_supported, shrink

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
        size = axis_size(model.get_submodule(name), axis)
        if max(lost, default=0) >= size:
            raise SimMIMError(
                f"remove_units: axis {axis!r} of {name!r} has {size} channels, the groups were "
                "traced on a model with more; trace or score this model"
            )
        if lost:
            left = [index for index in range(size) if index not in lost]
            history.append({"module": name, "axis": axis, "size": size, "kept": left})
    return apply_history(model, history), history


def apply_history(model: nn.Module, history: Iterable[Mapping[str, Any]]) -> nn.Module:
    """A copy of the model, shrunk as the history says.

    Raises:
        SimMIMError: the history does not fit the model.
    """
    pruned = deepcopy(model)
    for parameter in pruned.parameters():
        parameter.grad = None
    modules = dict(pruned.named_modules())
    for step in history:
        name, axis, size, kept = (step[key] for key in ("module", "axis", "size", "kept"))
        module = modules.get(name)
        if module is None or axis not in ("out", "in") or not is_supported(module):
            raise SimMIMError(
                f"apply_history: the model has no layer {name!r} whose {axis!r} axis can shrink; "
                "give an instance of the architecture that was compressed"
            )
        if axis_size(module, axis) != size:
            raise SimMIMError(
                f"apply_history: axis {axis!r} of {name!r} has {axis_size(module, axis)} channels, "
                f"the history expects {size}; give an instance of the original architecture"
            )
        if not kept or sorted(set(kept)) != list(kept) or kept[0] < 0 or kept[-1] >= size:
            raise SimMIMError(
                f"apply_history: kept channels of {name!r} must be increasing and within "
                f"0..{size - 1}, got {kept}"
            )
        shrink(module, axis, kept)
    return pruned


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
    mode, with normalization over channels (LayerNorm) reduced to its affine part, since its
    statistics rightly change with the channels. To be called before any weight is refitted.
    """
    batch = to_device(batch, device_of(model))
    masked = deepcopy(model)
    modules = dict(masked.named_modules())
    with torch.no_grad():
        for step in history:
            gone = sorted(set(range(step["size"])) - set(step["kept"]))
            _zero(modules[step["module"]], step["axis"], gone)
    expected = _affine_outputs(masked, batch, forward_fn)
    copy = deepcopy(pruned)
    running = _track_running(copy)
    try:
        outputs = _affine_outputs(copy, batch, forward_fn)
    except SimMIMError as error:
        raise SimMIMError(
            f"the pruned model does not run: {running[-1] if running else 'its forward'!r} fails "
            f"({error}), as attention does that splits its width into heads; put the layer, or "
            "those inside it whose sizes it relies on, in ignored_layers"
        ) from error
    allowed, difference = 0.0, torch.inf
    if outputs.shape == expected.shape:
        effect = (_affine_outputs(deepcopy(model), batch, forward_fn) - expected).abs().max()
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


def _zero(module: nn.Module, axis: Axis, channels: list[int]) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        if axis == "out" and not isinstance(module, nn.Embedding):
            parameter[channels] = 0
        elif name == "weight":
            parameter[:, channels] = 0
    statistics = getattr(module, "running_mean", None)
    if axis == "out" and statistics is not None:
        statistics[channels] = 0  # so that a norm without affine part gives zero as well


def _track_running(model: nn.Module) -> list[str]:
    """Names of the modules that are in their forward, the innermost last, from now on."""
    running: list[str] = []
    for name, module in model.named_modules():
        if name:
            module.register_forward_pre_hook(lambda *_, n=name: running.append(n))
            module.register_forward_hook(lambda *_: running.pop() and None)
    return running


class _Affine(nn.Module):
    """The affine part of a LayerNorm."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is not None:
            x = x * self.weight
        return x if self.bias is None else x + self.bias


def _affine_outputs(model: nn.Module, batch: Batch, forward_fn: ForwardFn | None) -> Tensor:
    """Outputs of a copy that may be changed."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.LayerNorm):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _Affine(module))
    with torch.no_grad(), evaluating(model):
        return forward(model, batch, forward_fn).clone()
