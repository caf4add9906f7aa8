"""Linear layers with masked weights, and the two products that their gradients are."""

from torch import Tensor
from torch.library import register_fake

from ._library import check_same_device, operator

_masked_linear = operator("masked_linear")
_input_grad = operator("masked_linear_input_grad")
_weight_grad = operator("masked_linear_weight_grad")


def masked_linear(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes ``y = x (W*M)^T + b``.

    Masked weights contribute nothing, whatever they and x hold, NaN and infinity included; with
    kept weights NaN and infinity propagate as in ``torch.nn.functional.linear``.

    Differentiable in x, weight and bias any number of times; the gradient of a masked weight is
    exactly 0. Under autocast it computes in the lower precision, as ``linear`` does. Where
    ``torch.func`` or forward-mode AD takes derivatives it is ``linear(x, W*M, b)``, for which a
    masked weight times an infinity of x is NaN.

    Args:
        x: [..., in_features] float32, float64, float16 or bfloat16.
        weight: [out_features, in_features], of x's dtype.
        mask: [out_features, in_features] bool, True where a weight is kept.
        bias: [out_features], of x's dtype, or None.

    Returns:
        y [..., out_features], of x's dtype.

    Raises:
        TypeError: mask is not bool; the others are not floating or not of one dtype.
        ValueError: a shape or a device does not fit.
    """
    return _masked_linear(x, weight, mask, bias)  # type: ignore[no-any-return]


def masked_linear_input_grad(grad: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """The gradient of `masked_linear` in x: ``grad (W*M)``, [..., out] -> [..., in]."""
    return _input_grad(grad, weight, mask)  # type: ignore[no-any-return]


def masked_linear_weight_grad(grad: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """The gradient of `masked_linear` in weight: ``(grad^T x) * M``, [out, in].

    Only the kept entries are computed where they are few (a sampled dense-dense product).
    """
    return _weight_grad(grad, x, mask)  # type: ignore[no-any-return]


@register_fake("simmim_ext::masked_linear")
def _(x, weight, mask, bias=None):  # type: ignore[no-untyped-def]
    for name, other in (("weight", weight), ("mask", mask), ("bias", bias)):
        check_same_device(x, other, "masked_linear", name)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@register_fake("simmim_ext::masked_linear_input_grad")
def _(grad, weight, mask):  # type: ignore[no-untyped-def]
    return grad.new_empty((*grad.shape[:-1], weight.shape[1]))


@register_fake("simmim_ext::masked_linear_weight_grad")
def _(grad, x, mask):  # type: ignore[no-untyped-def]
    return grad.new_empty(mask.shape)
