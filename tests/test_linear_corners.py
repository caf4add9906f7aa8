"""The linear operators where other tests do not look: transforms, odd masks, empty layers."""

import math
import re
import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from simmim_ext.nn import MaskedLinear, SparseLinear, masked_linear
from simmim_ext.ops.compressed_linear import compress_weight, compressed_linear, decompress_weight
from simmim_ext.ops.sparse_linear import pack_sparse_weight, sparse_linear

# torch's own derivatives of linear compile something by it.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script")

GENERATOR = torch.Generator().manual_seed(0)
X, WEIGHT = (torch.randn(shape, generator=GENERATOR) for shape in ((3, 4), (2, 4)))
MASK = torch.rand(2, 4, generator=GENERATOR) < 0.6


def masked(x: Tensor, weight: Tensor) -> Tensor:
    return masked_linear(x, weight, MASK)


def compressed(x: Tensor, weight: Tensor) -> Tensor:
    return compressed_linear(x, *compress_weight(WEIGHT, MASK), None, None, 2, 4)


def reference(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight.where(MASK, 0))


Function = Callable[[Tensor, Tensor], Tensor]
TRANSFORMS = {
    "jvp": lambda f: jvp(lambda x: f(x, WEIGHT), (X,), (X.sin(),))[1],
    "jacfwd": lambda f: jacfwd(f)(X, WEIGHT),
    "jacrev": lambda f: jacrev(f)(X, WEIGHT),
    "grad": lambda f: grad(lambda x: f(x, WEIGHT).square().sum())(X),
    "vmap of grad": lambda f: vmap(grad(lambda x: f(x, WEIGHT).square().sum()))(X),
    "of the weight": lambda f: jvp(lambda w: f(X, w), (WEIGHT,), (WEIGHT.cos(),))[1],
    "Hessian": lambda f: jacfwd(jacrev(lambda w: f(X, w).square().sum()))(WEIGHT),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("function", [masked, compressed])
def test_transforms_of_torch_func(name: str, function: Function) -> None:
    if function is compressed and name in ("of the weight", "Hessian"):
        return  # it is not a function of a weight
    torch.testing.assert_close(TRANSFORMS[name](function), TRANSFORMS[name](reference))


def test_gradients_under_transforms() -> None:
    """The two products that are gradients, and their own derivatives."""
    ops = torch.ops.simmim_ext
    y = torch.randn(3, 2, generator=GENERATOR)
    for op, plain in (
        (lambda g: ops.masked_linear_input_grad(g, WEIGHT, MASK), lambda g: g @ (WEIGHT * MASK)),
        (lambda g: ops.masked_linear_weight_grad(g, X, MASK), lambda g: (g.T @ X) * MASK),
    ):
        torch.testing.assert_close(jacfwd(op)(y), jacfwd(plain)(y))
        torch.testing.assert_close(jacrev(op)(y), jacrev(plain)(y))


def test_forward_mode() -> None:
    layer = SparseLinear.from_linear(torch.nn.Linear(512, 512), torch.rand(512, 512) < 0.05)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, X.sin())
        for function in (masked, compressed):
            tangent = forward_ad.unpack_dual(function(dual, WEIGHT)).tangent
            torch.testing.assert_close(tangent, reference(X.sin(), WEIGHT))
        assert layer.choice.kernel(3) != "dense"
        x = torch.randn(3, 512)
        tangent = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, x.sin()))).tangent
        torch.testing.assert_close(tangent, F.linear(x.sin(), layer.weight), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("memory", ["fast", "small"])
@pytest.mark.parametrize("columns", [1, 512])
def test_layers_under_transforms(columns: int, memory: str) -> None:
    """Also where a kernel without derivatives serves, and one of whole rows and columns."""
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(512, columns, generator=generator) < 0.05).expand(512, 512)
    layer = SparseLinear.from_linear(torch.nn.Linear(512, 512), mask, memory=memory)
    x, dense = torch.randn(3, 512, generator=generator), layer.to_dense().requires_grad_(False)
    calls: dict[str, Callable[[Callable[[Tensor], Tensor]], Tensor]] = {
        "vmap": lambda f: vmap(f)(x),
        "vmap of what requires a gradient": lambda f: torch.autograd.grad(
            vmap(f)(y := x.clone().requires_grad_()).sin().sum(), y
        )[0],
        "grad of vmap": lambda f: grad(lambda x: vmap(f)(x).sin().sum())(x),
        "vmap of grad": lambda f: vmap(grad(lambda x: f(x).sin().sum()))(x),
        "jvp": lambda f: jvp(f, (x,), (x.cos(),))[1],
        "jacfwd": lambda f: jacfwd(f)(x[0]),
        "jacrev": lambda f: jacrev(f)(x[0]),
    }
    for name, call in calls.items():
        actual, expected = call(layer), call(dense)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4, msg=name)
        with torch.no_grad():
            torch.testing.assert_close(vmap(layer)(x), dense(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("byte", [2, 128, 255])
def test_masks_whose_bytes_are_others_than_1(byte: int, cpu_capability: str) -> None:
    """As torch takes them: they come from viewing uint8 as bool."""
    generator = torch.Generator().manual_seed(byte)
    weight, x = torch.randn(70, 300, generator=generator), torch.randn(40, 300, generator=generator)
    kept = torch.rand(70, 300, generator=generator) < 0.1
    odd = (kept * torch.tensor(byte, dtype=torch.uint8)).view(torch.bool)
    expected = F.linear(x, weight.where(kept, 0))
    for layout in ("element", "gather", "window", "planes"):
        packed = pack_sparse_weight(weight, odd, layout)
        assert torch.equal(packed, pack_sparse_weight(weight, kept, layout))
        torch.testing.assert_close(sparse_linear(x, packed, None, 70), expected, rtol=0, atol=1e-4)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        y = masked_linear(x.to(dtype), weight.to(dtype), odd)
        assert torch.equal(y, masked_linear(x.to(dtype), weight.to(dtype), kept))
    bitmap, values = compress_weight(weight, odd)
    assert torch.equal(decompress_weight(bitmap, values, 70, 300), weight.where(kept, 0))
    y = torch.randn(40, 70)
    products = torch.ops.simmim_ext
    for mask in (odd, kept):
        weight_grad = products.masked_linear_weight_grad(y, x, mask)
        torch.testing.assert_close(weight_grad, (y.T @ x) * kept, rtol=0, atol=1e-4)
        input_grad = products.masked_linear_input_grad(y, weight, mask)
        torch.testing.assert_close(input_grad, y @ weight.where(kept, 0), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("features", "out"), [(3, 0), (0, 2), (0, 0)])
@pytest.mark.parametrize("shape", [(5,), (2, 0), ()])
def test_layers_without_inputs_or_outputs(features: int, out: int, shape: tuple[int, ...]) -> None:
    layer = MaskedLinear(features, out)
    with torch.no_grad():
        layer.bias += math.inf  # for which rows are looked at again
    x = torch.randn(*shape, features, requires_grad=True)
    expected = layer.bias.expand(*shape, out)
    small = SparseLinear.from_linear(layer, memory="small")
    for made in (layer, small):
        assert torch.equal(made(x), expected)
    layer(x).sum().backward()
    assert layer.bias.grad.tolist() == [math.prod(shape)] * out
    small(x).sum().backward()


def test_float16_rows_with_infinity_are_added_up_in_float32() -> None:
    x, weight = torch.tensor([[math.inf, 300, 300]]).half(), torch.tensor([[1, 300, -300.0]]).half()
    mask = torch.tensor([[False, True, True]])
    assert masked_linear(x, weight, mask).tolist() == [[0.0]]


def kept_sums(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
    """In float64, of the kept weights alone."""
    products = weight.double() * x.double()[:, None]
    return products.where(mask, 0).sum(2) + bias.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("in_features", [63, 64])
@pytest.mark.parametrize("bias", [0.0, -math.inf])
def test_rows_with_infinity_and_nan_among_others(
    dtype: torch.dtype, in_features: int, bias: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = MaskedLinear(in_features, 40, dtype=dtype)
    mask = torch.rand(40, in_features, generator=generator) < 0.8
    with torch.no_grad():
        layer.mask.copy_(mask)
        layer.bias[3] = bias
        layer.weight[7, :9] = 0  # kept zeros among them
        x = torch.randn(33, in_features, generator=generator).to(dtype)
        for row, value in ((0, math.nan), (4, math.inf), (5, -math.inf), (32, math.nan)):
            x[row, row % 7] = value
        x[20, 1:3] = torch.tensor([math.inf, -math.inf])
        expected = kept_sums(x, layer.weight, mask, layer.bias)
        tolerance = 16 * torch.finfo(dtype).eps
        for made in (layer, layer.to_sparse(), layer.to_sparse(memory="small")):
            y = made(x).double()
            torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_an_infinite_bias_costs_no_time() -> None:
    """As it is used to rule out a class."""
    layer, x = MaskedLinear(512, 512), torch.randn(512, 512)
    layer.mask.copy_(torch.rand(512, 512) < 0.9)
    layers = (layer, layer.to_sparse(memory="small"))

    def least(call: Callable[[Tensor], Tensor], x: Tensor) -> float:
        def taken() -> float:
            begin = time.thread_time()
            call(x)
            return time.thread_time() - begin

        return min(taken() for _ in range(5))

    with torch.no_grad():
        clean = [least(made, x) for made in layers]
        for made, before in zip(layers, clean, strict=True):
            made.bias[3] = -math.inf
            assert least(made, x) < 8 * before  # each row again took 60 times as long
        assert least(layer, x.where(torch.rand(512, 512) < 0.99, math.inf)) < 16 * clean[0]


def saved(call: Callable[[], Tensor]) -> list[tuple[int, ...]]:
    """The shapes of what a call saves for its gradients."""
    found: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: found.append(tuple(t.shape)) or t, lambda t: t
    ):
        call()
    return found


@pytest.mark.parametrize(
    ("needed", "kept"), [(0, [(2, 4), (2, 4)]), (1, [(3, 4), (2, 4)]), (2, [(2, 4)])]
)
def test_gradients_save_what_they_need_alone(needed: int, kept: list[tuple[int, ...]]) -> None:
    tensors = [torch.randn(3, 4), torch.randn(2, 4), torch.randn(2)]
    tensors[needed].requires_grad_()
    x, weight, bias = tensors
    assert saved(lambda: masked_linear(x, weight, MASK, bias)) == kept
    expected = torch.autograd.grad(F.linear(x, weight.where(MASK, 0), bias).sum(), tensors[needed])
    y = masked_linear(x, weight, MASK, bias).sum()
    with torch.no_grad():
        tensors[needed].add_(1)  # of which its own gradient is no function
    torch.testing.assert_close(torch.autograd.grad(y, tensors[needed]), expected)
    y = torch.randn(3, 2, requires_grad=True)
    ops = torch.ops.simmim_ext
    assert saved(lambda: ops.masked_linear_input_grad(y, WEIGHT, MASK)) == [(2, 4), (2, 4)]
    assert saved(lambda: ops.masked_linear_weight_grad(y, X, MASK)) == [(3, 4), (2, 4)]


def test_sizes_whose_product_is_no_int64() -> None:
    text = "decompress_weight: out_features * in_features must be below 2^63, got 4294967296 and"
    with pytest.raises(ValueError, match=re.escape(text)):
        decompress_weight(torch.empty(0).byte(), torch.empty(0), 2**32, 2**32)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: MaskedLinear(4, 2, device="meta")(X),
         "masked_linear: weight must be on x's device cpu, got meta"),
        (lambda: MaskedLinear(4, 2)(X.to("meta")),
         "masked_linear: weight must be on x's device meta, got cpu"),
        (lambda: masked_linear(X, WEIGHT, MASK, WEIGHT[:, 0].to("meta")),
         "masked_linear: bias must be on x's device cpu, got meta"),
        (lambda: SparseLinear(4, 2, device="meta")(X),
         "compressed_linear: bitmap must be on x's device cpu, got meta"),
        (lambda: sparse_linear(X, torch.empty(9, dtype=torch.uint8, device="meta"), None, 2),
         "sparse_linear: packed must be on x's device cpu, got meta"),
    ],
)  # fmt: skip
def test_what_is_on_the_meta_device_gives_no_values(call: Callable[[], Tensor], text: str) -> None:
    """A layer whose weights were not loaded, above all: nobody would have written its result."""
    with pytest.raises(ValueError, match=f"^{text}$"):
        call()


def sparse_layer(kernels: int) -> SparseLinear:
    torch.manual_seed(0)
    linear = torch.nn.Linear(300, 300)
    memory = "small" if kernels == 1 else "fast"
    layer = SparseLinear.from_linear(linear, torch.rand(300, 300) < 0.1, memory=memory)
    assert (len(layer.choice.kernels) == 1) == (kernels == 1)
    return layer


@pytest.mark.parametrize("kernels", [1, 2])
@pytest.mark.parametrize("x", [None, 1.0, [[0.0] * 300]], ids=["None", "float", "list"])
def test_sparse_layers_take_tensors(kernels: int, x: object) -> None:
    text = f"SparseLinear: x must be a tensor, got {type(x).__name__}"
    with pytest.raises(TypeError, match=text):
        sparse_layer(kernels)(x)


@pytest.mark.parametrize("kernels", [1, 2])
@pytest.mark.parametrize("batch", [1, 16])
def test_sparse_layers_are_not_trained(kernels: int, batch: int) -> None:
    layer = sparse_layer(kernels)
    layer.values.requires_grad_()
    text = "values and weight must not require a gradient; train a MaskedLinear"
    with pytest.raises(NotImplementedError, match=text):
        layer(torch.randn(batch, 300))


@pytest.mark.parametrize("kernels", [1, 2])
def test_fx_traces_sparse_layers(kernels: int) -> None:
    model = torch.nn.Sequential(sparse_layer(kernels), torch.nn.ReLU())
    traced = torch.fx.symbolic_trace(model)
    for batch in (1, 16):
        x = torch.randn(batch, 300)
        torch.testing.assert_close(traced(x), model(x))
