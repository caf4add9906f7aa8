"""Second moments of a layer's inputs and outputs."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Inputs whose variance is less, as a share of their mean square and for each column, do not vary:
# what rounding makes of a covariance would be more than the noise that ``selection`` adds to it.
_ROUNDING = 1e-13


@dataclass
class _Sums:
    """Sums over samples of a layer's inputs x, its outputs z and their products, in float64.

    Attributes:
        samples: number of samples (of positions, for a convolution).
        x: [columns] sum of x.
        z: [outputs] sum of z.
        xx: [columns, columns] sum of x x^T.
        xz: [columns, outputs] sum of x z^T.
        zz: sum of products of z.
    """

    samples: int
    x: Tensor
    z: Tensor
    xx: Tensor
    xz: Tensor
    zz: Tensor

    def products(self, *, centred: bool) -> tuple[Tensor, Tensor]:
        """E[x x^T] and E[x z^T], or Cov(x, x) and Cov(x, z)."""
        n = self.samples
        xx, xz = self.xx / n, self.xz / n
        if centred:
            xx -= torch.outer(self.x, self.x) / n**2
            xz -= torch.outer(self.x, self.z) / n**2
        return xx, xz

    def finite(self) -> bool:
        """Whether all of them are, which the squares tell."""
        squares = self.xx.diagonal(), self.zz
        return all(bool(torch.isfinite(value).all()) for value in squares)


@dataclass
class Moments(_Sums):
    """All second moments.

    Attributes:
        zz: [outputs, outputs] sum of z z^T.
    """

    def covariances(self) -> tuple[Tensor, Tensor, Tensor]:
        """Cov(x, x), Cov(x, z) and Cov(z, z); all 0 where x varies by rounding alone."""
        n = self.samples
        xx, xz = self.products(centred=True)
        zz = self.zz / n - torch.outer(self.z, self.z) / n**2
        varies = xx.trace() > _ROUNDING * len(xx) * self.xx.trace() / n
        return xx * varies, xz * varies, zz * varies


@dataclass
class NormalEquations(_Sums):
    """What a linear regression of z on x needs.

    Attributes:
        zz: [] sum of |z|^2.
    """

    @classmethod
    def zeros(
        cls, columns: int, outputs: int, device: torch.device | None = None
    ) -> "NormalEquations":
        """Those of no samples."""

        def empty(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        xx, xz = empty(columns, columns), empty(columns, outputs)
        return cls(0, empty(columns), empty(outputs), xx, xz, empty())

    def add_(self, x: Tensor, z: Tensor) -> None:
        """Adds samples: x [samples, columns], z [samples, outputs]."""
        x, z = x.double(), z.double()
        self.samples += len(x)
        self.x += x.sum(0)
        self.z += z.sum(0)
        self.xx.addmm_(x.T, x)
        self.xz.addmm_(x.T, z)
        self.zz += z.square().sum()

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        return NormalEquations(
            self.samples + other.samples,
            self.x + other.x,
            self.z + other.z,
            self.xx + other.xx,
            self.xz + other.xz,
            self.zz + other.zz,
        )
