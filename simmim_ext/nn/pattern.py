"""Recognises what a mask is made of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

BLOCK_ROWS = 16  # of the block layout; see csrc/kernels/sparse_linear.h
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
    """

    name: str
    density: float
    rows: Tensor
    columns: Tensor


def recognise(mask: Tensor) -> Pattern:
    """The pattern of a bool mask [out_features, in_features]."""
    kept = int(mask.count_nonzero())
    rows, columns = (mask.any(axis).nonzero().flatten() for axis in (1, 0))
    if kept == rows.numel() * columns.numel():
        name = "rows/columns"
    elif _is_made_of_blocks(mask):
        name = f"block {BLOCK_ROWS}x1"
    else:
        name = _n_of_m(mask) or "element"
    return Pattern(name, kept / max(mask.numel(), 1), rows, columns)


def _is_made_of_blocks(mask: Tensor) -> bool:
    whole = mask.shape[0] // BLOCK_ROWS * BLOCK_ROWS
    blocks, rest = mask[:whole].view(-1, BLOCK_ROWS, mask.shape[1]), mask[whole:]
    return bool((blocks == blocks[:, :1]).all() and (rest == rest[:1]).all())


def _n_of_m(mask: Tensor) -> str | None:
    for size in GROUP_SIZES:
        if mask.shape[1] % size == 0:
            counts = mask.view(-1, size).sum(1)
            if bool((counts == counts[0]).all()):
                return f"{int(counts[0])}:{size}"
    return None
