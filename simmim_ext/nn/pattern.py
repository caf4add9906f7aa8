"""Recognises what a mask is made of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

BLOCK_ROWS = 16  # of the block layout; see csrc/kernels/sparse_linear.h
SQUARES = (64, 32, 16)  # sides of square blocks
GROUP_SIZES = (4, 8, 16)  # of n:m patterns


@dataclass(frozen=True)
class Pattern:
    """What a mask is made of, the most regular that fits.

    Attributes:
        name: "rows/columns" (the kept weights are some whole rows by some whole columns; the full
            and the empty mask are such), "block 16x1" (columns of 16 rows, kept or masked
            together), "n:m" as "2:4" (n of every m neighbours in a row are kept) or "element".
        density: the share of the weights that is kept, 0..1.
        rows: [kept rows] indices of the rows that keep any weight.
        columns: [kept columns] indices of the columns that keep any weight.
        square: where it is made of blocks, the side of the largest square ones, 64, 32 or 16, that
            are kept or masked together; else 0.
    """

    name: str
    density: float
    rows: Tensor
    columns: Tensor
    square: int = 0


def recognise(mask: Tensor) -> Pattern:
    """The pattern of a bool mask [out_features, in_features]."""
    kept = int(mask.count_nonzero())
    rows, columns = (mask.any(axis).nonzero().flatten() for axis in (1, 0))
    square = 0
    if kept == rows.numel() * columns.numel():
        name = "rows/columns"
    elif _is_made_of_blocks(mask):
        name = f"block {BLOCK_ROWS}x1"
        square = next((side for side in SQUARES if _is_made_of_squares(mask, side)), 0)
    else:
        name = _n_of_m(mask) or "element"
    return Pattern(name, kept / max(mask.numel(), 1), rows, columns, square)


def _is_made_of_blocks(mask: Tensor) -> bool:
    whole = mask.shape[0] // BLOCK_ROWS * BLOCK_ROWS
    blocks, rest = mask[:whole].view(-1, BLOCK_ROWS, mask.shape[1]), mask[whole:]
    return bool((blocks == blocks[:, :1]).all() and (rest == rest[:1]).all())


def _is_made_of_squares(mask: Tensor, side: int) -> bool:
    if any(size % side for size in mask.shape):
        return False
    squares = mask.view(mask.shape[0] // side, side, -1, side)
    return bool((squares == squares[:, :1, :, :1]).all())


def _n_of_m(mask: Tensor) -> str | None:
    for size in GROUP_SIZES:
        if mask.shape[1] % size == 0:
            counts = mask.view(-1, size).sum(1)
            if bool((counts == counts[0]).all()):
                return f"{int(counts[0])}:{size}"
    return None
