"""torch's kernel for block weights, run on the CPU by Triton's interpreter."""

import importlib.util
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest


def release(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(package).split(".")[:2])


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")
def test_torchs_block_kernel() -> None:
    """Every side, batches that fill no tile, kept zeros, NaN and infinity."""
    if release("triton") < (3, 7) and release("numpy") >= (2, 4):
        pytest.skip("the interpreter of Triton 3.6 cannot run with numpy 2.4 or newer")
    done = subprocess.run(
        [sys.executable, "-m", "tests.interpreted_blocks"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
