"""Run by tests/test_interpreted_blocks.py: torch's BSR kernel, in Triton's interpreter."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.utils._triton

torch.utils._triton.has_triton = lambda: True  # or torch does not define its kernels
from torch.sparse import _triton_ops  # noqa: E402

from simmim_ext.nn import structured_cuda  # noqa: E402

partition = _triton_ops.grid_partitioner
# The interpreter wants a tuple of what a GPU takes as a list.
_triton_ops.grid_partitioner = lambda *args: ((tuple(g), *rest) for g, *rest in partition(*args))

for side in structured_cuda.TILES:
    torch.manual_seed(side)
    squares = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 1]]).bool()
    mask = squares.repeat_interleave(side, 0).repeat_interleave(side, 1)
    # Not bfloat16, which the interpreter multiplies wrongly.
    weight = torch.randn(mask.shape).half().where(mask, 0)
    weight[:side, :side] = 0  # kept all the same
    blocks = structured_cuda.Blocks(weight, mask, side)
    assert blocks.nbytes == 4 * (side**2 * 2 + 8) + 4 * 8
    bias = torch.randn(len(weight)).half()
    for batch in (1, blocks.samples, blocks.samples + 3):
        x = torch.randn(batch, len(weight)).half()
        x[0, 1], x[-1, -1] = torch.nan, torch.inf
        for added in (bias, None):
            y = blocks(x, added)
            expected = torch.where(mask, weight.double() * x.double()[:, None], 0).sum(-1)
            if added is not None:
                expected += added.double()
            assert y.is_contiguous()
            torch.testing.assert_close(y.double(), expected, rtol=0.01, atol=0.02, equal_nan=True)
