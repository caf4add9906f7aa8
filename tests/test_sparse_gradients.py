"""Gradients through a SparseLinear: by the weight that it holds, or by as little as it takes."""

import pytest
import torch
from sparse_layers import make, patterns_have_their_kernels  # noqa: F401
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from simmim_ext.nn import SparseLinear
from simmim_ext.ops.compressed_linear import (
    compress_weight,
    compressed_linear,
    compressed_linear_input_grad,
)
from simmim_ext.ops.sparse_linear import pack_sparse_weight

# torch's own derivatives of linear compile something by it, and its opcheck reads .grad of copies.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

KERNELS = {"half": "dense", "random": "element", "uneven": "element", "block": "block"}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.float16: 0.02, torch.bfloat16: 0.1}


class Called(TorchDispatchMode):
    """The names of our operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "simmim_ext":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def layer_of(kernel: str, **kwargs) -> SparseLinear:
    """One that a kernel of that name serves at batch 20."""
    size = (100, 130) if kernel == "dense" else (300, 260)
    layer = make(*size, next(m for m, k in KERNELS.items() if k == kernel), **kwargs)
    assert layer.choice.kernel(20) == kernel
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory", ["fast", "small"])
@pytest.mark.parametrize("mask", ["none", "all", "half", "random", "block", "rows/columns"])
@pytest.mark.parametrize("batch", [0, 1, 20, 150])  # few and many beside what is kept
def test_value_against_float64(batch, mask, memory, dtype) -> None:
    layer = make(300, 260, mask, memory=memory, dtype=dtype)
    x = torch.randn(2, batch, 260).to(dtype).requires_grad_()
    grad = torch.randn(2, batch, 300).to(dtype)
    (actual,) = torch.autograd.grad(layer(x), x, grad)
    assert actual.dtype == dtype
    expected = grad.double() @ layer.weight.double()
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_through_half_precision(dtype) -> None:
    layer, x = make(300, 260, "random", dtype=dtype), torch.randn(20, 260, requires_grad=True)
    (actual,) = torch.autograd.grad(layer(x).sum(), x)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(
        actual, layer.weight.float().sum(0).expand(20, -1), rtol=0.05, atol=0.1
    )


@pytest.mark.parametrize("kernel", ["dense", "element", "block"])
def test_the_kernel_at_hand_serves_what_has_a_gradient(kernel) -> None:
    layer = layer_of(kernel)
    x = torch.randn(20, layer.in_features)
    y = layer(x)
    with Called() as called:
        tracked = layer(x.requires_grad_())
        tracked.sum().backward()
    assert torch.equal(tracked, y)
    assert "decompress_weight" not in called.names
    assert called.names[-1] == "compressed_linear_input_grad"


def test_a_held_weight_is_saved_and_no_other() -> None:
    layer, found = layer_of("dense"), []
    x = torch.randn(20, layer.in_features, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t) or t, lambda t: t):
        y = layer(x)
    held = layer._made.kernels[-1].dense.weight
    assert [t.data_ptr() for t in found if t.dim() == 2] == [held.data_ptr()]
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, held.sum(0).expand(20, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory", ["fast", "small"])
@pytest.mark.parametrize("mask", ["half", "random", "block", "rows/columns"])
@pytest.mark.parametrize("batch", [1, 20])
def test_a_bias_is_differentiated_by_without_x(batch, mask, memory) -> None:
    """Whatever kernel serves, as biases alone may be tuned, and by transforms of torch.func."""
    layer, x = make(300, 260, mask, memory=memory), torch.randn(batch, 260)

    def total(bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"bias": bias}, (x,)).sum()

    expected = torch.full((300,), float(batch))
    assert torch.equal(torch.func.grad(total)(layer.bias), expected)
    layer.bias.requires_grad_()
    layer(x).sum().backward()
    assert torch.equal(layer.bias.grad, expected)
    with torch.no_grad():
        y = layer(x)
    torch.testing.assert_close(layer(x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("special", [torch.nan, torch.inf])
@pytest.mark.parametrize("memory", ["fast", "small"])
@pytest.mark.parametrize("kernel", ["dense", "element", "block"])
@pytest.mark.parametrize("batch", [2, 20, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_weights_pass_no_special_gradient(dtype, batch, kernel, memory, special) -> None:
    layer = layer_of(kernel, memory=memory) if memory == "fast" else make(100, 130, memory=memory)
    layer = layer.to(dtype)
    kept = layer.weight[3] != 0
    x = torch.randn(batch, layer.in_features).to(dtype).requires_grad_()
    grad = torch.randn(batch, layer.out_features).to(dtype)
    (clean,) = torch.autograd.grad(layer(x), x, grad)
    grad[1, 3] = special
    (actual,) = torch.autograd.grad(layer(x), x, grad)
    assert torch.equal(actual[1].isfinite(), ~kept)
    reached = torch.zeros_like(actual, dtype=torch.bool)
    reached[1] = True
    torch.testing.assert_close(actual[~reached], clean[~reached], rtol=1e-3, atol=1e-3)
    grad[1, 3] = 0
    (without,) = torch.autograd.grad(layer(x), x, grad)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual[1][~kept], without[1][~kept], rtol=tolerance, atol=tolerance)


def operands(dtype: torch.dtype, layout: str | None) -> tuple[Tensor, tuple, Tensor | None]:
    """A dense weight, what is given of it, and it packed."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 7, generator=generator, dtype=dtype)
    mask = torch.rand(5, 7, generator=generator) < 0.4
    packed = pack_sparse_weight(weight, mask, layout) if layout else None
    return weight.where(mask, 0), compress_weight(weight, mask), packed


@pytest.mark.parametrize("given", [False, True])
def test_derivatives_of_every_order(given) -> None:
    weight, compressed, _ = operands(torch.float64, None)
    dense, bias = weight if given else None, torch.randn(5, dtype=torch.float64)
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)

    def forward(x: Tensor) -> Tensor:
        return compressed_linear(x, *compressed, dense, bias, 5, 7)

    def backward(grad: Tensor) -> Tensor:
        return compressed_linear_input_grad(grad, *compressed, dense, 5, 7)

    for function, t in ((forward, x), (backward, grad)):
        cubed = lambda t, f=function: f(t).pow(3)  # noqa: E731
        assert torch.autograd.gradcheck(cubed, (t,), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(cubed, (t,))
        torch.testing.assert_close(torch.func.jacrev(function)(t), torch.func.jacfwd(function)(t))


@pytest.mark.parametrize("layout", ["element", "gather", "window"])
def test_packed_weights_have_gradients_of_gradients(layout) -> None:
    weight, compressed, packed = operands(torch.float32, layout)
    x, bias = torch.randn(3, 7, requires_grad=True), torch.randn(5, requires_grad=True)

    def second(y: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(y.pow(3).sum(), (x, bias), create_graph=True)
        return (*first, *torch.autograd.grad(first[0].square().sum(), (x, bias)))

    actual = second(compressed_linear(x, *compressed, None, bias, 5, 7, packed))
    expected = second(torch.nn.functional.linear(x, weight, bias))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    arguments = (x, *compressed, None, bias, 5, 7, packed)
    torch.library.opcheck(torch.ops.simmim_ext.compressed_linear.default, arguments)


def test_weights_of_another_dtype_are_what_is_computed_in() -> None:
    weight, compressed, _ = operands(torch.float32, None)
    x, bias = torch.randn(3, 7).bfloat16().requires_grad_(), torch.randn(5).bfloat16()
    lower = weight.bfloat16()
    arguments = (x, *compressed, lower, bias, 5, 7)
    y = compressed_linear(*arguments)
    assert torch.equal(y, torch.nn.functional.linear(x, lower, bias))
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, lower.sum(0).expand(3, -1), rtol=0.02, atol=0.02)
    torch.library.opcheck(torch.ops.simmim_ext.compressed_linear.default, arguments)


@pytest.mark.parametrize("mask", ["half", "random", "block"])
def test_compiled_layers_have_gradients(mask) -> None:
    layer = make(300, 260, mask)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, grad = torch.randn(20, 260, requires_grad=True), torch.randn(20, 300)
    y = compiled(x)
    torch.testing.assert_close(y, layer(x))
    (actual,) = torch.autograd.grad(y, x, grad)
    torch.testing.assert_close(actual, grad @ layer.weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", ["dense", "element"])
def test_transforms_are_compiled_whole_with_the_layer(kernel) -> None:
    layer, x = layer_of(kernel), torch.randn(20, 130 if kernel == "dense" else 260)
    gradient = torch.func.grad(lambda x: layer(x).square().sum())
    torch._dynamo.reset()
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), gradient(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("out_features", "in_features"),
    [(1, 1), (8, 64), (9, 65), (17, 600), (7, 512), (40, 1100), (0, 5), (5, 0)],
)
@pytest.mark.parametrize("batch", [0, 1, 3, 16, 33])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_gradients_of_few_samples(density, batch, out_features, in_features, cpu_capability):
    """Rows, columns and samples that fill no block, and of several; no value is read beyond."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out_features, in_features, generator=generator)
    mask = torch.rand(out_features, in_features, generator=generator) < density
    grad = torch.randn(batch, out_features, generator=generator)
    compressed = compress_weight(weight, mask)
    actual = compressed_linear_input_grad(grad, *compressed, None, out_features, in_features)
    expected = grad.double() @ weight.where(mask, 0).double()
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_few_samples_are_the_same_on_any_number_of_threads(threads):
    weight, mask = torch.randn(900, 1100), torch.rand(900, 1100) < 0.2
    compressed, grad = compress_weight(weight, mask), torch.randn(20, 900)
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(compressed_linear_input_grad(grad, *compressed, None, 900, 1100))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_masked_weights_give_nothing_to_gradients_of_few_samples(special, cpu_capability):
    weight, mask = torch.randn(20, 70), torch.rand(20, 70) < 0.3
    mask[5] = torch.arange(70) < 10
    grad = torch.randn(3, 20)
    grad[1, 5] = special
    found = compressed_linear_input_grad(grad, *compress_weight(weight, mask), None, 20, 70)
    assert not found[1, :10].isfinite().any()
    grad[1, 5] = 0
    expected = grad @ weight.where(mask, 0)
    torch.testing.assert_close(found[1, 10:], expected[1, 10:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=1e-4, atol=1e-4)
