"""SparseLinear under autocast, where a dense weight is cast once."""

import copy
from collections.abc import Callable

import pytest
import torch
from sparse_layers import MASKS, make, patterns_have_their_kernels  # noqa: F401
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from simmim_ext.nn import SparseLinear

DENSE = {"all": "dense", "rows/columns": "compact"}


class Casts(TorchDispatchMode):
    """The numbers of elements that were cast."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.found.append(args[0].numel())
        return func(*args, **(kwargs or {}))


def lower(layer: Callable[[Tensor], Tensor], x: Tensor, dtype=torch.bfloat16) -> Tensor:
    with torch.autocast("cpu", dtype):
        return layer(x)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("mask", DENSE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_cast_once_and_values_never(dtype, mask, mode) -> None:
    layer, x = make(259, 131, mask), torch.randn(20, 131)
    assert layer.choice.kernel(20) == DENSE[mask]
    kept, before = MASKS[mask](259, 131), layer.nbytes
    weights = int(kept.any(0).sum() * kept.any(1).sum())
    with mode():
        expected = lower(layer.to_dense(), x, dtype)
        for times in (1, 0, 0):
            with Casts() as casts:
                y = lower(layer, x, dtype)
            assert y.dtype == dtype
            close(y, expected)
            assert [n for n in casts.found if n > x.numel()] == times * [weights]
    assert layer.nbytes == before + 2 * weights


def test_what_is_computed_is_what_linear_computes() -> None:
    layer = make(259, 131, "all")
    for batch in (4, 20):  # one sample may have a sparse kernel even so
        assert layer.choice.kernel(batch) == "dense"
        x = torch.randn(batch, 131)
        assert torch.equal(lower(layer, x), lower(layer.to_dense(), x))


def in_place(layer: SparseLinear) -> None:
    layer.values.mul_(2)


def doubled(layer: SparseLinear) -> dict[str, Tensor]:
    return {**layer.state_dict(), "values": layer.values * 2}


CHANGES: dict[str, Callable[[SparseLinear], SparseLinear | None]] = {
    "assigned": lambda layer: setattr(layer, "values", layer.values * 2),
    "in place": in_place,
    "bitmap": lambda layer: setattr(layer, "bitmap", layer.bitmap.clone()),
    "loaded": lambda layer: layer.load_state_dict(doubled(layer)) and None,
    "put in": lambda layer: layer.load_state_dict(doubled(layer), assign=True) and None,
    "to bfloat16": lambda layer: layer.to(torch.bfloat16),
    "to float64 and back": lambda layer: layer.double().float(),
    "copied": lambda layer: copy.deepcopy(layer),
}


@pytest.mark.parametrize("mask", DENSE)
@pytest.mark.parametrize("change", CHANGES)
def test_casts_follow_buffers(change, mask) -> None:
    layer, x = make(259, 131, mask), torch.randn(20, 131)
    plain = layer.nbytes
    with torch.autocast("cpu", torch.bfloat16):
        close(layer(x), layer.to_dense()(x))
        assert layer.nbytes > plain
        with torch.no_grad():
            layer = CHANGES[change](layer) or layer
        close(layer(x), layer.to_dense()(x))
    layer.values = layer.values.clone()
    assert layer.nbytes == plain if layer.values.dtype == torch.float32 else layer.nbytes < plain


def test_casts_follow_autocasts_dtype() -> None:
    layer, x = make(259, 131, "all"), torch.randn(20, 131)
    for dtype in (torch.bfloat16, torch.float16, torch.bfloat16):
        assert torch.equal(lower(layer, x, dtype), lower(layer.to_dense(), x, dtype))
    assert torch.equal(layer(x), layer.to_dense()(x))
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert torch.equal(layer(x), layer.to_dense()(x))


def test_nothing_is_kept_where_autocast_keeps_nothing() -> None:
    layer, x = make(259, 131, "all"), torch.randn(20, 131)
    before = layer.nbytes
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        assert torch.equal(layer(x), layer.to_dense()(x))
    assert layer.nbytes == before


def test_casts_outlive_the_mode_that_asked_for_them() -> None:
    layer, x = make(259, 131, "all"), torch.randn(3, 131)
    expected = lower(layer.to_dense(), x)
    slope = torch.func.grad(lambda x: lower(layer, x).float().sum())(x)
    close(slope, layer.weight.sum(0).expand(3, -1))
    with torch.inference_mode():
        assert torch.equal(lower(layer, x), expected)
    x.requires_grad_()
    y = lower(layer, x)
    assert torch.equal(y, expected)
    y.float().sum().backward()
    torch.testing.assert_close(x.grad, slope, rtol=0.02, atol=0.1)


@pytest.mark.parametrize("special", [torch.nan, torch.inf])
@pytest.mark.parametrize("batch", [1, 20])
def test_masked_weights_contribute_nothing(batch, special) -> None:
    layer = make(100, 50, "half")
    assert layer.choice.kernel(batch) == "dense"
    kept, x = MASKS["half"](100, 50), torch.randn(batch, 50)
    clean = lower(layer, x)
    x[0, 7] = special
    y = lower(layer, x)
    assert torch.equal(y[0].isfinite(), ~kept[:, 7])
    torch.testing.assert_close(y[0][~kept[:, 7]], clean[0][~kept[:, 7]], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("mask", ["all", "rows/columns", "random"])
def test_compiled_calls(mask) -> None:
    layer, x = make(259, 131, mask), torch.randn(20, 131)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: lower(layer, x), fullgraph=True, backend="aot_eager")
    before = layer.nbytes
    with torch.no_grad():
        close(compiled(x), lower(layer.to_dense(), x))
    assert layer.nbytes == before  # compiled code casts by itself


@pytest.mark.parametrize("memory", ["fast", "small"])
@pytest.mark.parametrize("mask", ["all", "rows/columns", "random"])
@pytest.mark.parametrize("inside", [False, True])
def test_gradients(inside, mask, memory) -> None:
    layer, x = make(259, 131, mask, memory=memory), torch.randn(20, 131, requires_grad=True)
    grad = torch.randn(20, 259).bfloat16()
    y = lower(layer, x)
    assert y.dtype == torch.bfloat16
    close(y, lower(layer.to_dense(), x))
    with torch.autocast("cpu", torch.bfloat16, enabled=inside):
        (actual,) = torch.autograd.grad(y, x, grad)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, grad.float() @ layer.weight, rtol=0.02, atol=0.05)
