"""The kernels of a sparse layer, with what they need besides its compressed form."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor

from ..ops.sparse_linear import pack_sparse_weight
from .pattern import Pattern
from .structured_cuda import Blocks, Structured, TwoOfFour


class Kernel(NamedTuple):
    """A kernel, with what it needs besides the compressed form."""

    limit: float  # the largest batch it serves
    name: str
    packed: Tensor | None = None  # for sparse_linear: [bytes]
    weight: Tensor | None = None  # dense, 2:4 and bsr: [out, in]; compact: [rows, columns]
    rows: Tensor | None = None  # compact: the rows and columns that are kept
    columns: Tensor | None = None
    structured: Structured | None = None  # for torch's own product, on CUDA


def make_kernel(name: str, weight: Tensor, mask: Tensor, pattern: Pattern) -> Kernel:
    """The kernel of that name, for any batch.

    Args:
        name: one of ``Choice.kernels``.
        weight: [out_features, in_features], 0 where it is masked.
        mask: bool, of weight's shape.
        pattern: of the mask.
    """
    if name == "compressed":
        return Kernel(math.inf, name)
    if name == "dense":
        return Kernel(math.inf, name, weight=weight)
    if name == "compact":
        kept = weight.index_select(0, pattern.rows).index_select(1, pattern.columns)
        return Kernel(math.inf, name, None, kept, pattern.rows, pattern.columns)
    if name in ("2:4", "bsr"):
        # With the weight of "dense", which is there for smaller batches, and serves gradients.
        packed = TwoOfFour(weight) if name == "2:4" else Blocks(weight, mask, pattern.square)
        return Kernel(math.inf, name, weight=weight, structured=packed)
    return Kernel(math.inf, name, pack_sparse_weight(weight, mask, name))


def held_bytes(kernels: tuple[Kernel, ...]) -> int:
    """The bytes that kernels hold, what several share counted once."""
    held = {id(item): item for kernel in kernels for item in kernel[2:] if item is not None}
    return sum(item.nbytes for item in held.values())


def compact_linear(
    x: Tensor, kernel: Kernel, bias: Tensor | None, out_features: int, in_features: int
) -> Tensor:
    """A dense layer on the kept columns, whose outputs are the kept rows."""
    weight, rows, columns = cast(tuple[Tensor, Tensor, Tensor], kernel[3:6])
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise ValueError(
            "SparseLinear: x must have shape [..., in_features] with in_features ="
            f" {in_features}, got {list(x.shape)}"
        )
    bias = weight.new_zeros(out_features) if bias is None else bias
    y = F.linear(x.index_select(-1, columns).to(weight.dtype), weight, bias[rows])
    if rows.numel() < out_features:
        y = bias.to(y.dtype).expand(*x.shape[:-1], -1).index_copy(-1, rows, y)
    return y.to(x.dtype) if y.dtype == weight.dtype else y  # else it is autocast's
