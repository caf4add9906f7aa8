"""Units that embeddings alone make, as in recommenders: no outputs of a Linear or convolution.

They take part in products, sums over channels and reshapes that torch-pruning does not follow, in
models whose other layers it does. So each such group is proved by a trial, and what fails keeps its
width instead of spoiling the model.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from .data import Batch
from .equivalence import check_mask_equivalence
from .errors import SimMIMError
from .forward import ForwardFn
from .layers import Weighted
from .removal import remove_units
from .units import UnitGroup


def follow_embeddings(graph: Any, kept: Iterable[nn.Module]) -> Iterator[Any]:
    """torch-pruning's groups of channels that embeddings alone make, where its graph has them.

    Args:
        graph: of the traced model.
        kept: layers that keep their outputs.
    """
    kept, seen = set(kept), set[Any]()
    for module in graph.module2node:
        if not isinstance(module, nn.Embedding) or module in kept | seen:
            continue
        prune = graph.get_pruner_of_module(module).prune_out_channels
        try:
            found = graph.get_pruning_group(module, prune, list(range(module.embedding_dim)))
        except LookupError:  # as of a GRU
            continue
        outputs = (i for i in found if graph.is_out_channel_pruning_fn(i.dep.handler))
        makers = {item.dep.target.module for item in outputs}
        seen |= makers
        if not makers & kept and not any(isinstance(maker, Weighted) for maker in makers):
            yield found


def made_by_embeddings(model: nn.Module, group: UnitGroup) -> bool:
    """Whether no Linear or convolution makes any of the group's units."""
    makers = (member.module for member in group.members if member.axis == "out")
    return not any(isinstance(model.get_submodule(name), Weighted) for name in makers)


def proved(
    model: nn.Module, groups: Sequence[UnitGroup], batch: Batch, forward_fn: ForwardFn | None
) -> list[UnitGroup]:
    """Those of the groups whose units some layer reads, and every other of which can be removed."""
    groups = [group for group in groups if group.readers]
    if not groups:
        return []
    try:
        kept = {group.name: range(0, group.units, 2) for group in groups}
        pruned, history = remove_units(model, groups, kept)
        check_mask_equivalence(model, pruned, history, batch, forward_fn=forward_fn)
    except SimMIMError:
        half = len(groups) // 2
        parts = (groups[:half], groups[half:]) if half else ()
        return [group for part in parts for group in proved(model, part, batch, forward_fn)]
    return groups
