"""What the workflow knows about each kind of layer: its axes, and how they shrink."""

from collections.abc import Sequence
from typing import Literal, TypeGuard

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrize import is_parametrized

Axis = Literal["out", "in"]

NORMS = (_BatchNorm, _InstanceNorm, nn.LayerNorm)
_SUPPORTED = (nn.Linear, nn.Conv2d, *NORMS, nn.PReLU, nn.Embedding)

# The attributes in which a layer keeps the sizes of its axes.
_SIZES = {
    nn.Linear: ("out_features", "in_features"),
    nn.Conv2d: ("out_channels", "in_channels"),
    _BatchNorm: ("num_features", "num_features"),
    _InstanceNorm: ("num_features", "num_features"),
    nn.PReLU: ("num_parameters", "num_parameters"),
    nn.Embedding: ("embedding_dim", "embedding_dim"),
}


def weighted(model: nn.Module, name: str) -> nn.Linear | nn.Conv2d:
    """The Linear or Conv2d of that qualified name."""
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise TypeError(f"{name!r} is a {type(layer).__name__}, not a Linear or Conv2d")
    return layer


def is_grouped(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether it is a convolution whose outputs each read some of the inputs only."""
    return isinstance(module, nn.Conv2d) and module.groups > 1


def is_supported(module: nn.Module) -> bool:
    """Whether it is a layer with parameters whose axes can shrink."""
    return isinstance(module, _SUPPORTED) and unsupported_reason(module) is None


def is_coupled(module: nn.Module) -> bool:
    """Whether the layer has something of its own for each channel."""
    shared_slope = isinstance(module, nn.PReLU) and module.num_parameters == 1
    return isinstance(module, _SUPPORTED) and not shared_slope


def unsupported_reason(module: nn.Module) -> str | None:
    """Why units of a torch layer cannot be removed, or None; reads after the layer's name."""
    own = dict(module.named_parameters(recurse=False))
    if not isinstance(module, _SUPPORTED):
        torch_layer = any(
            base.__module__.startswith("torch.nn.") and base is not nn.Module
            for base in type(module).__mro__
        )
        kind = type(module).__name__
        return f"is a {kind}, whose units cannot be removed" if torch_layer and own else None
    if is_parametrized(module) or not set(own) <= {"weight", "bias"}:
        return "is parametrized (as by weight_norm or spectral_norm); remove the parametrization"
    if is_grouped(module) and not module.groups == module.in_channels == module.out_channels:
        return f"is a grouped convolution (groups={module.groups})"
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1:
        return f"normalizes over several axes ({tuple(module.normalized_shape)})"
    return None


def axis_size(module: nn.Module, axis: Axis) -> int:
    """Channels along an axis of a supported layer."""
    if isinstance(module, nn.LayerNorm):
        return int(module.normalized_shape[-1])
    for kind, attributes in _SIZES.items():
        if isinstance(module, kind):
            return int(getattr(module, attributes[axis == "in"]))
    raise TypeError(f"axis_size: {type(module).__name__} has no axis that can shrink")


def shrink(module: nn.Module, axis: Axis, kept: Sequence[int]) -> None:
    """Keeps only the given channels of an axis, in place, in increasing order.

    torch-pruning's function for the kind of layer does it, but for LayerNorm, whose channels it
    leaves in the order of a Python set. ``requires_grad`` stays as it was; gradients do not.
    """
    from torch_pruning.ops import module2type
    from torch_pruning.pruner.function import PrunerBox

    flags = {name: p.requires_grad for name, p in module.named_parameters(recurse=False)}
    size = axis_size(module, axis)
    if isinstance(module, nn.LayerNorm):
        module.normalized_shape = (len(kept),)
        for name in flags:
            values = getattr(module, name).detach()[list(kept)]
            setattr(module, name, nn.Parameter(values))
    else:
        removed = sorted(set(range(size)) - set(kept))
        pruner = PrunerBox[module2type(module)]
        remove = pruner.prune_out_channels if axis == "out" else pruner.prune_in_channels
        remove(module, removed)
    for name, parameter in module.named_parameters(recurse=False):
        parameter.grad = None
        parameter.requires_grad_(flags[name])


def input_columns(layer: nn.Module, x: Tensor, at: Tensor | None) -> Tensor:
    """What a Linear or Conv2d multiplies its weight with: [rows, inputs * kernel size].

    Args:
        layer: the layer.
        x: its input, [..., inputs] or [samples, inputs, height, width].
        at: for a convolution, the flat output positions to take; a row is one of them.
    """
    if not isinstance(layer, nn.Conv2d):
        return x.flatten(0, -2)
    assert at is not None
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    for dim in (0, 1):
        dilation, size = layer.dilation[dim], layer.kernel_size[dim]
        x = x.unfold(2 + dim, (size - 1) * dilation + 1, layer.stride[dim])[..., ::dilation]
    rows, columns = at // x.shape[3], at % x.shape[3]
    return x[:, :, rows, columns].transpose(1, 2).flatten(0, 1).flatten(1)


def output_rows(layer: nn.Module, z: Tensor, at: Tensor | None) -> Tensor:
    """The layer's outputs [rows, outputs] that go with ``input_columns``."""
    if not isinstance(layer, nn.Conv2d):
        return z.flatten(0, -2)
    return z.flatten(2)[:, :, at].transpose(1, 2).flatten(0, 1)
