"""The kernels of a sparse layer, with what they need besides its compressed form."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _functorch, _is_any_autocast_enabled
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from ..ops._library import operator
from ..ops.sparse_linear import pack_sparse_weight
from .dense import Dense
from .pattern import Pattern
from .product import Product, result_dtype, takes
from .structured_cuda import Blocks, TwoOfFour

# Not the function of this name: in a small layer each Python call is felt.
_sparse_linear = operator("sparse_linear")


class Kernel(NamedTuple):
    """A kernel, with what it needs besides the compressed form."""

    limit: float  # the largest batch it serves
    name: str
    product: Product | None = None  # None: compressed_linear itself
    dense: Dense | None = None  # [out, in], that compressed_linear need not decompress
    packed: Tensor | None = None  # by which it computes y where it is to have a gradient


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
    product = Packed(weight, mask, name)
    return Kernel(math.inf, name, product, packed=product.packed[0])


def held_bytes(kernels: tuple[Kernel, ...]) -> int:
    """The bytes that kernels hold, what several share counted once."""
    parts = (part for kernel in kernels for part in (kernel.product, kernel.dense))
    held = {id(part): part for part in parts if part is not None}
    return sum(part.nbytes for part in held.values())


class Packed(Product):
    """A weight packed for a kernel of ours; without derivatives, which compressed_linear has."""

    def __init__(self, weight: Tensor, mask: Tensor, layout: str) -> None:
        self.dtype, self.out_features = weight.dtype, weight.shape[0]
        self.packed = (pack_sparse_weight(weight, mask, layout),)

    def serves(self, x: Tensor, bias: Tensor | None) -> bool:
        """Whether it takes x, and nothing asks for a derivative of it or of bias."""
        if torch.is_grad_enabled() and (_is_tracked(x) or (bias is not None and _is_tracked(bias))):
            return False
        # The usual dtype first: each Python call is felt.
        return (x.dtype == self.dtype or takes(self.dtype, x)) and forward_ad._current_level < 0

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Computes ``y = x W^T + b``."""
        return _sparse_linear(x, self.packed[0], bias, self.out_features)  # type: ignore[no-any-return]


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


def _is_tracked(x: Tensor) -> bool:
    """Whether x may be differentiated by, by autograd or in a transform of torch.func."""
    if is_compiling():  # which cannot look into wrappers, but sees it in what is made of them
        return x.view_as(x).requires_grad
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_gradtrackingtensor(x):
            return True
        x = _functorch.get_unwrapped(x)
    return x.requires_grad
