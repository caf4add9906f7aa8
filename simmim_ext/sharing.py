"""Parameters that several layers of a model hold: tied weights."""

from copy import deepcopy

from torch import nn

from .storage import set_submodule


def shared_parameters(model: nn.Module) -> list[tuple[str, ...]]:
    """The names of each parameter that several modules hold."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    modules = dict(model.named_modules(remove_duplicate=False))
    return [
        tuple(shared)
        for shared in names.values()  # one module under two names shares nothing
        if len({id(modules[name.rpartition(".")[0]]) for name in shared}) > 1
    ]


def tied_parameters(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Module name -> the names of a parameter that it shares with another module."""
    return {
        name.rpartition(".")[0]: shared for shared in shared_parameters(model) for name in shared
    }


def shapes_of(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device, in which what is shared still is."""
    shapes = deepcopy(model).to("meta")
    for first, *others in shared_parameters(model):
        for name in others:
            set_submodule(shapes, name, shapes.get_parameter(first))
    return shapes
