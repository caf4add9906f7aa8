"""Which kernels sparse layers take on CUDA; it can be asked anywhere."""

import pytest
import torch

from simmim_ext.nn.choice_cuda import choose_on_cuda
from simmim_ext.nn.pattern import Pattern, recognise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_choices_on_cuda(dtype) -> None:
    """What the arithmetic promises, and nothing for what it does not."""

    def kernels(density: float, size: int = 2048) -> str:
        mask = torch.rand(size, size, generator=torch.Generator().manual_seed(0)) < density
        return choose_on_cuda(recognise(mask), size * size, dtype).kernels_text()

    if dtype == torch.float32:
        assert kernels(0.1) == kernels(0.2) == "row, dense from batch 17"
        assert kernels(0.7) == "tile, dense from batch 9"
    else:
        assert kernels(0.1) == "row, list from batch 17, dense from batch 65"
        assert kernels(0.2) == "row, list from batch 9, dense from batch 65"
        assert kernels(0.7) == "tile, dense from batch 17"
    assert kernels(0.9) == "dense"
    assert kernels(0.1, 512) == "dense"


def test_choices_on_cuda_without_a_sparse_kernel() -> None:
    mask = torch.rand(2048, 2048, generator=torch.Generator().manual_seed(0)) < 0.1
    assert choose_on_cuda(recognise(mask), mask.numel(), torch.float64).kernels_text() == "dense"
    rows = torch.zeros(2048, 2048, dtype=torch.bool)
    rows[:100] = True
    choice = choose_on_cuda(recognise(rows), rows.numel(), torch.bfloat16)
    assert choice.kernels_text() == "compact"


def kernels_with(structured: str, square: int, density: float, size: int = 4096) -> str:
    """The kernels of a layer that torch has a kernel for."""
    nothing = torch.empty(0)
    name = "block 16x1" if square else "2:4"
    pattern = Pattern(name, density, nothing, nothing, square)
    return choose_on_cuda(pattern, size * size, torch.bfloat16, structured).kernels_text()


def test_choices_of_torchs_kernels() -> None:
    """For large batches, and where few enough blocks are kept for their size."""
    assert kernels_with("2:4", 0, 0.5) == "tile, dense from batch 17, 2:4 from batch 3130"
    assert kernels_with("2:4", 0, 0.5, 1000) == "dense"
    small = "row, list from batch 17, dense from batch 65"
    for square, most in ((16, 0.09), (32, 0.19), (64, 0.28)):
        assert "bsr from batch 3130" in kernels_with("bsr", square, most)
        assert "bsr" not in kernels_with("bsr", square, most + 0.02)
        assert kernels_with("bsr", square, 0.05) == small + ", bsr from batch 3130"
    assert kernels_with("bsr", 64, 0.05, 16384) == small + ", bsr from batch 196"
    assert kernels_with("bsr", 64, 0.05, 1 << 15) == small + ", bsr from batch 66"
