"""The order of channels in memory in which a network runs fastest."""

from typing import Any

import torch
from torch import nn

from .data import Batch
from .forward import ForwardFn, forward
from .modes import evaluating

# How far the answers may be from those in the other order, as a share of the largest.
_ROUNDING = 1e-3


def fastest_format(model: nn.Module, batch: Batch, forward_fn: ForwardFn | None) -> nn.Module:
    """The model, changed in place to have channels last if it has convolutions and still works.

    A CPU's convolutions take about three quarters of their time so, and their gradients two thirds.
    Some networks do not bear it, as those that call ``view`` behind a convolution.

    Args:
        model: a copy that is nobody else's, on the CPU.
        batch: a small batch to try it on.
        forward_fn: as in ``score``.
    """
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return model

    def answers() -> torch.Tensor:
        with torch.no_grad(), evaluating(model):
            return forward(model, batch, forward_fn)

    def order(memory_format: torch.memory_format) -> None:
        options: dict[str, Any] = {"memory_format": memory_format}  # not in older torch's stubs
        model.to(**options)

    before = answers()
    order(torch.channels_last)
    try:
        change = (answers() - before).abs().max()
    except Exception:  # whatever it is that it does not bear
        change = torch.tensor(torch.inf, device="cpu")
    if not change <= _ROUNDING * before.abs().max():
        order(torch.contiguous_format)
    return model
