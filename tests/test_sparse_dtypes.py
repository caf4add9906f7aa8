"""The dtypes of x that a SparseLinear takes: the same whatever kernel serves."""

import pytest
import torch
from sparse_layers import make, patterns_have_their_kernels  # noqa: F401  (used by itself)

LAYERS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
OTHERS = (torch.int64, torch.bool, torch.uint8, torch.complex64)


def taken(layer: torch.dtype, x: torch.dtype) -> bool:
    """As nn.Linear has it, and float32 where the weights alone are half precision."""
    return x == layer or (x == torch.float32 and layer in (torch.float16, torch.bfloat16))


@pytest.mark.parametrize("memory", ["fast", "small"])
@pytest.mark.parametrize("mask", ["half", "random", "rows/columns", "block", "all"])
@pytest.mark.parametrize("dtype", LAYERS)
def test_one_rule_for_all_kernels(dtype, mask, memory) -> None:
    layer = make(259, 131, mask, dtype=dtype, memory=memory)
    for x_dtype in (*LAYERS, *OTHERS):
        for batch in (1, 16, 130):
            x = torch.ones(batch, 131, dtype=x_dtype)
            for grad in {False, x.is_floating_point()}:
                x.requires_grad_(grad)
                if taken(dtype, x_dtype):
                    assert layer(x).dtype == x_dtype
                else:
                    text = "x must have the dtype of values, .*, got|x must be float32, .*, got"
                    with pytest.raises(TypeError, match=text):
                        layer(x)


@pytest.mark.parametrize("mask", ["half", "random", "rows/columns", "block", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_autocast_makes_dtypes_fit(dtype, x_dtype, mask) -> None:
    layer = make(259, 131, mask, dtype=dtype)
    for batch in (1, 16, 130):
        x = torch.randn(batch, 131, dtype=x_dtype)
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
            with pytest.raises((TypeError, RuntimeError)):
                layer(x.long())
        assert y.dtype == torch.bfloat16
        expected = torch.nn.functional.linear(
            x.double(), layer.weight.double(), layer.bias.double()
        )
        torch.testing.assert_close(y.double(), expected, rtol=0.02, atol=0.05)
