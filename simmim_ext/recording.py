"""What layers read and write during a forward pass, and the places of it that are looked at."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .layers import is_convolution
from .modes import evaluating

# Positions that are looked at in each sample, of a convolution's output or of a text's tokens:
# neighbours say the same.
POSITIONS = 16


@contextmanager
def observing(model: nn.Module, hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """The model in eval mode without gradients for the block, after which the hooks are gone."""
    try:
        with torch.no_grad(), evaluating(model):
            yield
    finally:
        for hook in hooks:
            hook.remove()


class _EnoughError(BaseException):
    """Ends a forward pass whose rest is of no interest."""


class InputRecorder:
    """Inputs of named layers during a forward pass, by call."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.calls: dict[str, list[Any]] = {name: [] for name in names}
        self._model = model

    @contextmanager
    def recording(self, most: int | None = None) -> Iterator[None]:
        """Records during the block; what was recorded before is dropped.

        The block ends with the call that makes it ``most`` recorded ones, wherever it then is.
        """
        for calls in self.calls.values():
            calls.clear()
        hooks = [
            self._watch(self._model.get_submodule(name), calls, most)
            for name, calls in self.calls.items()
        ]
        try:
            with suppress(_EnoughError):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _watch(self, layer: nn.Module, calls: list[Any], most: int | None) -> RemovableHandle:
        def record(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._add(calls, args[0].detach(), most)

        return layer.register_forward_pre_hook(record)

    def _add(self, calls: list[Any], call: Any, most: int | None) -> None:
        calls.append(call)
        if sum(map(len, self.calls.values())) == most:
            raise _EnoughError


class Recorder(InputRecorder):
    """Inputs and outputs of named layers during a forward pass, as (input, output) by call."""

    calls: dict[str, list[tuple[Tensor, Tensor]]]

    def _watch(self, layer: nn.Module, calls: list[Any], most: int | None) -> RemovableHandle:
        def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            self._add(calls, (args[0].detach(), output), most)
            # What follows gets a copy: an activation in place must not change the record, nor
            # the point at which gradients are taken.
            return output.clone()

        return layer.register_forward_hook(record)


def draw_positions(
    layer: nn.Module, z: Tensor, generator: torch.Generator, mask: Tensor | None = None
) -> Tensor | None:
    """Which places of a layer's output z to look at, as ``input_columns`` takes them.

    Distinct flat output positions of a convolution, the same for all samples; of a Linear's
    [samples, tokens, outputs] rows that the mask [samples, tokens] keeps, or None for all.
    """
    if is_convolution(layer):
        places = torch.arange(z[0, 0].numel(), device=z.device)
        count = POSITIONS
    else:
        places = torch.arange(z[..., 0].numel(), device=z.device)
        count = POSITIONS * len(z)
        if mask is not None and mask.numel() == len(places):
            places = places[mask.flatten().bool()]
        elif len(places) <= count:
            return None
    drawn = torch.randperm(len(places), generator=generator, device=z.device)[:count]
    return places[drawn.sort().values]
