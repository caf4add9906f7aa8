"""Where samples are in what layers see: along the first axis, or behind the tokens."""

import torch
from torch import Tensor, nn

from .data import Batch, take
from .forward import ForwardFn, forward
from .layers import is_convolution
from .recording import observing

# Two sizes of a batch; some models do without the axis where there is a single sample.
_SIZES = (2, 4)


def sample_axes(model: nn.Module, batch: Batch, forward_fn: ForwardFn | None) -> dict[str, int]:
    """Linear layer -> the axis of its input that samples lie along, where it is not the first.

    That is the axis that grows with the batch: there may be as many tokens as samples, and then
    sizes do not tell. A layer of which several axes grow, or none, has samples first.
    """
    found = [
        _shapes(model, take(batch, torch.zeros(size, dtype=torch.long, device="cpu")), forward_fn)
        for size in _SIZES
    ]
    axes: dict[str, int] = {}
    for name in found[0].keys() & found[1].keys():
        pairs = zip(found[0][name][:-1], found[1][name][:-1], strict=False)
        grown = [axis for axis, (fewer, more) in enumerate(pairs) if fewer != more]
        if len(grown) == 1 and grown[0] > 0:
            axes[name] = grown[0]
    return axes


def samples_first(x: Tensor, axis: int) -> Tensor:
    """The tensor with samples along its first axis."""
    return x.movedim(axis, 0)


def samples_of_rows(layer: nn.Module, z: Tensor, at: Tensor | None, samples: int) -> Tensor:
    """[rows] the batch's sample that each row of ``output_rows`` belongs to."""
    if is_convolution(layer):
        assert at is not None
        return torch.arange(len(z), device=z.device).repeat_interleave(len(at))
    places = z[..., 0].numel()
    rows = torch.arange(places, device=z.device) if at is None else at
    # What is no whole number of rows for each sample is told apart by row.
    return rows // max(1, places // samples)


def _shapes(model: nn.Module, batch: Batch, forward_fn: ForwardFn | None) -> dict[str, torch.Size]:
    """Linear layer -> shape of its input."""
    shapes: dict[str, torch.Size] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, n=name: shapes.update({n: args[0].shape} if args else {})
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with observing(model, hooks):
        forward(model, batch, forward_fn)
    return shapes
