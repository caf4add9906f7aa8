"""Masked and sparse linear layers against dense ones and torch's own sparse format.

Every rival's answer is asserted before it is timed. The table compares medians taken in turn, so
that it holds on a busy machine; pytest-benchmark's own columns are the layer's alone.
"""

import pytest
import torch
import torch.nn.functional as F
from timing import report
from torch import nn

from simmim_ext.nn import SparseLinear, masked_linear

SIZE = 1024


def layer_and_mask(density: float, pattern: str = "element") -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    rows = 16 if pattern == "block" else 1
    mask = (torch.rand(SIZE // rows, SIZE) < density).repeat_interleave(rows, 0)
    return nn.Linear(SIZE, SIZE), mask


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("batch", [1, 16, 128, 512])
@pytest.mark.parametrize("density", [0.05, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("pattern", ["element", "block"])
@torch.inference_mode()
def test_inference(benchmark, pattern, density, batch) -> None:
    linear, mask = layer_and_mask(density, pattern)
    x, masked = torch.randn(batch, SIZE), linear.weight * mask
    layer = SparseLinear.from_linear(linear, mask)
    csr, copy = masked.to_sparse_csr(), masked.clone()
    rivals = {
        "ours": lambda: layer(x),
        "dense": lambda: F.linear(x, masked, linear.bias),
        # The control: how much is noise. A copy, or the first would warm its cache.
        "dense again": lambda: F.linear(x, copy, linear.bias),
        "W*M": lambda: F.linear(x, linear.weight * mask, linear.bias),
        "sparse CSR": lambda: F.linear(x, csr, linear.bias),
    }
    expected = F.linear(x.double(), masked.double(), linear.bias.double())
    for call in rivals.values():
        torch.testing.assert_close(call().double(), expected, rtol=1e-4, atol=1e-4)
    report(
        benchmark,
        rivals,
        operations=2 * batch * int(mask.sum()),
        note=layer.choice.kernel(batch),
    )


@pytest.mark.parametrize("density", [0.05, 0.1, 0.2, 0.5])
def test_training_step(benchmark, density) -> None:
    linear, mask = layer_and_mask(density)
    x, grad = torch.randn(128, SIZE, requires_grad=True), torch.randn(128, SIZE)
    wanted = (x, linear.weight, linear.bias)

    def step(forward):
        return torch.autograd.grad(forward(), wanted, grad)

    rivals = {
        "ours": lambda: step(lambda: masked_linear(x, linear.weight, mask, linear.bias)),
        "W*M": lambda: step(lambda: F.linear(x, linear.weight * mask, linear.bias)),
    }
    for ours, expected in zip(rivals["ours"](), rivals["W*M"](), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
    report(benchmark, rivals, operations=6 * 128 * int(mask.sum()))


@torch.inference_mode()
def test_call_overhead(benchmark) -> None:
    linear, mask = nn.Linear(8, 8), torch.rand(8, 8) < 0.5
    linear.weight.mul_(mask)
    layer, x = SparseLinear.from_linear(linear, mask), torch.randn(1, 8)
    many = range(200)
    rivals = {
        "ours": lambda: [layer(x) for _ in many],
        "nn.Linear": lambda: [linear(x) for _ in many],
    }
    torch.testing.assert_close(layer(x), linear(x))
    report(benchmark, rivals, note=layer.choice.kernel(1))
