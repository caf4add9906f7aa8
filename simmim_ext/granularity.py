"""What is removed together: units, single weights, n of every m, or blocks."""

import re
from dataclasses import dataclass, replace
from math import ceil

from torch import Tensor, nn

from .errors import SimMIMError

# What a fraction of a whole number may lose to rounding.
_EPSILON = 1e-9

_NAMES = '"unit", "weight", "n:m" as "2:4", "block:RxC" as "block:16x1"'


@dataclass(frozen=True)
class Granularity:
    """Which weights of a Linear layer stay or go together.

    Attributes:
        name: as given, "unit", "weight", "2:4" or "block:16x1".
        rows: outputs of a block.
        columns: inputs of a block. The last blocks of a layer are smaller where its sizes are no
            multiples of the block's.
        keep: (n, m) where exactly n of every m neighbours in a row are kept, else None.
    """

    name: str
    rows: int = 1
    columns: int = 1
    keep: tuple[int, int] | None = None

    @classmethod
    def parse(cls, name: object) -> "Granularity":
        """The granularity of that name.

        Raises:
            ValueError: there is none of that name.
        """
        if name in ("unit", "weight"):
            return cls(str(name))
        text = name if isinstance(name, str) else ""
        if found := re.fullmatch(r"block:([1-9]\d*)x([1-9]\d*)", text):
            return cls(text, int(found[1]), int(found[2]))
        if (found := re.fullmatch(r"([1-9]\d*):(\d+)", text)) and int(found[1]) < int(found[2]):
            return cls(text, keep=(int(found[1]), int(found[2])))
        raise ValueError(f"granularity must be one of {_NAMES} (n < m), got {name!r}")

    @property
    def sparsity(self) -> float | None:
        """The fraction of the weights that it removes by itself; None where that is free."""
        return None if self.keep is None else 1 - self.keep[0] / self.keep[1]

    def at(self, sparsity: float | None) -> "Granularity":
        """The same on the way to its own sparsity: at that one, rounded to more weights kept."""
        if self.keep is None or sparsity is None:
            return self
        n, m = self.keep
        return replace(self, keep=(max(n, ceil((1 - sparsity) * m - _EPSILON)), m))

    def check(self, name: str, weight: Tensor) -> None:
        """Raises SimMIMError unless a layer's weight [outputs, inputs] can be made of it."""
        if self.keep is not None and weight.shape[1] % self.keep[1]:
            raise SimMIMError(
                f"granularity={self.name!r}: the {weight.shape[1]} inputs of {name!r} are no "
                f"multiple of {self.keep[1]}; put it in ignored_layers, or choose another "
                "granularity"
            )

    def blocks(self, weight: Tensor) -> Tensor:
        """[outputs, inputs] as [stripes, rows, blocks, columns], zeros where there is none."""
        outputs, inputs = weight.shape
        padding = (0, -inputs % self.columns, 0, -outputs % self.rows)
        padded = nn.functional.pad(weight, padding)
        stripes, blocks = padded.shape[0] // self.rows, padded.shape[1] // self.columns
        return padded.view(stripes, self.rows, blocks, self.columns)
