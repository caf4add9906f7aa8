"""The kernels of a sparse layer, with what they need besides its compressed form."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor
from torch._C import _is_any_autocast_enabled

from ..ops.sparse_linear import pack_sparse_weight
from .dense import Dense
from .pattern import Pattern
from .product import Product, result_dtype, takes
from .structured_cuda import Blocks, TwoOfFour


class Kernel(NamedTuple):
    """A kernel, with what it needs besides the compressed form."""

    limit: float  # the largest batch it serves
    name: str
    product: Product | None = None  # None: compressed_linear itself
    dense: Dense | None = None  # [out, in], that compressed_linear need not decompress
    packed: Tensor | None = None  # by which compressed_linear computes y


def make_kernel(name: str, dense: Dense, mask: Tensor, pattern: Pattern) -> Kernel:
    """The kernel of that name, for any batch.

    Args:
        name: one of ``Choice.kernels``.
        dense: weight [out_features, in_features], 0 where it is masked.
        mask: bool, of weight's shape.
        pattern: of the mask.
    """
    weight = dense.weight
    if name == "compressed":
        return Kernel(math.inf, name)
    if name == "dense":
        return Kernel(math.inf, name, dense=dense)
    if name == "compact":
        return Kernel(math.inf, name, Compact(weight, pattern))
    if name in ("2:4", "bsr"):
        # With the weight of "dense", which is there for smaller batches, and serves gradients.
        structured = TwoOfFour(weight) if name == "2:4" else Blocks(weight, mask, pattern.square)
        return Kernel(math.inf, name, structured, dense)
    return Kernel(math.inf, name, packed=pack_sparse_weight(weight, mask, name))


def held_bytes(kernels: tuple[Kernel, ...]) -> int:
    """The bytes that kernels hold, what several share counted once."""
    parts = (part for kernel in kernels for part in (kernel.product, kernel.dense, kernel.packed))
    held = {id(part): part for part in parts if part is not None}
    return sum(part.nbytes for part in held.values())


class Compact(Product):
    """A dense layer on the kept columns, whose outputs are the kept rows."""

    def __init__(self, weight: Tensor, pattern: Pattern) -> None:
        self.out_features, self.in_features = weight.shape
        self.packed = (pattern.rows, pattern.columns)
        self.dense = Dense(weight.index_select(0, pattern.rows).index_select(1, pattern.columns))

    @property
    def nbytes(self) -> int:
        """The bytes of the indices and the weight, autocast's copy of it included."""
        return super().nbytes + self.dense.nbytes

    def serves(self, x: Tensor, bias: Tensor | None) -> bool:
        """Whether it takes x's dtype and shape."""
        fits = x.dim() > 0 and x.shape[-1] == self.in_features
        return fits and takes(self.dense.weight.dtype, x)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Computes ``y = x W^T + b``."""
        rows, columns = self.packed
        weight = self.dense.weight
        if _is_any_autocast_enabled():
            weight = self.dense.under_autocast(x)
        bias = weight.new_zeros(self.out_features) if bias is None else bias
        y = F.linear(x.index_select(-1, columns).to(weight.dtype), weight, bias[rows])
        if rows.numel() < self.out_features:
            y = bias.to(y.dtype).expand(*x.shape[:-1], -1).index_copy(-1, rows, y)
        return y.to(result_dtype(x))
