"""The CUDA kernels compile for real chips: without a warning, and without a register spilt."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).parent.parent / "csrc" / "kernels"
SOURCES = sorted(path.name for path in KERNELS.glob("*.cu"))
ARCHITECTURES = ("80", "90")
# What one multiprocessor has, of which a block's share decides how many run on it.
MAX_REGISTERS = 255

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")


def report(source: str, out: Path) -> list[dict[str, str | int]]:
    """Of every kernel in the source, for each architecture: registers, stack and spills."""
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    targets.append(f"-gencode=arch=compute_{ARCHITECTURES[-1]},code=compute_{ARCHITECTURES[-1]}")
    command = ["nvcc", "-std=c++17", "-O3", *targets, "-Xptxas", "-v", "--Werror", "all-warnings"]
    done = subprocess.run(
        [*command, "-c", str(KERNELS / source), "-o", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    pattern = (
        r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<architecture>\d+)'.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
        r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers"
    )
    found = re.finditer(pattern, done.stderr, re.DOTALL)
    return [
        {k: v if k == "kernel" else int(v) for k, v in match.groupdict().items()} for match in found
    ]


@pytest.mark.parametrize("source", SOURCES)
def test_compiles_without_warnings_or_spills(source: str, tmp_path: Path) -> None:
    kernels = report(source, tmp_path / "out.o")
    assert {kernel["architecture"] for kernel in kernels} == {int(a) for a in ARCHITECTURES}
    for kernel in kernels:
        print(*(f"{key}={value}" for key, value in kernel.items()))
        spilt = kernel["stores"], kernel["loads"], kernel["stack"]
        assert spilt == (0, 0, 0), kernel
        assert int(kernel["registers"]) <= MAX_REGISTERS


def test_local_memory_is_seen(tmp_path: Path) -> None:
    """The report would show it: an array that is indexed at run time has no registers."""
    source = tmp_path / "local.cu"
    source.write_text(
        "__global__ void local(float* x, int n) { float v[64];"
        " for (int i = 0; i < 64; ++i) v[(i * n) % 64] = x[i];"
        " for (int i = 0; i < 64; ++i) x[i] = v[(i * n + 1) % 64]; }"
    )
    kernels = report(str(source), tmp_path / "out.o")
    assert kernels
    assert all(kernel["stack"] for kernel in kernels)
