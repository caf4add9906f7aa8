"""A linear layer with a mask on its weights, for training a pruned network."""

from __future__ import annotations

import math
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ..ops.masked_linear import masked_linear

if TYPE_CHECKING:
    from .sparse import SparseLinear

_Layer = TypeVar("_Layer", bound=nn.Module)


class MaskedLinear(nn.Module):
    """Applies ``y = x (W*M)^T + b``; only the weights that the mask keeps count and are trained.

    It is ``nn.Linear`` with a buffer more: the same parameter names and initialisation, so a
    ``Linear``'s optimiser settings and checkpoints carry over.

    `from_linear` and ``load_state_dict`` make masked weights 0, and no gradient moves them: what
    reads ``weight`` itself, as the fused path of torch's transformer layers does, sees W*M.

    Args:
        in_features: size of each input sample.
        out_features: size of each output sample.
        bias: whether to add a learnt bias.
        device: where parameters and mask live.
        dtype: of the parameters.

    Attributes:
        weight: Parameter [out_features, in_features].
        bias: Parameter [out_features], or None.
        mask: bool buffer [out_features, in_features], True where a weight is kept; all True at
            first. Assign in place (``layer.mask.copy_(...)``) to change it, and where something
            else reads ``weight``, ``layer.weight.data.masked_fill_(~layer.mask, 0)`` after it.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    mask: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes("MaskedLinear", in_features=in_features, out_features=out_features)
        self.in_features = int(in_features)  # which may be numpy's
        self.out_features = int(out_features)
        shape = (out_features, in_features)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.register_parameter(
            "bias",
            nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None,
        )
        self.register_buffer("mask", torch.ones(shape, device=device, dtype=torch.bool))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises weight and bias as ``nn.Linear`` does."""
        if self.weight.numel() > 0:
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
            nn.init.uniform_(self.bias, -bound, bound)

    @classmethod
    def from_linear(cls, linear: nn.Linear | MaskedLinear, mask: Tensor) -> MaskedLinear:
        """A masked layer with copies of `linear`'s weight and bias, masked weights 0.

        It has whatever other attributes `linear` was given, but not its hooks.

        Args:
            linear: the layer to copy; it stays as it is.
            mask: bool [out_features, in_features], True where a weight is kept.

        Raises:
            ValueError: the mask has another shape.
            TypeError: the mask is not bool, or `linear` is another kind of layer or has a forward
                of its own.
        """
        check_linear("MaskedLinear.from_linear", linear)
        check_mask("MaskedLinear.from_linear", mask, linear.weight)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        mask = mask.detach().to(linear.weight.device, copy=True)
        layer.weight = _masked(linear.weight, mask)
        layer.register_parameter("bias", None if linear.bias is None else _copy(linear.bias))
        layer.register_buffer("mask", mask)
        return like(linear, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [..., in_features] to y [..., out_features]."""
        return masked_linear(x, self.weight, self.mask, self.bias)

    def to_sparse(self, dtype: torch.dtype | None = None, memory: str = "fast") -> SparseLinear:
        """The same layer packed for inference; see ``SparseLinear.from_linear``."""
        from .sparse import SparseLinear

        return SparseLinear.from_linear(self, dtype=dtype, memory=memory)

    def to_dense(self) -> nn.Linear:
        """The same layer as a plain ``nn.Linear``, its masked weights 0, as `from_linear` does."""
        linear = nn.Linear(self.in_features, self.out_features, device="meta")
        linear.weight = _masked(self.weight, self.mask)
        linear.register_parameter("bias", None if self.bias is None else _copy(self.bias))
        return like(self, linear)

    def extra_repr(self) -> str:
        """The sizes and the share of the weights that is kept."""
        kept = "unknown" if self.mask.is_meta else f"{density(self.mask):.3g}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features},"
            f" bias={self.bias is not None}, density={kept}"
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any], *args: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)
        if self.mask.device != self.weight.device:
            return  # one of them is still on the meta device
        if metadata.get("assign_to_params_buffers", False):  # the weight is the caller's own
            self.weight = _masked(self.weight, self.mask)
        else:
            self.weight.data.masked_fill_(~self.mask, 0)


def check_sizes(caller: str, **sizes: object) -> None:
    """Raises ValueError unless every size is an int of at least 0."""
    for name, size in sizes.items():
        if not isinstance(size, Integral) or size < 0:
            raise ValueError(f"{caller}: {name} must be an int of at least 0, got {size!r}")


def check_linear(caller: str, linear: nn.Module) -> None:
    """Raises TypeError unless it is an nn.Linear or a MaskedLinear, and computes what these do."""
    if not isinstance(linear, (nn.Linear, MaskedLinear)):
        raise TypeError(
            f"{caller}: linear must be an nn.Linear or a MaskedLinear, got {type(linear).__name__}"
        )
    if has_own_forward(linear, nn.Linear, MaskedLinear):
        raise TypeError(
            f"{caller}: linear must have the forward of nn.Linear or MaskedLinear, which the new"
            f" layer would have, got a {type(linear).__name__} with its own; convert the layer"
            " inside it"
        )


def has_own_forward(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a layer of one of the kinds computes something else, as a subclass may."""
    return "forward" in vars(layer) or type(layer).forward not in [kind.forward for kind in kinds]


def check_mask(caller: str, mask: Tensor, weight: Tensor) -> None:
    """Raises unless `mask` is a bool tensor of `weight`'s shape."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{caller}: mask must be a bool tensor, got {kind}")
    if mask.shape != weight.shape:
        raise ValueError(
            f"{caller}: mask must have weight's shape {list(weight.shape)}, got {list(mask.shape)}"
        )


def density(mask: Tensor) -> float:
    """The share of the weights that is kept, in 0..1; 0 for a mask without elements."""
    return mask.count_nonzero().item() / mask.numel() if mask.numel() else 0.0


def _masked(weight: Tensor, mask: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().where(mask, 0), requires_grad=weight.requires_grad)


def _copy(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)


def like(layer: nn.Module, new: _Layer, own: tuple[str, ...] = ()) -> _Layer:
    """The new layer in the other's mode, with what attributes that was given, but for `own`."""
    for name, value in vars(layer).items():
        if name not in own and not hasattr(new, name):
            vars(new)[name] = value
    return new.train(layer.training)
