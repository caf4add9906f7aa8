"""What must be removed together, by torch-pruning's dependency graph."""

from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from .arguments import copied
from .attention import Attention, find_attention
from .data import Batch, to_device
from .dependencies import UntraceableError, dependencies, followed, run_example
from .embeddings import follow_embeddings, made_by_embeddings, proved
from .errors import SimMIMError
from .forward import ForwardFn
from .grouping import group_of, in_own_layers
from .layers import (
    axis_size,
    is_convolution,
    is_grouped,
    is_supported,
    kept_together,
    parameter_axis,
    place_of,
    unsupported_reason,
)
from .modes import device_of, evaluating
from .names import names_of
from .opaque import insert_opaque
from .sharing import shared_parameters
from .sources import Sources
from .standin import READS, insert_stand_ins, observe
from .timelimit import run_limited
from .units import UnitGroup


def trace_units(
    model: nn.Module,
    example_inputs: Batch,
    *,
    ignored_layers: Iterable[str | nn.Module] = (),
    forward_fn: ForwardFn | None = None,
    time_limit: float = 60.0,
) -> tuple[UnitGroup, ...]:
    """Finds the groups of units that can be removed from the model, from input to output.

    The model is traced on a copy, in eval mode and with gradients enabled, so frozen parameters
    hide nothing and nothing of the caller's is touched. What makes up the model's outputs, or
    is added to its inputs, is no group, nor are units of embeddings that cannot be followed.
    Outputs are all tensors that the model returns, in tuples and dicts as well, or what
    ``forward_fn`` returns.

    Args:
        model: the network.
        example_inputs: a batch; one sample will do.
        ignored_layers: layers, by qualified name, by pattern ("*.attention.*", as of a shell) or
            as modules of the model, that keep their outputs; a name or module that holds others
            stands for all of them. A layer that cannot be pruned at all (see the errors) keeps its
            inputs as well.
        forward_fn: ``forward_fn(model, batch)`` returning outputs, where the model's own do not
            serve.
        time_limit: seconds that the tracing may take.

    Returns:
        Groups in the order of the model's layers; empty where nothing can be removed.

    Raises:
        SimMIMError: a layer that tracing does not reach, or that is of a kind whose units cannot
            be removed, or attention of no known kind, that is not ignored; parameters shared by
            layers of which not all change alike; a model that cannot be copied, run or traced in
            time.
    """
    ignored = names_of(model, ignored_layers)
    batch = to_device(example_inputs, device_of(model))

    def trace(*, opaque: bool) -> list[UnitGroup]:
        copy = copied("trace_units", model)
        for parameter in copy.parameters():
            parameter.grad = None
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        work = partial(_trace, copy, batch, ignored, forward_fn, opaque=opaque)
        return run_limited(work, time_limit)

    groups = None
    try:
        with suppress(UntraceableError):
            groups = trace(opaque=False)
        if groups is None:  # perhaps within attention that is ignored
            groups = trace(opaque=True)
    except TimeoutError as error:
        raise SimMIMError(
            f"trace_units: tracing did not end within {time_limit:g} s, as happens with "
            "attention of no known kind; put its projections in ignored_layers"
        ) from error
    order = [name for name, _ in model.named_modules()]
    groups = sorted(groups, key=lambda group: order.index(group.name))
    doubtful = [group for group in groups if made_by_embeddings(model, group)]
    sure = proved(model, doubtful, batch, forward_fn)
    return tuple(_sized(g, model) for g in groups if g not in doubtful or g in sure)


def _sized(group: UnitGroup, model: nn.Module) -> UnitGroup:
    """The group with the sizes that its members' axes have in the model."""
    members = (
        replace(m, size=axis_size(place_of(model, m.module, m.axis), m.axis)) for m in group.members
    )
    return replace(group, members=tuple(members))


def _trace(
    model: nn.Module,
    batch: Batch,
    ignored: frozenset[str],
    forward_fn: ForwardFn | None,
    *,
    opaque: bool,
) -> list[UnitGroup]:
    tied = _tied(model)
    sizes = {name: kept_together(module) for name, module in model.named_modules()}
    together = {name: size for name, size in sizes.items() if size > 1}
    _simplify(model)
    run = partial(run_example, model, Sources()(batch), forward_fn)
    heads, strangers = _replace_attention(model, ignored, run)
    if opaque:
        with torch.enable_grad(), evaluating(model):
            insert_opaque(model, [name for name in strangers if name in ignored], run)
    graph, sources = dependencies(model, batch, forward_fn)
    modules = dict(model.named_modules())
    # A layer that does not run itself but shares its weights with one that does, runs.
    runs = {
        layer
        for tie in tied
        if any(layer in graph.module2node for layer in tie.values())
        for layer in tie.values()
    }
    _check_layers(model, ignored, {*graph.module2node, *runs})
    kept = [modules[name] for name in ignored if name in modules]
    kept += [
        modules[f"{name}.{READS}"]
        for name, attention in heads.items()
        if any(f"{name}.{layer}" in ignored for layer in attention.kind.projections)
    ]
    groups: list[UnitGroup] = []
    untying: dict[str, list[str]] = {}  # names of a tie's parameters -> of groups that would untie
    # Into the products of strangers torch-pruning may follow embeddings without end.
    of_embeddings = () if strangers else follow_embeddings(graph, kept)
    for found in chain(followed(graph, kept, ignored), of_embeddings):
        try:
            channels = group_of(found, graph, sources, ignored)
            if channels is None:
                continue
            group = in_own_layers(channels, heads, together)
        except SimMIMError:
            if isinstance(found[0].dep.target.module, nn.Embedding):
                continue  # see ``embeddings``
            raise
        tie = _untied_by(group, tied)
        if tie is None:
            if group.units > 1:
                groups.append(group)
        elif not isinstance(found[0].dep.target.module, nn.Embedding):
            untying.setdefault(" and ".join(map(repr, tie)), []).append(group.name)
    for shared, names in untying.items():
        those = " and ".join(map(repr, sorted(names)))
        raise SimMIMError(
            f"trace_units: {shared} are one parameter, and removing units of {those} would untie "
            f"them; untie them, or put {those} in ignored_layers"
        )
    return groups


def _replace_attention(
    model: nn.Module, ignored: frozenset[str], run: Callable[[], object]
) -> tuple[dict[str, Attention], list[str]]:
    """Puts stand-ins where attention of known kinds runs; the others, refused unless ignored."""
    known = find_attention(model)
    with torch.enable_grad(), evaluating(model):
        seen = observe(model, known, run)
    for name in seen.strangers:
        if not any(n == name or n.startswith(f"{name}.") or not name for n in ignored):
            kind = type(model.get_submodule(name)).__name__
            shown, left = (repr(name), "it") if name else ("the model", "the layers that make them")
            raise SimMIMError(
                f"trace_units: {shown}, a {kind}, multiplies activations with each other, as "
                f"attention does, and is of no known kind; put {left} in ignored_layers to leave "
                "it as it is"
            )
    insert_stand_ins(model, known, seen)
    return {name: known[name] for name in seen.results}, seen.strangers


def _simplify(model: nn.Module) -> None:
    """Takes out, in place, what makes no difference to groups and leads torch-pruning astray.

    That is activations in place, which hide a layer over tokens; PReLU of one slope, whose view of
    it is taken for one of features; padding other than by zeros, of which it does not always
    return; and groups of a convolution, which become channels (and units again in the end), since
    its inputs would not be tied to its outputs.
    """
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if getattr(module, "inplace", None) is True:
            module.inplace = False
        if is_convolution(module):
            module.padding_mode = "zeros"
        if is_grouped(module) and unsupported_reason(module) is None:
            module.groups = module.in_channels
            module.weight = nn.Parameter(module.weight[:, :1].detach().clone())
        if isinstance(module, nn.PReLU) and module.num_parameters == 1 and name:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.LeakyReLU())


def _layers_with_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            yield name, module


def _check_layers(model: nn.Module, ignored: frozenset[str], reached: Set[Any]) -> None:
    reasons: dict[str, str] = {}
    for name, module in _layers_with_parameters(model):
        if name in ignored or name.rpartition(".")[0] in ignored:
            continue
        reason = unsupported_reason(module)
        found = module in reached or any(p in reached for p in module.parameters(recurse=False))
        if reason is None and is_supported(module) and not found:
            reason = "is not reached from the outputs: unused, detached or under no_grad"
        if reason:
            reasons[name] = reason
    if not reasons:
        return
    first, *others = reasons
    text = f"trace_units: the layer {first or type(model).__name__!r} {reasons[first]}; "
    if not others:
        raise SimMIMError(f"{text}put it in ignored_layers to leave it as it is")
    raise SimMIMError(
        f"{text}to leave it as it is, and {len(others)} that cannot lose units either, put in "
        f"ignored_layers: {', '.join(map(repr, reasons))}"
    )


# A parameter with several names, each with the layer that it belongs to.
_Tie = dict[str, nn.Module]


def _tied(model: nn.Module) -> list[_Tie]:
    return [
        {name: model.get_submodule(name.rpartition(".")[0]) for name in shared}
        for shared in shared_parameters(model)
    ]


def _untied_by(group: UnitGroup, tied: list[_Tie]) -> _Tie | None:
    """A parameter of several layers to which the group's units are not the same slice of it."""
    for tie in tied:
        slices = []
        for name, layer in tie.items():
            module, _, own = name.rpartition(".")
            cut = {
                (parameter_axis(own, member.axis, layer), member.indices, member.units)
                for member in group.members
                if member.module == module
            }
            slices.append({part for part in cut if part[0] is not None})
        if any(part != slices[0] for part in slices):
            return tie
    return None
