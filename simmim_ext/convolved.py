"""What convolutions with a forward function of their own read, which may pad as it likes."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import SimMIMError
from .layers import patches

_FUNCTIONS = (torch.conv1d, torch.conv2d)
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class Convolved(TorchFunctionMode):
    """Notes what torch's convolution is called with during a layer's forward function.

    Args:
        layer: a Conv1d or Conv2d; what it calls no such function with is as its attributes say.
    """

    def __init__(self, layer: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__()
        self._arguments: dict[str, Any] = {
            name: getattr(layer, name) for name in ("weight", "stride", "padding", "dilation")
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _FUNCTIONS:
            defaults = {"stride": 1, "padding": 0, "dilation": 1}
            given = dict(zip(_ARGUMENTS, args, strict=False))
            self._arguments = {**defaults, **given, **(kwargs or {})}
        return func(*args, **(kwargs or {}))

    def columns(self, name: str, x: Tensor, z: Tensor, at: Tensor) -> Tensor:
        """``input_columns`` of the layer.

        Args:
            name: its name, for the error.
            x: its input [samples, inputs, *positions].
            z: its output.
            at: flat positions of z.

        Raises:
            SimMIMError: its output has positions that the convolution has not.
        """
        given = self._arguments
        x = given.get("input", x).detach()
        kernel = given["weight"].shape[2:]
        stride, dilation = (_each(given[key], kernel) for key in ("stride", "dilation"))
        x = F.pad(x, _sides(given["padding"], kernel, dilation))
        extents = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
        grid = [
            (size - extent) // step + 1
            for size, extent, step in zip(x.shape[2:], extents, stride, strict=True)
        ]
        if any(found < wanted for found, wanted in zip(grid, z.shape[2:], strict=True)):
            raise SimMIMError(
                f"score: {name!r} gives outputs at {list(z.shape[2:])} positions, and its "
                f"convolution has {grid}; put the layers that make what it reads in ignored_layers"
            )
        if len(grid) == 2:  # it may cut off some of them
            at = at // z.shape[3] * grid[1] + at % z.shape[3]
        return patches(x, at, kernel, stride, dilation)


def _each(value: int | Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
    """One for each dimension."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * len(kernel) if len(values) == 1 else values


def _sides(
    padding: str | int | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """Padding as ``F.pad`` takes it: before and behind, the last dimension first."""
    if padding == "same":
        totals = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(p, p) for p in _each(0 if isinstance(padding, str) else padding, kernel)]
    return [side for pair in reversed(sides) for side in pair]
