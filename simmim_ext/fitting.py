"""Scores as a model can be pruned by them: checked against its groups of units."""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .config import CompressConfig
from .data import Batch, take
from .errors import SimMIMError
from .forward import ForwardFn
from .graph import trace_units
from .layers import axis_size, place_of
from .ranking import by_score
from .scoring import Scores
from .units import UnitGroup


def fitting(
    model: nn.Module,
    scores: Scores | Mapping[str, Tensor],
    example: Batch | None,
    ignored: frozenset[str],
    config: CompressConfig,
    forward_fn: ForwardFn | None,
) -> Scores:
    """The scores as Scores, without ignored layers, checked against the groups.

    Raises:
        ValueError: scores that are not from ``score``, without what they need.
        SimMIMError: scores of another model, or none for one of its groups.
    """
    if not isinstance(scores, Scores):
        scores = _from_mapping(model, scores, example, ignored, config, forward_fn)
    elif example is not None:
        scores = dataclasses.replace(scores, example=example)
    groups = tuple(
        group
        for group in scores.groups
        if not any(m.module in ignored for m in group.members if m.axis == "out")
    )
    for group in groups:
        values = scores.get(group.name)
        if values is None or values.shape != (group.units,) or not torch.isfinite(values).all():
            given = "none" if values is None else f"a tensor of shape {list(values.shape)}"
            if values is not None and values.shape == (group.units,):
                given = f"{float(values[~torch.isfinite(values)][0])} among them"
            raise _no_scores(group.name, group.units, given)
        _check_sizes(model, group)
    if not groups:
        raise SimMIMError("prune: the model has no units that can be removed")
    return dataclasses.replace(scores, groups=groups)


def _no_scores(name: str, units: int, given: str) -> SimMIMError:
    return SimMIMError(
        f"prune: scores must hold {units} finite values for {name!r}, got {given}; score this "
        "model, or put the layer in ignored_layers"
    )


def _check_sizes(model: nn.Module, group: UnitGroup) -> None:
    """Raises unless the group's layers have the channels with which they were scored."""
    for member in group.members:
        try:
            found = str(axis_size(place_of(model, member.module, member.axis), member.axis))
        except (AttributeError, IndexError, TypeError):
            found = "none"
        if found != str(member.size):
            raise SimMIMError(
                f"prune: scores are of another model, whose {member.module!r} has {member.size} "
                f"channels on axis {member.axis!r}, and this one's has {found}; score this model"
            )


def _from_mapping(
    model: nn.Module,
    scores: Mapping[str, Tensor],
    example: Batch | None,
    ignored: frozenset[str],
    config: CompressConfig,
    forward_fn: ForwardFn | None,
) -> Scores:
    if example is None:
        raise ValueError("prune: scores that are not from score() need example_inputs")
    if config.allocation == "information":
        raise ValueError(
            "prune: allocation='information' needs scores from score(); set "
            "config=CompressConfig(allocation='score') or 'uniform'"
        )
    groups = trace_units(
        model, take(example, slice(0, 1)), ignored_layers=ignored, forward_fn=forward_fn
    )
    units = {group.name: group.units for group in groups}
    # A group that an ignored layer keeps whole can have the name of another layer.
    known = {name for name, _ in model.named_modules()} if ignored else set(units)
    unknown = sorted(set(scores) - known)
    if unknown:
        raise SimMIMError(
            f"prune: scores hold {unknown[0]!r}, which is no layer of units; those are "
            f"{', '.join(units) or 'none'}"
        )
    values = {}
    for name, value in scores.items():
        if name not in units:
            continue
        try:
            values[name] = (
                value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
            )
        except (TypeError, ValueError, RuntimeError) as error:
            raise _no_scores(name, units[name], repr(value)) from error
    order = {name: by_score(value).order for name, value in values.items()}
    return Scores(values, order, {}, "custom", groups, example)
