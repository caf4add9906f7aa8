"""Units of a network: what must be removed together, by torch-pruning's dependency graph.

A unit is a neuron, a channel or an attention head. A group is a set of units that share one
fate: unit j of the group's root layer, the same channel of the norm behind it and of a residual
branch beside it, and the input columns of the layers that read it.
"""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .data import Batch, ForwardFn, device_of, forward, to_device
from .errors import SimMIMError
from .layers import Axis, is_coupled, is_supported, unsupported_reason
from .timelimit import run_limited


@dataclass(frozen=True)
class Member:
    """One axis of one layer that shrinks with a group's units.

    Attributes:
        module: qualified name of the layer.
        axis: "out" for its output channels (a norm's channels too), "in" for its input channels.
        indices: the channels of that axis that belong to the group, in increasing order.
        units: the unit that each of them belongs to; after a flatten, a channel's unit repeats
            once for each pixel.
    """

    module: str
    axis: Axis
    indices: tuple[int, ...]
    units: tuple[int, ...]


@dataclass(frozen=True)
class UnitGroup:
    """Units that are removed together.

    Attributes:
        name: qualified name of the root layer, whose outputs the units are.
        units: how many there are.
        members: every axis of every layer that changes with them, the root's outputs first.
    """

    name: str
    units: int
    members: tuple[Member, ...]

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
        ignored_layers: layers, by qualified name or as modules of the model, that keep their
            outputs; a name or module that holds others stands for all of them. A layer that
            cannot be pruned at all (see the errors) keeps its inputs as well.
        forward_fn: ``forward_fn(model, batch)`` returning outputs, where the model's own do not
            serve.
        time_limit: seconds that the tracing may take.

    Returns:
        Groups in the order of the model's layers; empty where nothing can be removed.

    Raises:
        SimMIMError: a layer that tracing does not reach, or that is of a kind whose units cannot
            be removed, and is not ignored; parameters shared between layers; a model that cannot
            be copied, run or traced in time.
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
            "grouped-query attention; put the attention's projections in ignored_layers, or "
            "raise time_limit"
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

    _drop_shared_slopes(model)
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
    _check_layers(model, ignored, reached=graph.module2node)
    tied = tied_parameters(model)
    groups = []
    for found in graph.get_all_groups(ignored_layers=[modules[name] for name in ignored]):
        group = _group_of(found, graph, sources, ignored)
        if group is not None:
            _check_untied(group, tied)
            groups.append(group)
    return groups


def _group_of(
    found: Any, graph: Any, sources: list[Any], ignored: frozenset[str]
) -> UnitGroup | None:
    """The traced group, or None where its units must stay."""
    from torch_pruning.ops import OPTYPE

    root = graph._module2name[found[0].dep.target.module]
    members = []
    for item in found:
        node = item.dep.target
        if node.type == OPTYPE.OUTPUT or node.grad_fn in sources:
            return None
        if node.type == OPTYPE.PARAMETER:
            name = graph._param_to_name[node.module]
            if name.rpartition(".")[0] in ignored:
                return None
            raise SimMIMError(
                f"trace_units: the parameter {name!r} belongs to no standard layer and changes "
                f"with the units of {root!r}; put {root!r} in ignored_layers"
            )
        name = graph._module2name.get(node.module)
        if name is None or not is_coupled(node.module):
            continue  # a view, an activation or another operation without parameters per unit
        if unsupported_reason(node.module):  # ignored, or _check_layers would have raised
            return None
        if item.root_idxs is None or any(unit is None for unit in item.root_idxs):
            raise SimMIMError(
                f"trace_units: the units of {root!r} could not be followed into {name!r}; put "
                f"{root!r} in ignored_layers"
            )
        inputs = graph.is_in_channel_pruning_fn(item.dep.handler)
        outputs = graph.is_out_channel_pruning_fn(item.dep.handler)
        axis: Axis = "in" if inputs and not outputs else "out"
        pairs = sorted(zip(item.idxs, item.root_idxs, strict=True))
        indices, units = zip(*pairs, strict=True)
        members.append(Member(name, axis, indices, units))
    return _rooted_first(members, list(graph._module2name.values()))


def _rooted_first(members: list[Member], order: list[str]) -> UnitGroup:
    """The group of these members, named after the first layer that makes its units.

    torch-pruning starts from the last one, at the outputs.
    """
    units = range(max(members[0].units) + 1)
    members = sorted(members, key=lambda m: (order.index(m.module), m.axis))
    makers = (m for m in members if m.axis == "out" and m.indices == m.units == tuple(units))
    root = next(makers, None)
    rest = tuple(member for member in members if member is not root)
    assert root is not None  # torch-pruning's own root is one
    return UnitGroup(root.module, len(units), (root, *rest))


def _drop_shared_slopes(model: nn.Module) -> None:
    """Replaces PReLU of one slope, whose view of it torch-pruning takes for one of features."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
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
    """Qualified names of the layers and of everything inside them."""
    modules = dict(model.named_modules())
    names = {id(module): name for name, module in modules.items()}
    found: set[str] = set()
    for layer in layers:
        name = layer if isinstance(layer, str) else names.get(id(layer))
        if name not in modules:
            shown = repr(layer) if isinstance(layer, str) else type(layer).__name__
            raise SimMIMError(
                f"trace_units: ignored_layers holds {shown}, which is no layer of the model; "
                "give a qualified name of model.named_modules()"
            )
        inside = (child for child, _ in modules[name].named_modules(prefix=name))
        found.update(child.lstrip(".") for child in inside)
    return frozenset(found)


def _layers_with_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            yield name, module


def _check_layers(model: nn.Module, ignored: frozenset[str], reached: Mapping[Any, Any]) -> None:
    for name, module in _layers_with_parameters(model):
        if name in ignored or name.rpartition(".")[0] in ignored:
            continue
        reason = unsupported_reason(module)
        if reason is None and is_supported(module) and module not in reached:
            reason = "is not reached from the outputs: unused, detached or under no_grad"
        if reason:
            raise SimMIMError(
                f"trace_units: the layer {name or type(model).__name__!r} {reason}; put it in "
                "ignored_layers to leave it as it is"
            )


def tied_parameters(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Module name -> the names of a parameter that it shares with another module."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    modules = dict(model.named_modules(remove_duplicate=False))
    tied: dict[str, tuple[str, ...]] = {}
    for shared in names.values():
        owners = {id(modules[name.rpartition(".")[0]]) for name in shared}
        if len(owners) > 1:  # one module under two names shares nothing
            tied.update({name.rpartition(".")[0]: tuple(shared) for name in shared})
    return tied


def _check_untied(group: UnitGroup, tied: Mapping[str, tuple[str, ...]]) -> None:
    for member in group.members:
        if member.module in tied:
            shared = " and ".join(repr(name) for name in tied[member.module])
            raise SimMIMError(
                f"trace_units: {shared} are one parameter, and removing units of {group.name!r} "
                f"would untie them; untie them, or put {group.name!r} in ignored_layers"
            )
