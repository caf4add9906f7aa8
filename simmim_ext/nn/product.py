"""Products with a weight that is fixed: what a layer's kernels have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
# What autocast makes a lower precision of.
AUTOCAST = {torch.float32, *HALVES}


class Product(ABC):
    """``y = x W^T + b`` for the x that it serves; the others are compressed_linear's.

    Attributes:
        packed: what it keeps of the weight.
    """

    packed: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of the packed weight."""
        return sum(tensor.nbytes for tensor in self.packed)

    @abstractmethod
    def serves(self, x: Tensor, bias: Tensor | None) -> bool:
        """Whether x [..., in_features] and bias are what it is made for.

        Where they are not, compressed_linear takes them, or says what is wrong with them.
        """

    @abstractmethod
    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Maps x [..., in_features] to y [..., out_features], of x's dtype or autocast's."""


def takes(dtype: torch.dtype, x: Tensor) -> bool:
    """Whether a layer whose values are of a dtype takes x, by compressed_linear's rule.

    That is its own dtype, float32 where its own is half precision, and what autocast makes fit.
    """
    return (
        x.dtype == dtype
        or (x.dtype == torch.float32 and dtype in HALVES)
        or ({x.dtype, dtype} <= AUTOCAST and torch.is_autocast_enabled(x.device.type))
    )


def result_dtype(x: Tensor) -> torch.dtype:
    """Of a layer's output for x: x's own, or autocast's."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
