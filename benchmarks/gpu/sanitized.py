"""Runs every operator's CUDA kernels once, small, for compute-sanitizer."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from cases import CASES  # noqa: E402

from simmim_ext.ops.compressed_linear import compress_weight  # noqa: E402
from simmim_ext.ops.sparse_linear import pack_sparse_weight, sparse_linear  # noqa: E402

PER_CASE = 6  # argument tuples: every one of them would take minutes

for case in CASES:
    for arguments in islice(case.arguments("cuda"), PER_CASE):
        case.op(*arguments)
# Not cases: what they make has no reference.
for dtype in (torch.float32, torch.bfloat16):
    weight, mask = torch.randn(35, 300, device="cuda", dtype=dtype), torch.rand(35, 300) < 0.3
    compress_weight(weight, mask.cuda())
    for layout in ("row", "tile"):
        packed = pack_sparse_weight(weight, mask.cuda(), layout)
        for batch in (1, 16, 70):
            sparse_linear(torch.randn(batch, 300, device="cuda", dtype=dtype), packed, None, 35)
torch.cuda.synchronize()
