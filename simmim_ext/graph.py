"""Units of a network: what must be removed together, by torch-pruning's dependency graph.

A unit is a neuron, a channel, an attention head (or key/value group) or a normalization group. A
group is a set of units that share one fate: unit j of the group's root layer, the same channel of
the norm behind it and of a residual branch beside it, and the input columns of the layers that
read it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from copy import deepcopy
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attention, find_attention
from .data import Batch, ForwardFn, device_of, evaluating, forward, to_device
from .errors import SimMIMError
from .layers import (
    Axis,
    is_channel_norm,
    is_convolution,
    is_coupled,
    is_supported,
    parameter_axis,
    unsupported_reason,
)
from .sharing import shared_parameters
from .standin import READS, insert_stand_ins, observe
from .timelimit import run_limited


@dataclass(frozen=True)
class Member:
    """One axis of one layer that shrinks with a group's units.

    Attributes:
        module: qualified name of the layer, or of a parameter that no layer holds.
        axis: "out" for its output channels (a norm's channels too), "in" for its input channels,
            of a parameter the dimension: "0", "1", ...
        indices: the channels of that axis that belong to the group, in increasing order.
        units: the unit that each of them belongs to; after a flatten, a channel's unit repeats
            once for each pixel, and a head has all of its channels.
    """

    module: str
    axis: Axis
    indices: tuple[int, ...]
    units: tuple[int, ...]


@dataclass(frozen=True)
class UnitGroup:
    """Units that are removed together.

    Attributes:
        name: qualified name of the root layer, whose outputs the units are; of the attention
            whose heads they are.
        units: how many there are.
        members: every axis of every layer that changes with them, the root's outputs first.
        channels: channels that make up a unit where it is made: 1, or the size of a head.
        attributes: (module, attribute, what each unit adds to it) of the integers in which modules
            keep the number of their units, as attention does.
    """

    name: str
    units: int
    members: tuple[Member, ...]
    channels: int = 1
    attributes: tuple[tuple[str, str, int], ...] = ()

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The layers that read the units."""
        return tuple(member for member in self.members if member.axis == "in")


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
    is added to its inputs, is no group.

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
    try:
        with torch.inference_mode(False):
            copy = deepcopy(model)
    except Exception as error:
        raise SimMIMError(
            f"trace_units: the model cannot be copied ({error}); "
            "remove non-leaf tensors from its attributes"
        ) from error
    for parameter in copy.parameters():
        parameter.grad = None
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    batch = to_device(example_inputs, device_of(model))
    try:
        groups = run_limited(lambda: _trace(copy, batch, ignored, forward_fn), time_limit)
    except TimeoutError as error:
        raise SimMIMError(
            f"trace_units: tracing did not end within {time_limit:g} s, as happens with "
            "attention of no known kind; put its projections in ignored_layers, or raise "
            "time_limit"
        ) from error
    order = [name for name, _ in model.named_modules()]
    return tuple(sorted(groups, key=lambda group: order.index(group.name)))


def _trace(
    model: nn.Module, batch: Batch, ignored: frozenset[str], forward_fn: ForwardFn | None
) -> list[UnitGroup]:
    import torch_pruning as tp

    sources: list[Any] = []

    def traced_forward(network: nn.Module, example: Batch) -> Tensor:
        # Inputs and outputs get a node of their own (a multiplication by one), by which units
        # that are tied to either are known.
        return forward(network, _with_grad(example, sources), forward_fn) * 1.0

    tied = _tied(model)
    _simplify(model)
    heads = _replace_attention(model, ignored, lambda: traced_forward(model, batch))
    sources.clear()
    graph = tp.DependencyGraph()
    try:
        with torch.enable_grad():
            graph.build_dependency(
                model, example_inputs=batch, forward_fn=traced_forward, verbose=False
            )
    except SimMIMError:
        raise
    except Exception as error:
        raise SimMIMError(
            f"trace_units: the model could not be traced ({type(error).__name__}: {error}); "
            "check example_inputs and forward_fn"
        ) from error
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
    groups = []
    for found in graph.get_all_groups(ignored_layers=kept):
        channels = _group_of(found, graph, sources, ignored)
        if channels is None:
            continue
        group = _grouped(channels, heads, modules)
        _check_untied(group, tied)
        if group.units > 1:
            groups.append(group)
    return groups


def _replace_attention(
    model: nn.Module, ignored: frozenset[str], run: Callable[[], object]
) -> dict[str, Attention]:
    """Puts stand-ins where attention of known kinds runs, and refuses any other."""
    known = find_attention(model)
    with torch.enable_grad(), evaluating(model):
        seen = observe(model, known, run)
    for name in seen.strangers:
        if not any(n == name or n.startswith(f"{name}.") or not name for n in ignored):
            kind = type(model.get_submodule(name)).__name__
            raise SimMIMError(
                f"trace_units: {name or 'the model'!r}, a {kind}, multiplies activations with each "
                "other, as attention does, and is of no known kind; put it in ignored_layers to "
                "leave it as it is"
            )
    insert_stand_ins(model, known, seen.results)
    return {name: known[name] for name in seen.results}


def _group_of(
    found: Any, graph: Any, sources: list[Any], ignored: frozenset[str]
) -> UnitGroup | None:
    """The traced group of channels, or None where they must stay."""
    from torch_pruning.ops import OPTYPE

    root = graph._module2name[found[0].dep.target.module]
    members: dict[tuple[str, Axis], Member] = {}
    for item in found:
        node = item.dep.target
        if node.type == OPTYPE.OUTPUT or node.grad_fn in sources:
            return None
        if node.type == OPTYPE.PARAMETER:
            name, axis = _parameter_place(graph, item, len(found[0].idxs))
            if name.rpartition(".")[0] in ignored or name in ignored:
                return None
        else:
            name = graph._module2name.get(node.module)
            if name is None or not is_coupled(node.module):
                continue  # a view, an activation or another operation without parameters per unit
            if unsupported_reason(node.module):  # ignored, or _check_layers would have raised
                return None
            inputs = graph.is_in_channel_pruning_fn(item.dep.handler)
            outputs = graph.is_out_channel_pruning_fn(item.dep.handler)
            axis = "in" if inputs and not outputs else "out"
        if item.root_idxs is None or any(unit is None for unit in item.root_idxs):
            raise SimMIMError(
                f"trace_units: the units of {root!r} could not be followed into {name!r}; put "
                f"{root!r} in ignored_layers"
            )
        pairs = sorted(zip(item.idxs, item.root_idxs, strict=True))
        indices, units = zip(*pairs, strict=True)
        # A norm that torch-pruning knows by its parameters comes once for each of them.
        members.setdefault((name, axis), Member(name, axis, indices, units))
    return _rooted_first(list(members.values()), list(graph._module2name.values()))


def _parameter_place(graph: Any, item: Any, units: int) -> tuple[str, Axis]:
    """The layer and axis, or parameter and dimension, that a traced parameter is."""
    node = item.dep.target
    name = graph._param_to_name[node.module]
    shape = list(node.module.shape)
    one_to_one = units == len(set(item.root_idxs or ())) == len(set(item.idxs)) == len(item.idxs)
    if not one_to_one or max(item.idxs) >= shape[node.pruning_dim]:
        raise SimMIMError(
            f"trace_units: the parameter {name!r} of shape {shape} belongs to no standard layer, "
            f"and the {units} units that it is combined with could not be followed into it; "
            "put the layers that make them in ignored_layers"
        )
    owner = name.rpartition(".")[0]
    if is_channel_norm(graph.model.get_submodule(owner)):
        return owner, "out"
    return name, str(node.pruning_dim)


def _rooted_first(members: list[Member], order: list[str]) -> UnitGroup:
    """The group of these members, named after the first layer that makes its units.

    torch-pruning starts from the last one, at the outputs.
    """
    places = {name: place for place, name in enumerate(order)}
    units = range(max(members[0].units) + 1)
    members = sorted(members, key=lambda m: (places.get(m.module, len(places)), m.axis))
    makers = (m for m in members if m.axis == "out" and m.indices == m.units == tuple(units))
    root = next(makers, None)
    rest = tuple(member for member in members if member is not root)
    assert root is not None  # torch-pruning's own root is one
    return UnitGroup(root.module, len(units), (root, *rest))


def _grouped(
    traced: UnitGroup, heads: Mapping[str, Attention], modules: Mapping[str, nn.Module]
) -> UnitGroup:
    """The group in terms of the model's own layers, its channels joined to what must stay whole.

    That is all channels of a head, and those that a GroupNorm normalizes together.
    """
    sizes = {}
    for member in traced.members:
        attention = heads.get(member.module.removesuffix(f".{READS}"))
        norm = modules.get(member.module)
        if attention is not None and member.module.endswith(READS) and member.axis == "out":
            sizes[member.module] = attention.channels
        elif isinstance(norm, nn.GroupNorm) and norm.num_groups > 1:
            sizes[member.module] = norm.num_channels // norm.num_groups
        else:
            continue
        if member.indices != member.units:
            raise SimMIMError(
                f"trace_units: {member.module!r} takes its channels in groups, and those of "
                f"{traced.name!r} are some of them only; put {traced.name!r} in ignored_layers"
            )
    size = math.lcm(*sizes.values())
    members: list[Member] = []
    attributes: list[tuple[str, str, int]] = []
    for member in traced.members:
        name = member.module.removesuffix(f".{READS}")
        coarse = replace(member, units=tuple(unit // size for unit in member.units))
        attention = heads.get(name)
        if attention is None or name == member.module:
            members.append(coarse)
        elif member.axis == "in":
            members += [
                replace(coarse, module=f"{name}.{layer}") for layer in attention.kind.projections
            ]
        else:
            factor = size // attention.channels
            for layer, pairs in attention.rows():
                if pairs:
                    indices, units = zip(*pairs, strict=True)
                    units = tuple(unit // factor for unit in units)
                    members.append(Member(f"{name}.{layer}", "out", indices, units))
            attributes += [(name, key, each * factor) for key, each in attention.attributes]
    name = traced.name.removesuffix(f".{READS}")
    return UnitGroup(name, traced.units // size, tuple(members), size, tuple(attributes))


def _simplify(model: nn.Module) -> None:
    """Takes out, in place, what makes no difference to groups and leads torch-pruning astray.

    That is PReLU of one slope, whose view of it is taken for one of features, and padding other
    than by zeros, of which it does not always return.
    """
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if is_convolution(module):
            module.padding_mode = "zeros"
        if isinstance(module, nn.PReLU) and module.num_parameters == 1 and name:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.LeakyReLU())


def _with_grad(batch: Batch, sources: list[Any]) -> Batch:
    """The batch with floating tensors made non-leaf; their graph nodes are added to sources."""
    if isinstance(batch, Tensor):
        if not batch.is_floating_point():
            return batch
        tensor = batch.detach().clone().requires_grad_(True) * 1.0
        sources.append(tensor.grad_fn)
        return tensor
    if isinstance(batch, Mapping):
        return {key: _with_grad(value, sources) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(_with_grad(value, sources) for value in batch)
    return batch


def names_of(model: nn.Module, layers: Iterable[str | nn.Module]) -> frozenset[str]:
    """Qualified names of the layers and of everything inside them; strings may be patterns."""
    modules = dict(model.named_modules(remove_duplicate=False))
    names = {id(module): name for name, module in model.named_modules()}
    found: set[str] = set()
    for layer in layers:
        name = layer if isinstance(layer, str) else names.get(id(layer))
        matches = [name] if name in modules else []
        if isinstance(layer, str) and not matches:
            matches = [other for other in modules if other and fnmatchcase(other, layer)]
        if not matches:
            shown = repr(layer) if isinstance(layer, str) else type(layer).__name__
            raise SimMIMError(
                f"trace_units: ignored_layers holds {shown}, which is no layer of the model; "
                "give a qualified name of model.named_modules(), or a pattern of such"
            )
        for match in matches:
            inside = (child for child, _ in modules[match].named_modules(prefix=match))
            found.update(child.lstrip(".") for child in inside)
    return frozenset(found)


def _layers_with_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            yield name, module


def _check_layers(model: nn.Module, ignored: frozenset[str], reached: Set[Any]) -> None:
    for name, module in _layers_with_parameters(model):
        if name in ignored or name.rpartition(".")[0] in ignored:
            continue
        reason = unsupported_reason(module)
        found = module in reached or any(p in reached for p in module.parameters(recurse=False))
        if reason is None and is_supported(module) and not found:
            reason = "is not reached from the outputs: unused, detached or under no_grad"
        if reason:
            raise SimMIMError(
                f"trace_units: the layer {name or type(model).__name__!r} {reason}; put it in "
                "ignored_layers to leave it as it is"
            )


# A parameter with several names, each with the layer that it belongs to.
_Tie = dict[str, nn.Module]


def _tied(model: nn.Module) -> list[_Tie]:
    return [
        {name: model.get_submodule(name.rpartition(".")[0]) for name in shared}
        for shared in shared_parameters(model)
    ]


def _check_untied(group: UnitGroup, tied: list[_Tie]) -> None:
    """Raises where the group's units are not the same slice of a parameter to all its layers."""
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
            shared = " and ".join(repr(name) for name in tie)
            raise SimMIMError(
                f"trace_units: {shared} are one parameter, and removing units of {group.name!r} "
                f"would untie them; untie them, or put {group.name!r} in ignored_layers"
            )
