"""Runs every operator's CUDA kernels once, small, for compute-sanitizer.

    python benchmarks/gpu/sanitized.py N

takes each case's first N tuples of arguments: all of them would take minutes.
"""

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

for case in CASES:
    for arguments in islice(case.arguments("cuda"), int(sys.argv[1])):
        case.op(*arguments)
# Not cases: what they make has no reference.
for dtype in (torch.float32, torch.bfloat16):
    for features in (300, 4200):  # by rows, in one chunk and in two
        weight = torch.randn(35, features, device="cuda", dtype=dtype)
        mask = torch.rand(35, features, device="cuda") < 0.3
        compress_weight(weight, mask)
        for layout in ("row", "tile", "list")[: 2 if dtype == torch.float32 else 3]:
            packed = pack_sparse_weight(weight, mask, layout)
            for batch in (1, 16, 70):
                x = torch.randn(batch, features, device="cuda", dtype=dtype)
                sparse_linear(x, packed, None, 35)
torch.cuda.synchronize()
