"""Linear layers on compressed weights: a bitmap of the kept weights, and their values.

The form is portable, and takes density + 1/32 of the dense size for float32.
"""

import torch
from torch import Tensor
from torch.library import register_fake

from ._library import check_same_device, operator

_compress_weight = operator("compress_weight")
_decompress_weight = operator("decompress_weight")
_compressed_linear = operator("compressed_linear")
_input_grad = operator("compressed_linear_input_grad")


def compress_weight(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Compresses the weights that a mask keeps, zeros among them included.

    Args:
        weight: [out_features, in_features] float32, float64, float16 or bfloat16.
        mask: [out_features, in_features] bool, True where a weight is kept.

    Returns:
        bitmap [ceil(out_features * in_features / 8)] uint8: weight i, row by row, is kept where bit
        i % 8 of byte i // 8 is set (bits from the lowest); and values [kept weights], of weight's
        dtype, in the same order.

    Raises:
        TypeError: weight is not floating, or mask not bool.
        ValueError: mask has another shape.
    """
    return _compress_weight(weight, mask)  # type: ignore[no-any-return]


def decompress_weight(
    bitmap: Tensor, values: Tensor, out_features: int, in_features: int
) -> Tensor:
    """The inverse of `compress_weight`: [out_features, in_features], 0 where none is kept.

    Raises:
        TypeError: bitmap is not uint8, or values not floating.
        ValueError: bitmap's length does not fit the features, or values' not the bits set.
    """
    return _decompress_weight(bitmap, values, out_features, in_features)  # type: ignore[no-any-return]


def compressed_linear(
    x: Tensor,
    bitmap: Tensor,
    values: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
    packed: Tensor | None = None,
) -> Tensor:
    """Computes ``y = x W^T + b`` for a W that `compress_weight` compressed.

    Computes in values' dtype; differentiable in x and bias. As in `masked_linear`, a masked weight
    contributes nothing, whatever x holds.

    Args:
        x: [..., in_features] of values' dtype, or float32 where that is float16 or bfloat16.
        bitmap: [ceil(out_features * in_features / 8)] uint8.
        values: [kept weights] float32, float64, float16 or bfloat16.
        weight: what `decompress_weight` returns, where it is kept to save decompressing; else None.
            One of another floating dtype is what is computed in, in place of values'.
        bias: [out_features] of values' dtype, or None.
        out_features: size of each output sample.
        in_features: size of each input sample.
        packed: what `pack_sparse_weight` returned for W, by which y is computed as `sparse_linear`
            does; else None. Gradients do not read it.

    Returns:
        y [..., out_features], of x's dtype. On CUDA, where it would take to wait for the device
        to find out, y is NaN if bitmap has other than len(values) bits set.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: a shape does not fit; on the CPU also the number of values.
        NotImplementedError: values or weight require a gradient; train a MaskedLinear.
    """
    return _compressed_linear(  # type: ignore[no-any-return]
        x, bitmap, values, weight, bias, out_features, in_features, packed
    )


def compressed_linear_input_grad(
    grad: Tensor,
    bitmap: Tensor,
    values: Tensor,
    weight: Tensor | None,
    out_features: int,
    in_features: int,
) -> Tensor:
    """The gradient of `compressed_linear` in x: ``grad W``, [..., out] -> [..., in].

    Differentiable in grad, which is of the dtype that is computed in.
    """
    return _input_grad(grad, bitmap, values, weight, out_features, in_features)  # type: ignore[no-any-return]


@register_fake("simmim_ext::compress_weight")
def _(weight, mask):  # type: ignore[no-untyped-def]
    kept = torch.library.get_ctx().new_dynamic_size()
    return mask.new_empty((mask.numel() + 7) // 8, dtype=torch.uint8), weight.new_empty(kept)


@register_fake("simmim_ext::decompress_weight")
def _(bitmap, values, out_features, in_features):  # type: ignore[no-untyped-def]
    return values.new_empty(out_features, in_features)


@register_fake("simmim_ext::compressed_linear")
def _(x, bitmap, values, weight, bias, out_features, in_features, packed=None):  # type: ignore[no-untyped-def]
    for name, other in (("bitmap", bitmap), ("values", values), ("weight", weight), ("bias", bias)):
        check_same_device(x, other, "compressed_linear", name)
    return x.new_empty((*x.shape[:-1], out_features))


@register_fake("simmim_ext::compressed_linear_input_grad")
def _(grad, bitmap, values, weight, out_features, in_features):  # type: ignore[no-untyped-def]
    return grad.new_empty((*grad.shape[:-1], in_features))
