"""Sums of x x^T over rows that come a few at a time: products in float32, sums in float64.

A product of few rows is slow, and so is one in float64. Rows are gathered until they make a good
product, and taken less the mean of the first of them, so that what they have in common does not
drown by how much they differ; the products of so many rows are good to about 1e-6 of
sqrt(xx_ii xx_jj), and what they add up to loses no more. Since chunks are cut by rows, the sums do
not depend on the batches that the rows came in.
"""

import torch
from torch import Tensor

from .moments import Moments

# Rows of one product.
CHUNK = 1024

# Columns of xx at a time: it is symmetric, and only blocks on and below its diagonal are made.
_BLOCK = 256


class Gram:
    """Sums over rows x [rows, columns] of x and x x^T.

    Args:
        columns: how many.
        device: where the rows are.
        dtype: of the rows; float64 is multiplied in float64.
        centred: whether the first rows' mean is taken off before products, and put back after.
    """

    def __init__(
        self, columns: int, device: torch.device, dtype: torch.dtype, *, centred: bool = True
    ) -> None:
        self.columns, self.rows = columns, 0
        exact = dtype == torch.float64 or not _float32_is_exact()
        self._chunk = torch.empty(
            CHUNK, columns, dtype=torch.float64 if exact else torch.float32, device=device
        )
        self._filled = 0
        self._centred = centred
        self._shift: Tensor | None = None
        self._sum = torch.zeros(columns, dtype=torch.float64, device=device)
        self._products = torch.zeros(columns, columns, dtype=torch.float64, device=device)

    def add_(self, x: Tensor) -> None:
        """Adds rows x [rows, columns]."""
        self.rows += len(x)
        while len(x):
            n = min(len(x), CHUNK - self._filled)
            self._chunk[self._filled : self._filled + n] = x[:n]
            x = x[n:]
            self._filled += n
            if self._filled == CHUNK:
                self._multiply()

    def sums(self) -> tuple[Tensor, Tensor]:
        """Sum of x [columns] and of x x^T [columns, columns], both float64."""
        self._multiply()
        xx = self._products.tril()
        xx += self._products.tril(-1).T
        if self._shift is None:
            return self._sum.clone(), xx
        shift = self._shift.double()
        across = torch.outer(shift, self._sum)
        xx += across + across.T + self.rows * torch.outer(shift, shift)
        return self._sum + self.rows * shift, xx

    def _multiply(self) -> None:
        if not self._filled:
            return
        x = self._chunk[: self._filled]
        self._filled = 0
        if self._centred:
            if self._shift is None:
                self._shift = x.mean(0, dtype=torch.float64).to(x.dtype)
            x -= self._shift
        self._sum += x.sum(0, dtype=torch.float64)
        # Under autocast products would be of half precision.
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            for first in range(0, x.shape[1], _BLOCK):
                own = x[:, first : first + _BLOCK]
                self._products[first:, first : first + _BLOCK] += x[:, first:].T @ own


def affine_moments(gram: Gram, weight: Tensor, bias: Tensor | None) -> Moments:
    """Moments of rows x and of z = weight x + bias, which follow from those of x.

    Args:
        gram: of the rows x [rows, columns].
        weight: [outputs, columns].
        bias: [outputs], or None.
    """
    x, xx = gram.sums()
    weight = weight.detach().double()
    z, xz = weight @ x, xx @ weight.T
    if bias is None:
        return Moments(gram.rows, x, z, xx, xz, weight @ xz)
    bias = bias.detach().double()
    z = z + gram.rows * bias
    xz = xz + torch.outer(x, bias)
    return Moments(gram.rows, x, z, xx, xz, weight @ xz + torch.outer(bias, z))


def joint_moments(gram: Gram, columns: int) -> Moments:
    """Moments of rows of which the first columns are x and the others z."""
    both, products = gram.sums()
    return Moments(
        gram.rows,
        both[:columns],
        both[columns:],
        products[:columns, :columns],
        products[:columns, columns:],
        products[columns:, columns:],
    )


def _float32_is_exact() -> bool:
    """Whether the user has not allowed float32 products of fewer bits (TF32, bfloat16)."""
    settings = (
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
    )
    return all(setting in ("none", "ieee") for setting in settings)
