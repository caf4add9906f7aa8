"""What tracing fails in and is left as it is, made traceable: by what goes in and comes out."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .storage import set_submodule


def insert_opaque(model: nn.Module, names: Iterable[str], run: Callable[[], object]) -> None:
    """Replaces, in place, the modules of these names that ``run()``, a forward pass, calls."""
    calls: dict[str, tuple[Any, Any]] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _, args, kwargs, out, n=name: calls.update({n: ((args, kwargs), out)}),
            with_kwargs=True,
        )
        for name in names
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    for name, (given, result) in calls.items():
        set_submodule(model, name, Opaque(given, result))


class Opaque(nn.Module):
    """Reads all that goes in and makes all that comes out, at widths that cannot change."""

    def __init__(self, given: Any, result: Any) -> None:
        super().__init__()
        self._result = result
        self._reads = self._named("reads", (_Whole(x.shape[-1], 1, x) for x in _floating(given)))
        self._writes = self._named("writes", (_Whole(1, x.shape[-1], x) for x in _floating(result)))

    def _named(self, name: str, layers: Iterable[nn.Module]) -> list[nn.Module]:
        """The layers as this module's own: those of an ignored module are ignored."""
        layers = list(layers)
        for i, layer in enumerate(layers):
            self.add_module(f"{name}{i}", layer)
        return layers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What it returned, each tensor a function of all that it read."""
        given = zip(self._reads, _floating((args, kwargs)), strict=True)
        read = torch.stack([layer(x).mean() for layer, x in given]).sum()
        writes = iter(self._writes)

        def made(x: Any) -> Any:
            return next(writes)(read.to(x).expand(*x.shape[:-1], 1)) if _is_floating(x) else x

        return pytree.tree_map(made, self._result)


class _Whole(nn.Linear):
    """A layer that has something besides weight and bias, for which its units are not removed."""

    def __init__(self, inputs: int, outputs: int, like: Tensor) -> None:
        super().__init__(inputs, outputs, device=like.device, dtype=like.dtype)
        self.besides = nn.Parameter(like.new_zeros(()))


def _floating(values: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(values) if _is_floating(x)]


def _is_floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 0
