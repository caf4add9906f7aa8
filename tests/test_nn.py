"""masked_linear and MaskedLinear; the operators' answers and errors are in the case table."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from simmim_ext import CompressionResult
from simmim_ext.nn import MaskedLinear, SparseLinear, accelerate, masked_linear, strip


def uneven_mask(out_features: int, in_features: int, density: float = 0.2) -> torch.Tensor:
    """As pruning leaves it: rows of every density, among them empty and full ones."""
    torch.manual_seed(0)
    share = torch.rand(out_features, 1) * 2 * density
    share[::5], share[1::7] = 0, 1
    return torch.rand(out_features, in_features) < share


def make_layer(out_features: int = 9, in_features: int = 21, bias: bool = True) -> MaskedLinear:
    torch.manual_seed(1)
    linear = torch.nn.Linear(in_features, out_features, bias)
    return MaskedLinear.from_linear(linear, uneven_mask(out_features, in_features))


def check_against_float64(
    batch: int, mask: torch.Tensor, *, grad_tolerance: float = 1e-4
) -> tuple[torch.Tensor, ...]:
    """Checks value and gradients for random x, weight and bias, which it returns."""
    tensors = [torch.randn(batch, mask.shape[1]), torch.randn(mask.shape), torch.randn(len(mask))]
    x, weight, bias = (t.requires_grad_() for t in tensors)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    y = masked_linear(x, weight, mask, bias)
    expected = F.linear(exact[0], exact[1] * mask, exact[2])
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)
    grad = torch.randn_like(y)
    actual = torch.autograd.grad(y, (x, weight, bias), grad)
    for a, e in zip(actual, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-5, atol=grad_tolerance)
    assert actual[1][~mask].count_nonzero() == 0
    return x, weight, bias


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (63, 65), (300, 211)])
@pytest.mark.parametrize("batch", [0, 1, 3, 40])
@pytest.mark.parametrize("kept", ["none", "all", "uneven"])
def test_value_and_gradients_against_float64(shape, batch, kept) -> None:
    mask = {
        "none": torch.zeros(shape).bool(),
        "all": torch.ones(shape).bool(),
        "uneven": uneven_mask(*shape),
    }[kept]
    check_against_float64(batch, mask)


@pytest.mark.parametrize("density", [0.03, 0.3])
def test_packed_products_under_every_capability(density, cpu_capability) -> None:
    """Layers and batches large enough that only what is kept is multiplied."""
    mask = uneven_mask(301, 213, density)
    torch.manual_seed(0)
    x, weight, bias = check_against_float64(130, mask, grad_tolerance=2e-4)
    with torch.no_grad():
        x[7, 11] = torch.nan
        reached = masked_linear(x, weight, mask, bias).isnan()
    assert torch.equal(reached[7], mask[:, 11])
    assert not reached[:7].any()
    assert not reached[8:].any()


@pytest.mark.parametrize("rows", [1, 3, 700])
def test_sampled_product_does_not_depend_on_threads(rows, threads) -> None:
    mask = uneven_mask(rows, 500)
    grad, x = torch.randn(901, rows), torch.randn(901, 500)
    threads(1)
    alone = torch.ops.simmim_ext.masked_linear_weight_grad(grad, x, mask)
    threads(3)
    assert torch.equal(torch.ops.simmim_ext.masked_linear_weight_grad(grad, x, mask), alone)


def test_gradients_of_gradients() -> None:
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 4), (2, 4), (2,))
    )
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0]], dtype=torch.bool)
    assert torch.autograd.gradgradcheck(
        lambda x, weight, bias: masked_linear(x, weight, mask, bias), (x, weight, bias)
    )


@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_only_kept_weights_see_nan_and_infinity(special) -> None:
    mask = torch.tensor([[True, False, True], [False, True, True]])
    weight, x = torch.ones(2, 3), torch.ones(1, 3)
    x[0, 0] = special
    y = masked_linear(x, weight, mask)
    torch.testing.assert_close(y[:, 0], F.linear(x, weight)[:, 0], equal_nan=True)
    assert y[0, 1] == 2
    weight[1, 0] = special  # masked, so it may be anything
    assert masked_linear(torch.ones(1, 3), weight, mask)[0, 1] == 2
    x = torch.ones(1, 3, requires_grad=True)
    masked_linear(x, torch.ones(2, 3), mask).backward(torch.tensor([[special, 1.0]]))
    torch.testing.assert_close(x.grad, torch.tensor([[special, 1.0, special]]), equal_nan=True)


def test_autocast_computes_in_bfloat16() -> None:
    layer, x = make_layer(), torch.randn(4, 21)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        expected = F.linear(x, layer.weight * layer.mask, layer.bias)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)
    y.sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad[~layer.mask].count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_layer_in_other_dtypes(dtype) -> None:
    layer, x = make_layer().to(dtype), torch.randn(4, 21, dtype=dtype)
    expected = F.linear(x.double(), (layer.weight * layer.mask).double(), layer.bias.double())
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(layer(x).double(), expected, rtol=tolerance, atol=tolerance)
    assert layer.mask.dtype == torch.bool


def test_training_leaves_masked_weights_alone() -> None:
    layer = make_layer()
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(16, 21)).square().mean().backward()
        optimizer.step()
    changed = layer.weight != before
    assert not changed[~layer.mask].any()
    assert changed[layer.mask].all()


def test_from_linear_copies() -> None:
    linear = torch.nn.Linear(21, 9, bias=False).eval()
    linear.weight.requires_grad_(False)
    mask = uneven_mask(9, 21)
    layer = MaskedLinear.from_linear(linear, mask)
    mask.logical_not_()
    assert torch.equal(layer.mask, uneven_mask(9, 21))
    assert torch.equal(layer.weight, linear.weight.where(layer.mask, 0))
    assert list(layer.state_dict()) == ["weight", "mask"]
    assert layer.weight.data_ptr() != linear.weight.data_ptr()
    assert layer.bias is None
    assert not layer.training
    assert not layer.weight.requires_grad
    again = MaskedLinear.from_linear(layer, layer.mask)
    assert torch.equal(again(torch.ones(21)), layer(torch.ones(21)))


@pytest.mark.parametrize("assign", [False, True])
def test_loading_makes_masked_weights_zero(assign) -> None:
    layer, mask = MaskedLinear(21, 9), uneven_mask(9, 21)
    state = {**layer.state_dict(), "mask": mask}
    state = {name: value.clone() for name, value in state.items()}
    before = copy.deepcopy(state)
    layer.load_state_dict(state, assign=assign)
    assert torch.equal(layer.weight, before["weight"].where(mask, 0))
    assert isinstance(layer.weight, torch.nn.Parameter)
    assert all(torch.equal(state[name], value) for name, value in before.items())


@pytest.mark.parametrize("layer", ["linear1", "linear2"])
def test_torchs_fused_transformer_path_heeds_the_mask(layer) -> None:
    torch.manual_seed(0)
    model = torch.nn.TransformerEncoderLayer(16, 2, 24, batch_first=True).eval()
    linear, x = getattr(model, layer), torch.randn(2, 5, 16)
    setattr(model, layer, MaskedLinear.from_linear(linear, uneven_mask(*linear.weight.shape)))
    expected = strip(model)(x)
    for other in (model, accelerate(model)):
        torch.testing.assert_close(other(x), expected)
        with torch.no_grad():  # takes the fused path, which reads the weight itself
            torch.testing.assert_close(other(x), expected)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_layer_is_copied_whole(clone) -> None:
    layer, x = make_layer(), torch.randn(2, 21)
    assert torch.equal(clone(layer)(x), layer(x))
    assert set(layer.state_dict()) == {"weight", "bias", "mask"}


def test_fresh_layer_is_a_linear() -> None:
    torch.manual_seed(3)
    layer = MaskedLinear(6, 4)
    torch.manual_seed(3)
    linear = torch.nn.Linear(6, 4)
    x = torch.randn(2, 6)
    torch.testing.assert_close(layer(x), linear(x))
    assert "in_features=6, out_features=4, bias=True, density=1" in repr(layer)
    linear.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "mask"})


@pytest.mark.parametrize("kind", [MaskedLinear, SparseLinear])
def test_sizes_may_be_numpys(kind) -> None:
    layer = kind(np.prod([2, 3]), np.int32(4))
    assert layer(torch.randn(5, 6)).shape == (5, 4)
    assert {type(layer.in_features), type(layer.out_features)} == {int}


def test_export_and_compile() -> None:
    layer, x = make_layer(), torch.randn(3, 21)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(layer, (x,), dynamic_shapes=((batch, None),))
    for rows in (x, torch.randn(7, 21)):
        assert torch.equal(exported.module()(rows), layer(rows))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(x).sum().backward()
    grad = layer.weight.grad.clone()
    layer.zero_grad()
    layer(x).sum().backward()
    assert torch.equal(grad, layer.weight.grad)


def test_compiles_once_for_batches_of_any_size() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    layer = make_layer()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for batch in (5, 6, 7):
        x = torch.randn(batch, 21, requires_grad=True)
        compiled(x).sum().backward()
        assert layer.bias.grad.eq(batch).all()
        layer.zero_grad()
    assert counter.frame_count == 1


def test_fx_traces_the_layer() -> None:
    model, x = torch.nn.Sequential(make_layer(), torch.nn.ReLU()), torch.randn(3, 21)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


def test_concurrent_calls() -> None:
    layer, x = make_layer(200, 300), torch.randn(64, 300)
    with torch.no_grad():
        expected, results = layer(x), {}
        workers = [
            threading.Thread(target=lambda i=i: results.update({i: layer(x)})) for i in range(4)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(results) == 4
    for y in results.values():
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize(
    ("mask", "error", "text"),
    [
        (
            torch.ones(21, 9).bool(),
            ValueError,
            r"mask must have weight's shape \[9, 21\], got \[21, 9\]",
        ),
        (torch.ones(9, 21), TypeError, "mask must be a bool tensor, got torch.float32"),
        ([[True]], TypeError, "mask must be a bool tensor, got list"),
    ],
)
def test_from_linear_rejects_masks(mask, error, text) -> None:
    with pytest.raises(error, match="^MaskedLinear.from_linear: " + text):
        MaskedLinear.from_linear(torch.nn.Linear(21, 9), mask)


def test_from_linear_rejects_other_layers() -> None:
    text = "^MaskedLinear.from_linear: linear must be an nn.Linear or a MaskedLinear, got Conv1d$"
    with pytest.raises(TypeError, match=text):
        MaskedLinear.from_linear(torch.nn.Conv1d(1, 1, 1), torch.ones(1, 1).bool())


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: masked_linear(None, torch.ones(3, 4), torch.ones(3, 4).bool()),
            TypeError,
            "masked_linear: x must be a tensor, got NoneType",
        ),
        (
            lambda: masked_linear(torch.ones(4), torch.ones(3, 4), torch.ones(3, 4).bool(), 0.0),
            TypeError,
            "masked_linear: bias must be a tensor or None, got float",
        ),
        (
            lambda: masked_linear(*[torch.ones(4, 4).to(torch.float8_e5m2)] * 2, torch.eye(4) > 0),
            TypeError,
            "masked_linear: weight must be float32, float64, float16 or bfloat16, got float8_e5m2",
        ),
        (
            lambda: MaskedLinear(-1, 3),
            ValueError,
            "MaskedLinear: in_features must be an int of at least 0, got -1",
        ),
        (
            lambda: MaskedLinear(3, "4"),
            ValueError,
            "MaskedLinear: out_features must be an int of at least 0, got '4'",
        ),
        (
            lambda: SparseLinear(2.5, 3),
            ValueError,
            "SparseLinear: in_features must be an int of at least 0, got 2.5",
        ),
        (
            lambda: SparseLinear(3, -1),
            ValueError,
            "SparseLinear: out_features must be an int of at least 0, got -1",
        ),
        (
            lambda: accelerate("model"),
            TypeError,
            "accelerate: model must be a torch.nn.Module, got str",
        ),
        (lambda: strip(None), TypeError, "strip: model must be a torch.nn.Module, got NoneType"),
        (
            lambda: accelerate(CompressionResult(torch.nn.ReLU(), {})),
            TypeError,
            "accelerate: model must be a torch.nn.Module, got CompressionResult; give its attribute"
            " model",
        ),
    ],
)
def test_bad_arguments(call, error, text) -> None:
    with pytest.raises(error, match=f"^{text}$"):
        call()
