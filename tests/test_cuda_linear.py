"""The linear layers on CUDA, or, where a build emulates it, on the CPU's tensors.

In an ordinary build without a GPU all of it is skipped; tests/test_simt.py makes the emulated one.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from simmim_ext.nn import MaskedLinear, SparseLinear, choice_cuda, masked_linear, packing
from simmim_ext.ops import _library
from simmim_ext.ops.compressed_linear import (
    compress_weight,
    compressed_linear,
    compressed_linear_input_grad,
)
from simmim_ext.ops.sparse_linear import pack_sparse_weight, sparse_linear

EMULATED = _library._C.build_info()["cuda"] == "emulated"
ON_CUDA = torch.cuda.is_available() and _library.has_cuda_kernels()
DEVICE = "cuda" if ON_CUDA else "cpu"

pytestmark = pytest.mark.skipif(not (ON_CUDA or EMULATED), reason="no CUDA device")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.float16: 0.02, torch.bfloat16: 0.1}
LAYOUTS = ("row", "tile", "list")
DTYPE = {"row": torch.float32, "tile": torch.float32, "list": torch.bfloat16}  # the widest
SHAPES = ((1, 1), (19, 37), (35, 264))


def operands(out: int, features: int, batch: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x, weight, mask and bias."""
    generator = torch.Generator().manual_seed(out + batch)
    x, weight, bias = (
        torch.randn(shape, generator=generator).to(DEVICE, dtype)
        for shape in ((batch, features), (out, features), (out,))
    )
    return x, weight, (torch.rand(out, features, generator=generator) < 0.3).to(DEVICE), bias


def wanted(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """In float64, from the kept weights alone."""
    kept = torch.where(mask, weight.double() * x.double()[:, None], 0).sum(-1)
    return kept if bias is None else kept + bias.double()


def close(y: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("batch", [1, 16, 17])  # with kernels of our own up to 16
@pytest.mark.parametrize("shape", SHAPES)
def test_masked_linear_and_its_gradients(shape, batch, dtype) -> None:
    x, weight, mask, bias = operands(*shape, batch, dtype)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    y = masked_linear(x, weight, mask, bias)
    assert (y.dtype, y.device.type) == (dtype, DEVICE)
    close(y.detach(), wanted(x.detach(), weight.detach(), mask, bias.detach()), dtype)
    grad = torch.randn_like(y)
    got = torch.autograd.grad(y, inputs, grad)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    reference = F.linear(exact[0], exact[1].where(mask, 0), exact[2])
    for mine, expected in zip(
        got, torch.autograd.grad(reference, exact, grad.double()), strict=True
    ):
        close(mine, expected, dtype)
    assert (got[1][~mask] == 0).all()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("batch", [3, 20])
@pytest.mark.parametrize("special", [torch.nan, -torch.inf])
def test_masked_weights_see_nothing(batch, special, dtype) -> None:
    x, weight, mask, bias = operands(19, 37, batch, dtype)
    x[1, 5] = x[2, 36] = special
    weight[:, 7] = weight[:, 7].where(mask[:, 7], special)
    close(masked_linear(x, weight, mask, bias), wanted(x, weight, mask, bias), dtype)
    bitmap, values = compress_weight(weight, mask)
    for dense in (None, weight.where(mask, 0)):
        y = compressed_linear(x, bitmap, values, dense, bias, 19, 37)
        close(y, wanted(x, weight, mask, bias), dtype)
    grad = x[:, :19].contiguous()  # with x's special values
    back = torch.ops.simmim_ext.masked_linear_input_grad(grad, weight, mask)
    close(back, wanted(grad, weight.t(), mask.t()), dtype)
    for dense in (None, weight.where(mask, 0)):
        back = compressed_linear_input_grad(grad, bitmap, values, dense, 19, 37)
        close(back, wanted(grad, weight.t(), mask.t()), dtype)
    if dtype != torch.float64:
        for layout in LAYOUTS:
            if layout == "list" and dtype == torch.float32:
                continue
            packed = pack_sparse_weight(weight, mask, layout)
            close(sparse_linear(x, packed, bias, 19), wanted(x, weight, mask, bias), dtype)


def test_whole_weights_see_everything() -> None:
    x, weight, mask, bias = operands(19, 37, 20, torch.float32)
    x[1, 5] = torch.nan
    compressed = compress_weight(weight, torch.ones_like(mask))
    y = compressed_linear(x, *compressed, weight, bias, 19, 37)
    close(y, wanted(x, weight, torch.ones_like(mask), bias), torch.float32)


@pytest.mark.parametrize(("out", "features"), [(2100, 1030), (1, 3_000_000), (0, 5), (5, 0)])
def test_compressed_weights_are_decompressed_by_blocks(out, features) -> None:
    x, weight, mask, bias = operands(out, features, 3, torch.float32)
    bitmap, values = compress_weight(weight, mask)
    y = compressed_linear(x, bitmap, values, None, bias, out, features)
    expected = F.linear(x.double(), weight.where(mask, 0).double(), bias.double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-3, atol=1e-2)
    if values.numel():  # only the device can tell
        assert compressed_linear(x, bitmap, values[1:], None, bias, out, features).isnan().all()
        back = compressed_linear_input_grad(y, bitmap, values[1:], None, out, features)
        assert back.isnan().all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_weights(shape, dtype, layout) -> None:
    if layout == "list" and dtype == torch.float32:
        pytest.skip("lists are of 16-bit weights")
    for batch in (0, 1, 9, 17, 70):
        x, weight, mask, bias = operands(*shape, batch, dtype)
        packed = pack_sparse_weight(weight, mask, layout)
        assert (packed.dtype, packed.shape[0]) == (dtype, shape[1])
        for added in (bias, None):
            y = sparse_linear(x, packed, added, shape[0])
            assert y.dtype == dtype
            close(y, wanted(x, weight, mask, added), dtype)
        odd = torch.cat([x.flatten(), x.new_zeros(1)])[1:].view(x.shape)  # not on a multiple of 16
        moved = torch.cat([packed.flatten()[:1], packed.flatten()])[1:].view(packed.shape)
        close(sparse_linear(odd, moved, None, shape[0]), wanted(odd, weight, mask), dtype)
        wide = sparse_linear(x.float(), packed, bias, shape[0])
        assert wide.dtype == torch.float32
        close(wide, wanted(x, weight, mask, bias), dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 40])
def test_packed_weights_serve_what_has_gradients(batch, layout) -> None:
    x, weight, mask, bias = operands(19, 37, batch, DTYPE[layout])
    packed, compressed = pack_sparse_weight(weight, mask, layout), compress_weight(weight, mask)
    x.requires_grad_()
    y = compressed_linear(x, *compressed, None, bias, 19, 37, packed)
    assert torch.equal(y, sparse_linear(x.detach(), packed, bias, 19))
    (back,) = torch.autograd.grad(y, x, y.detach())
    close(back, wanted(y.detach(), weight.t(), mask.t()), DTYPE[layout])


def test_weights_of_another_dtype_are_what_is_computed_in() -> None:
    x, weight, mask, bias = operands(19, 37, 5, torch.float32)
    compressed, lower = compress_weight(weight, mask), weight.where(mask, 0).bfloat16()
    x[1, 3] = math.inf
    y = compressed_linear(x.bfloat16(), *compressed, lower, bias.bfloat16(), 19, 37)
    assert y.dtype == torch.bfloat16
    close(y, wanted(x, weight, mask, bias), torch.bfloat16)


def test_packing_operators_are_registered_on_cuda() -> None:
    x, weight, mask, bias = operands(19, 37, 5, torch.float32)
    ops = torch.ops.simmim_ext
    torch.library.opcheck(ops.compress_weight.default, (weight, mask))
    for layout in LAYOUTS:
        typed = weight.to(DTYPE[layout])
        torch.library.opcheck(ops.pack_sparse_weight.default, (typed, mask, layout))
        packed = pack_sparse_weight(typed, mask, layout)
        torch.library.opcheck(ops.sparse_linear.default, (x, packed, bias, 19))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_weights_for_other_sizes(layout) -> None:
    x, weight, mask, bias = operands(19, 37, 5, DTYPE[layout])
    with pytest.raises(ValueError, match=r"layout must be 'row', .* on CUDA, got 'gather'"):
        pack_sparse_weight(weight, mask, "gather")
    with pytest.raises(ValueError, match="must be float16 or bfloat16 for layout 'list', got fl"):
        pack_sparse_weight(weight.float(), mask, "list")
    with pytest.raises(ValueError, match=r"weight must have at least one element on CUDA"):
        pack_sparse_weight(weight[:0], mask[:0], layout)
    packed = pack_sparse_weight(weight, mask, layout)
    with pytest.raises(ValueError, match=r"with in_features = 37, got \[5, 36\]"):
        sparse_linear(x[:, 1:], packed, None, 19)
    with pytest.raises(ValueError, match="packed must be what pack_sparse_weight returned on CUDA"):
        sparse_linear(x, packed.flatten(), None, 19)
    with pytest.raises(ValueError, match=r"bias must have shape \[out_features\] = \[19\]"):
        sparse_linear(x, packed, bias[1:], 19)
    with pytest.raises(ValueError, match="out_features must be as packed, got 190000"):
        sparse_linear(x, packed, None, 190_000)
    assert sparse_linear(x, packed, None, 18).isnan().all()  # only the device can tell


@pytest.fixture
def small_layers_too(monkeypatch):
    monkeypatch.setattr(choice_cuda, "SMALLEST", 1)
    if EMULATED:
        choose = choice_cuda.choose_on_cuda
        monkeypatch.setattr(
            packing,
            "choose",
            lambda p, shape, capability, dtype: choose(p, math.prod(shape), dtype),
        )


@pytest.mark.parametrize("memory", ["fast", "small"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_sparse_linear_layer(dtype, memory, small_layers_too) -> None:
    _, weight, mask, bias = operands(35, 70, 1, torch.float32)
    linear = torch.nn.Linear(70, 35, device=DEVICE)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    layer = MaskedLinear.from_linear(linear, mask).to(dtype).to_sparse(memory=memory)
    kernels = {layer.choice.kernel(batch) for batch in (1, 7, 16, 40, 300)}
    sparse_kernels = {torch.float32: {"tile", "row"}, torch.float64: set()}.get(dtype, set(LAYOUTS))
    assert kernels == ({"compressed"} if memory == "small" else {*sparse_kernels, "dense"})
    for batch in (1, 7, 16, 40, 300):
        x = operands(35, 70, batch, dtype)[0]
        y = layer(x)
        assert (y.dtype, y.device.type) == (dtype, DEVICE)
        close(y, wanted(x, weight.to(dtype), mask, bias.to(dtype)), dtype)
        with pytest.raises(ValueError, match="in_features = 70"):
            layer(x[:, 1:])
    x = operands(35, 70, 5, dtype)[0].requires_grad_()
    (grad,) = torch.autograd.grad(layer(x).sum(), x)
    close(grad, weight.to(dtype).double().where(mask, 0).sum(0).expand(5, -1), dtype)
    assert torch.equal(layer.to_dense().weight, weight.to(dtype).where(mask, 0))


@pytest.mark.skipif(EMULATED, reason="needs two devices")
@pytest.mark.parametrize("dtype", DTYPES)
def test_stored_form_is_the_same_on_both_devices(dtype) -> None:
    _, weight, mask, _ = operands(1100, 1030, 1, dtype)
    linear = torch.nn.Linear(1030, 1100, bias=False, device=DEVICE, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
    layer = SparseLinear.from_linear(linear, mask)
    on_cpu = SparseLinear.from_linear(linear.cpu(), mask.cpu())
    assert "dense from batch" in layer.choice.kernels_text()
    for name, value in layer.state_dict().items():
        assert torch.equal(value.cpu(), on_cpu.state_dict()[name])
    moved = on_cpu.cuda()
    assert moved.choice == layer.choice
    x = operands(1100, 1030, 5, dtype)[0]
    torch.testing.assert_close(moved(x), layer(x), rtol=0, atol=0)
    with torch.autocast("cuda", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
