"""Kernels of torch's for structured weights on CUDA: cuSPARSELt for 2:4, Triton for blocks.

Both multiply by the stored weights alone, so that they are offered only where those are exactly the
kept ones: a masked zero among them would let NaN and infinity of x through, and a kept one that is
not stored would stop them.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from .pattern import Pattern
from .product import HALVES, Product, result_dtype

# cuSPARSELt takes multiples of 16 x 16, CUTLASS, which torch can be told to use, of these.
ROWS, COLUMNS = 32, 64
# Side of a block -> samples that are multiplied together, stages of loading ahead, warps: as in
# torch's own table for an A100, 4096 x 4096 weights in bfloat16 and large batches.
TILES = {16: (128, 4, 4), 32: (256, 4, 8), 64: (128, 3, 4)}
ALIGNMENT = 16  # bytes: what cuSPARSELt is told of x
# Elements of x or y: padded they stay below 2^31, which is as far as Triton's kernel counts.
LARGEST = 1 << 30


def fitting(weight: Tensor, pattern: Pattern) -> str | None:
    """The kernel that can multiply by a weight, "2:4" or "bsr", if any.

    Args:
        weight: [out_features, in_features], 0 where it is masked.
        pattern: of its mask.
    """
    if weight.dtype not in HALVES:  # in float32 Triton's blocks add in float64
        return None
    if pattern.square in TILES:
        return "bsr"
    out_features, in_features = weight.shape
    # 2:4 stores what is not 0, and fills up with zeros that may be masked.
    is_2_of_4 = pattern.name == "2:4" and 2 * int(weight.count_nonzero()) == weight.numel()
    return "2:4" if is_2_of_4 and out_features % ROWS == in_features % COLUMNS == 0 else None


def available(kernel: str, device: torch.device) -> bool:
    """Whether a CUDA device has the kernel."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    if kernel == "2:4":
        return torch.backends.cusparselt.is_available()
    from torch.utils._triton import has_triton  # what torch's BSR kernels are defined by

    return has_triton()


def offered(weight: Tensor, pattern: Pattern) -> str | None:
    """The kernel for a weight on its CUDA device, if any; the arguments are those of `fitting`."""
    kernel = fitting(weight, pattern)
    return kernel if kernel is not None and available(kernel, weight.device) else None


class Structured(Product):
    """A weight packed for a kernel of torch's; see `TwoOfFour` and `Blocks`."""

    def __init__(self, weight: Tensor) -> None:
        self.shape, self.dtype, self.device = weight.shape, weight.dtype, weight.device

    def serves(self, x: Tensor, bias: Tensor | None) -> bool:
        """Whether x [..., in_features] is plain data for the kernel.

        compressed_linear alone has gradients, and torch.compile and torch.func can look into it.
        """
        in_features = self.shape[1]
        return (
            not is_compiling()
            and type(x) is Tensor
            and x.device == self.device
            and x.dtype in (self.dtype, torch.float32)
            and x.dim() > 0
            and x.shape[-1] == in_features
            and x.numel() // in_features * max(self.shape) < LARGEST
            and not (x.requires_grad and torch.is_grad_enabled())
            and not (bias is not None and bias.requires_grad and torch.is_grad_enabled())
            and forward_ad._current_level < 0
            and torch._C._functorch.maybe_current_level() is None
        )

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Computes ``y = x W^T + b`` in the weight's dtype; y has x's, or autocast's."""
        rows = x.to(self.dtype).reshape(-1, x.shape[-1]).contiguous()
        if rows.data_ptr() % ALIGNMENT:
            rows = rows.clone()
        dtype = result_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            y = self._product(rows, bias).contiguous()
        return y.view(*x.shape[:-1], self.shape[0]).to(dtype)

    @abstractmethod
    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Of plain x [samples, in_features] of the weight's dtype."""


class TwoOfFour(Structured):
    """A 2:4 weight for sparse tensor cores, by cuSPARSELt."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a prototype, once
            sparse = torch.sparse.to_sparse_semi_structured(weight.contiguous())
        # Later versions of torch return y as it should be by themselves, others its transpose.
        sparse.fuse_transpose_cusparselt = True
        self.weight = sparse
        self.packed = tuple(part for part in (sparse.packed, sparse.meta) if part is not None)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.weight, bias)


class Blocks(Structured):
    """A weight of square blocks in torch's BSR layout, for its Triton kernel.

    Args:
        weight: [out_features, in_features] multiples of the blocks' side.
        mask: bool, of weight's shape, that keeps whole blocks.
        side: of a block, one of TILES.
    """

    def __init__(self, weight: Tensor, mask: Tensor, side: int) -> None:
        super().__init__(weight)
        rows, columns = (size // side for size in weight.shape)
        kept = mask[::side, ::side]  # and not what is nonzero: a kept block may hold zeros alone
        values = weight.view(rows, side, columns, side).transpose(1, 2)[kept].contiguous()
        ends = F.pad(kept.sum(1).cumsum(0), (1, 0))
        self.packed = (ends, kept.nonzero()[:, 1].contiguous(), values)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a beta state, once
            self.weight = torch.sparse_bsr_tensor(
                *self.packed, size=weight.shape, check_invariants=False
            )
        self.samples, stages, warps = TILES[side]
        # What torch chooses by itself suits few sizes, and takes several times as long for others.
        self.parameters = {
            "SPLIT_N": 1,
            "GROUP_SIZE_ROW": 1,
            "num_stages": stages,
            "num_warps": warps,
        }

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        from torch.sparse import _triton_ops

        # A batch of products with as many samples each, for all of which Triton compiles once.
        batch = x.shape[0]
        tiles = -(-batch // self.samples)
        missing = tiles * self.samples - batch
        inputs = F.pad(x, (0, 0, 0, missing)) if missing else x
        y = x.new_empty(tiles, self.samples, self.shape[0])
        added = y.mT if bias is None else bias[:, None].expand_as(y.mT)
        with torch.cuda.device_of(y):  # type: ignore[no-untyped-call]
            _triton_ops.bsr_dense_addmm(
                added,  # not read where beta is 0
                self.weight,
                inputs.view(tiles, self.samples, -1).mT,
                beta=int(bias is not None),
                out=y.mT,
                meta=self.parameters,
            )
        return y.view(-1, self.shape[0])[:batch]
