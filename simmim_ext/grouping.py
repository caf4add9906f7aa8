"""From torch-pruning's groups of channels to units of the model's own layers."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .attention import Attention
from .errors import SimMIMError
from .layers import Axis, axis_size, is_channel_norm, is_coupled, unsupported_reason
from .sources import Sources
from .standin import READS
from .units import Member, UnitGroup


def group_of(found: Any, graph: Any, sources: Sources, ignored: frozenset[str]) -> UnitGroup | None:
    """The traced group of channels, or None where they must stay."""
    from torch_pruning.ops import OPTYPE

    root = graph._module2name[found[0].dep.target.module]
    members: dict[tuple[str, Axis], Member] = {}
    for item in found:
        node = item.dep.target
        if node.type == OPTYPE.OUTPUT or node in sources:
            return None
        if node.type == OPTYPE.PARAMETER:
            name, axis = _parameter_place(graph, item, len(found[0].idxs))
            if name.rpartition(".")[0] in ignored or name in ignored:
                return None
        else:
            name = graph._module2name.get(node.module)
            if name is not None and unsupported_reason(node.module):
                return None  # ignored, or _check_layers would have raised
            if name is None or not is_coupled(node.module):
                continue  # a view, an activation or another operation without parameters per unit
            inputs = graph.is_in_channel_pruning_fn(item.dep.handler)
            outputs = graph.is_out_channel_pruning_fn(item.dep.handler)
            axis = "in" if inputs and not outputs else "out"
            if max(item.idxs) >= axis_size(node.module, axis):
                raise _lost(root, name)
        if item.root_idxs is None or any(unit is None for unit in item.root_idxs):
            raise _lost(root, name)
        pairs = sorted(zip(item.idxs, item.root_idxs, strict=True))
        indices, units = zip(*pairs, strict=True)
        # A norm that torch-pruning knows by its parameters comes once for each of them.
        members.setdefault((name, axis), Member(name, axis, indices, units))
    return _rooted_first(list(members.values()), list(graph._module2name.values()))


def _lost(root: str, name: str) -> SimMIMError:
    return SimMIMError(
        f"trace_units: the units of {root!r} could not be followed into {name!r}, as happens where "
        "they gate each other (GLU) or a layer's input is concatenated with its output; put "
        f"{root!r} in ignored_layers"
    )


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


def in_own_layers(
    traced: UnitGroup, heads: Mapping[str, Attention], together: Mapping[str, int]
) -> UnitGroup:
    """The group in terms of the model's own layers, its channels joined to what must stay whole.

    That is all channels of a head, and those that a layer keeps together: layer -> how many.
    """
    sizes = {}
    for member in traced.members:
        attention = heads.get(member.module.removesuffix(f".{READS}"))
        if attention is not None and member.module.endswith(READS) and member.axis == "out":
            sizes[member.module] = attention.channels
        elif member.module in together:
            sizes[member.module] = together[member.module]
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
