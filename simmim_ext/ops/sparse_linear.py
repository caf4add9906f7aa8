"""Linear layers on weights packed for one kernel of this machine."""

import torch
from torch import Tensor
from torch.library import get_ctx, register_fake

from .. import _C
from ._library import check_same_device, operator

_pack_sparse_weight = operator("pack_sparse_weight")
_sparse_linear = operator("sparse_linear")


def pack_sparse_weight(weight: Tensor, mask: Tensor, layout: str) -> Tensor:
    """Packs the weights that a mask keeps for `sparse_linear`.

    Args:
        weight: [out_features, in_features] float32, float16 or bfloat16; packed as float32 on the
            CPU ("tile", "pair": rounded to bfloat16; "planes": bfloat16 as it is), in its own type
            on CUDA.
        mask: [out_features, in_features] bool, True where a weight is kept.
        layout: "element" for any mask and batches of about 8 or more, "gather" for any mask and
            smaller batches, "block" for masks of whole columns of 16 rows, "window" for any mask
            and batches of up to about 8 on AVX-512, "planes" for any mask and the smallest batches
            on AVX-512 with VBMI, "tile" for any mask in bfloat16 on AMX, or for smaller batches on
            AVX-512 BF16, "pair" for any mask in bfloat16 and larger batches there. On CUDA, for any
            mask, "row" for the smallest batches, "tile" for those of up to 16, and "list", of
            float16 or bfloat16 alone, for those of up to 64 where few weights are kept.

    Returns:
        packed [bytes] uint8, for this build and machine alone. On CUDA of weight's dtype (float32
        for float64): "tile" [in_features, n], which takes 1 bit for each weight and its value for
        each kept one; "row" [in_features, n, 1], 12 bits and the value for each kept one; "list"
        [in_features, n, 1, 1], 16 bits and the value.

    Raises:
        TypeError: weight is not floating, or mask not bool.
        ValueError: mask has another shape or does not fit the layout, the layout is unknown, or on
            the CPU weight has more than 2^30 rows or columns.
    """
    return _pack_sparse_weight(weight, mask, layout)  # type: ignore[no-any-return]


def sparse_linear(x: Tensor, packed: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """Computes ``y = x W^T + b`` for a W that `pack_sparse_weight` packed.

    Accumulates in float32, and multiplies in it on the CPU, but for the layouts "tile" and "pair",
    which round x to bfloat16. Only kept weights see x: NaN and infinity reach an output through
    them alone. For inference: it has no gradient. On CUDA it multiplies in packed's dtype and never
    waits for the device, so that an out_features which is not as packed makes y NaN there.

    Args:
        x: [..., in_features] float32, float16 or bfloat16.
        packed: what `pack_sparse_weight` returned, on x's device. Only its header is looked at, of
            which the CPU's has a checksum: other bytes that were changed can crash the process.
        bias: [out_features] of any floating dtype, or None.
        out_features: size of each output sample, as packed.

    Returns:
        y [..., out_features], of x's dtype.

    Raises:
        TypeError: x or bias is of another dtype.
        ValueError: a shape does not fit, or packed is something else or its header was changed.
        NotImplementedError: a gradient is required.
    """
    return _sparse_linear(x, packed, bias, out_features)  # type: ignore[no-any-return]


@register_fake("simmim_ext::pack_sparse_weight")
def _(weight, mask, layout):  # type: ignore[no-untyped-def]
    size = get_ctx().new_dynamic_size()
    # The tests' emulation of CUDA serves the CPU's tensors.
    if weight.device.type == "cpu" and _C.build_info()["cuda"] != "emulated":
        return mask.new_empty(size, dtype=torch.uint8)
    dtype = torch.float32 if weight.dtype == torch.float64 else weight.dtype
    ones = (1,) * {"row": 1, "list": 2}.get(layout, 0)
    return weight.new_empty((weight.shape[1], size, *ones), dtype=dtype)


@register_fake("simmim_ext::sparse_linear")
def _(x, packed, bias, out_features):  # type: ignore[no-untyped-def]
    for name, other in (("packed", packed), ("bias", bias)):
        check_same_device(x, other, "sparse_linear", name)
    return x.new_empty((*x.shape[:-1], out_features))
