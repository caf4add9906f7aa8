"""Runs the cases of every operator that has a CUDA kernel once, small, for compute-sanitizer."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from cases import CASES  # noqa: E402

PER_CASE = 6  # argument tuples: every one of them would take minutes

for case in CASES:
    if case.has_cuda:
        for arguments in islice(case.arguments("cuda"), PER_CASE):
            case.op(*arguments)
torch.cuda.synchronize()
