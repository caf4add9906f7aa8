"""Layers by name, by pattern of names, or as modules."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from .errors import SimMIMError

T = TypeVar("T")


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


def matching(per_layer: Mapping[str, T], layers: Mapping[str, Iterable[str]]) -> dict[str, T]:
    """Layer -> its own value, for layers that have one.

    Args:
        per_layer: name or pattern -> value. A name that holds others stands for all of them; a
            layer's own name goes before all else, then the first that matches.
        layers: layer -> the names that it is known by.

    Raises:
        SimMIMError: a name or pattern matches no layer.
    """
    found: dict[str, T] = {}
    matched: set[str] = set()
    for layer, names in layers.items():
        names = {layer, *names}
        hits = [p for p in per_layer if any(_matches(name, p) for name in names)]
        matched.update(hits)
        if hits:
            found[layer] = per_layer[next((p for p in hits if p in names), hits[0])]
    for pattern in per_layer:
        if pattern not in matched:
            raise SimMIMError(
                f"constraints: per_layer holds {pattern!r}, which is no layer that can be made "
                f"smaller; those are {', '.join(layers)}"
            )
    return found


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)
