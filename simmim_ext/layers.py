"""What the workflow knows about each kind of layer: its axes, and how they shrink."""

from collections.abc import Sequence
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrize import is_parametrized

# "out", "in", or of a parameter that no layer holds the dimension: "0", "1", ...
Axis = str

Weighted = nn.Linear | nn.Conv1d | nn.Conv2d

_PER_BATCH = (_BatchNorm, _InstanceNorm)
_SUPPORTED = (nn.Linear, nn.Conv1d, nn.Conv2d, *_PER_BATCH, nn.GroupNorm, nn.PReLU, nn.Embedding)

# The attributes in which a layer keeps the sizes of its axes.
_SIZES = {
    nn.Linear: ("out_features", "in_features"),
    _ConvNd: ("out_channels", "in_channels"),
    _BatchNorm: ("num_features", "num_features"),
    _InstanceNorm: ("num_features", "num_features"),
    nn.GroupNorm: ("num_channels", "num_channels"),
    nn.PReLU: ("num_parameters", "num_parameters"),
    nn.Embedding: ("embedding_dim", "embedding_dim"),
}


def weighted(model: nn.Module, name: str) -> Weighted:
    """The Linear, Conv1d or Conv2d of that qualified name."""
    layer = model.get_submodule(name)
    if not isinstance(layer, Weighted):
        raise TypeError(f"{name!r} is a {type(layer).__name__}, not a Linear, Conv1d or Conv2d")
    return layer


def is_convolution(module: nn.Module) -> TypeGuard[nn.Conv1d | nn.Conv2d]:
    """Whether it is a convolution that the workflow knows."""
    return isinstance(module, nn.Conv1d | nn.Conv2d)


def is_grouped(module: nn.Module) -> TypeGuard[nn.Conv1d | nn.Conv2d]:
    """Whether it is a convolution whose outputs each read some of the inputs only."""
    return is_convolution(module) and module.groups > 1


def is_affine(module: nn.Module) -> bool:
    """Whether its forward function is the weight times ``input_columns`` plus the bias."""
    return not has_own_forward(module) and not is_grouped(module)


def has_own_forward(module: nn.Module) -> bool:
    """Whether its forward function is not that of torch's Linear or convolution."""
    function = getattr(module.forward, "__func__", None)
    return function not in (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward)


def is_channel_norm(module: nn.Module) -> bool:
    """Whether it normalizes each sample over all channels: LayerNorm or RMSNorm, whoever's."""
    own = dict(module.named_parameters(recurse=False))
    named = type(module).__name__.endswith(("LayerNorm", "LayerNorm2d", "RMSNorm"))
    vectors = (
        bool(own) and set(own) <= {"weight", "bias"} and all(p.dim() == 1 for p in own.values())
    )
    return isinstance(module, nn.LayerNorm | nn.RMSNorm) or (named and vectors)


def is_supported(module: nn.Module) -> bool:
    """Whether it is a layer with parameters whose axes can shrink."""
    return _is_known(module) and unsupported_reason(module) is None


def is_coupled(module: nn.Module) -> bool:
    """Whether the layer has something of its own for each channel."""
    shared_slope = isinstance(module, nn.PReLU) and module.num_parameters == 1
    return _is_known(module) and not shared_slope


def _is_known(module: nn.Module) -> bool:
    return isinstance(module, _SUPPORTED) or is_channel_norm(module)


def unsupported_reason(module: nn.Module) -> str | None:
    """Why units of a torch layer cannot be removed, or None; reads after the layer's name."""
    own = dict(module.named_parameters(recurse=False))
    if not _is_known(module):
        torch_layer = any(
            base.__module__.startswith("torch.nn.") and base is not nn.Module
            for base in type(module).__mro__
        )
        container = isinstance(module, nn.ParameterList | nn.ParameterDict)
        kind = type(module).__name__
        known = torch_layer and own and not container
        return f"is a {kind}, whose units cannot be removed" if known else None
    if is_parametrized(module):
        return "is parametrized (as by weight_norm or spectral_norm); remove the parametrization"
    if others := sorted(set(own) - {"weight", "bias"}):
        return (
            f"has parameters besides weight and bias ({', '.join(others)}), as by an adapter or an "
            "old weight_norm; merge or remove them"
        )
    if is_grouped(module) and module.in_channels != module.out_channels:
        return (
            f"is a grouped convolution (groups={module.groups}) of {module.in_channels} to "
            f"{module.out_channels} channels, of which only those that keep their number are known"
        )
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) > 1:
        return f"normalizes over several axes ({tuple(module.normalized_shape)})"
    return None


def kept_together(module: nn.Module) -> int:
    """How many neighbouring channels of a layer can only be removed together."""
    if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
        return module.num_channels // module.num_groups
    return module.out_channels // module.groups if is_grouped(module) else 1


def place_of(model: nn.Module, name: str, axis: Axis) -> nn.Module | nn.Parameter:
    """The layer of that name, or for a dimension the parameter.

    Raises:
        AttributeError: the model has none.
        TypeError: it is a layer without such an axis.
    """
    if axis.isdigit():
        return model.get_parameter(name)
    module = model.get_submodule(name)
    if axis not in ("out", "in") or not is_supported(module):
        raise TypeError(f"{name!r} is no layer with an axis {axis!r}")
    return module


def axis_size(target: nn.Module | Tensor, axis: Axis) -> int:
    """Channels along an axis of a supported layer, or of a parameter."""
    if isinstance(target, Tensor):
        return target.shape[int(axis)]
    if isinstance(target, nn.LayerNorm | nn.RMSNorm):
        return int(target.normalized_shape[-1])
    for kind, attributes in _SIZES.items():
        if isinstance(target, kind):
            return int(getattr(target, attributes[axis == "in"]))
    if is_channel_norm(target):
        return len(next(target.parameters(recurse=False)))
    raise TypeError(f"axis_size: {type(target).__name__} has no axis that can shrink")


def shrink(module: nn.Module, axis: Axis, kept: Sequence[int]) -> None:
    """Keeps only the given channels of an axis, in place, in increasing order.

    torch-pruning's function for the kind of layer does it, but for norms over channels, which
    it leaves in the order of a Python set or does not know, and for layers with groups of
    channels, which lose whole groups here.
    ``requires_grad`` and channels last stay as they were; gradients do not.
    """
    from torch_pruning.ops import module2type
    from torch_pruning.pruner.function import PrunerBox

    own = dict(module.named_parameters(recurse=False))
    flags = {name: p.requires_grad for name, p in own.items()}
    ordered = {name: p for name, p in own.items() if not p.is_contiguous()}
    last = {n for n, p in ordered.items() if p.is_contiguous(memory_format=torch.channels_last)}
    size = axis_size(module, axis)
    if is_channel_norm(module) or is_grouped(module) or isinstance(module, nn.GroupNorm):
        if isinstance(module, nn.GroupNorm):
            whole = kept_together(module) if module.num_groups > 1 else len(kept)
            module.num_groups, module.num_channels = len(kept) // whole, len(kept)
        elif is_grouped(module):
            module.groups = len(kept) // kept_together(module)
            module.in_channels = module.out_channels = len(kept)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.normalized_shape = (len(kept),)
        for name in flags:
            values = getattr(module, name).detach()[list(kept)]
            setattr(module, name, nn.Parameter(values))
    else:
        removed = sorted(set(range(size)) - set(kept))
        pruner = PrunerBox[module2type(module)]
        remove = pruner.prune_out_channels if axis == "out" else pruner.prune_in_channels
        remove(module, removed)
        if isinstance(module, _InstanceNorm):  # whose statistics torch-pruning leaves as they are
            for name in ("running_mean", "running_var"):
                if (values := getattr(module, name)) is not None:
                    setattr(module, name, values[list(kept)])
    for name, parameter in module.named_parameters(recurse=False):
        parameter.grad = None
        parameter.requires_grad_(flags[name])
        if name in last:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def parameter_axis(parameter_name: str, axis: Axis, layer: nn.Module) -> int | None:
    """The dimension of a layer's parameter that is its axis, or None."""
    if parameter_name == "bias":
        return 0 if axis == "out" else None
    if isinstance(layer, nn.Embedding):
        return 1
    return 0 if axis == "out" else 1


def input_columns(layer: nn.Module, x: Tensor, at: Tensor | None) -> Tensor:
    """What a layer multiplies its weight with: [rows, inputs * kernel size].

    Args:
        layer: a Linear, Conv1d or Conv2d.
        x: its input, [..., inputs] or [samples, inputs, *positions].
        at: for a convolution the flat output positions to take, of each sample; for a Linear the
            flat rows to take, or None for all.
    """
    if not is_convolution(layer):
        x = x.flatten(0, -2)
        return x if at is None else x[at]
    assert at is not None
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    if any(layer._reversed_padding_repeated_twice):
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    elif {*layer.kernel_size, *layer.stride} == {1}:
        return x.flatten(2)[:, :, at].transpose(1, 2).flatten(0, 1)
    return patches(x, at, layer.kernel_size, layer.stride, layer.dilation)


def patches(
    x: Tensor, at: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """What a convolution reads for its flat output positions: [rows, inputs * kernel size].

    ``x`` is its input [samples, inputs, *positions], padded; the others are one by dimension.
    """
    for dim, size in enumerate(kernel):
        extent = (size - 1) * dilation[dim] + 1
        x = x.unfold(2 + dim, extent, stride[dim])[..., :: dilation[dim]]
    places = (at,) if len(kernel) == 1 else (at // x.shape[3], at % x.shape[3])
    x = x[(slice(None), slice(None), *places)]
    return x.transpose(1, 2).flatten(0, 1).flatten(1)


def output_rows(layer: nn.Module, z: Tensor, at: Tensor | None) -> Tensor:
    """The layer's outputs [rows, outputs] that go with ``input_columns``."""
    if not is_convolution(layer):
        z = z.flatten(0, -2)
        return z if at is None else z[at]
    return z.flatten(2)[:, :, at].transpose(1, 2).flatten(0, 1)
