"""torch's kernel for block weights, run on the CPU by Triton's interpreter."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")
def test_torchs_block_kernel() -> None:
    """Every side, batches that fill no tile, kept zeros, NaN and infinity."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.interpreted_blocks"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
