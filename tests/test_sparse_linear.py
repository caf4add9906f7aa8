"""SparseLinear against float64, under every capability, layout and kind of input."""

import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from sparse_layers import MASKS, block_mask, make, patterns_have_their_kernels  # noqa: F401
from test_nn import uneven_mask
from torch import nn

from simmim_ext.nn import SparseLinear
from simmim_ext.nn.speed_table import ROUNDING
from simmim_ext.ops._library import cpu_capability
from simmim_ext.ops.sparse_linear import pack_sparse_weight, sparse_linear

LAYOUTS = ("element", "gather", "block", "window", "planes", "tile", "pair")
BATCHES = (0, 1, 2, 7, 16, 33, 130)
# out_features, in_features: large ones take the sparse kernels; none is a multiple of a vector
SHAPES = ((1, 1), (1, 300), (300, 1), (10, 33), (259, 131), (130, 517), (90, 200))


def exact(layer: SparseLinear, x: torch.Tensor) -> torch.Tensor:
    dense = layer.to_dense()
    return F.linear(x.double(), dense.weight.double(), dense.bias.double())


@pytest.mark.parametrize("memory", ["fast", "small"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_against_float64(shape, mask, memory) -> None:
    torch.manual_seed(2)
    linear = nn.Linear(shape[1], shape[0])
    kept = MASKS[mask](*shape)
    layer = SparseLinear.from_linear(linear, kept, memory=memory)
    for batch in BATCHES:
        x = torch.randn(batch, shape[1])
        expected = F.linear(x.double(), (linear.weight * kept).double(), linear.bias.double())
        y = layer(x)
        assert y.dtype == torch.float32
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=2e-5)
    x = torch.randn(2, 3, shape[1])
    assert layer(x).shape == (2, 3, shape[0])
    torch.testing.assert_close(layer(x)[1], layer(x[1]))
    torch.testing.assert_close(layer(x[0, 0]), layer(x[0])[0], rtol=1e-4, atol=1e-5)


def rounded(t: torch.Tensor, layout: str) -> torch.Tensor:
    """As the layout multiplies it."""
    return t.bfloat16().float() if layout in ROUNDING else t


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_under_every_capability(layout, cpu_capability) -> None:
    torch.manual_seed(0)
    for out_features, in_features in SHAPES:
        weight = rounded(torch.randn(out_features, in_features), layout)
        bias = torch.randn(out_features)
        mask = (block_mask if layout == "block" else uneven_mask)(out_features, in_features)
        packed = pack_sparse_weight(weight, mask, layout)
        for batch in BATCHES:
            x = rounded(torch.randn(batch, in_features), layout)
            for b in (bias, None):
                expected = F.linear(
                    x.double(), (weight * mask).double(), None if b is None else b.double()
                )
                y = sparse_linear(x, packed, b, out_features)
                torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", ROUNDING)
@pytest.mark.parametrize("batch", [3, 40, 1100])
def test_tiles_are_bfloat16(batch, layout, cpu_capability) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(70, 300), torch.randn(70), torch.randn(batch, 300)
    mask = uneven_mask(70, 300)
    packed = pack_sparse_weight(weight, mask, layout)
    product = rounded(x, layout).double() @ rounded(weight * mask, layout).double().T
    y = sparse_linear(x, packed, bias, 70)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), product + bias, rtol=1e-5, atol=1e-4)
    assert torch.equal(sparse_linear(x.bfloat16(), packed, bias, 70), y.bfloat16())
    columns = x.bfloat16().T.contiguous().T
    assert torch.equal(sparse_linear(columns, packed, bias, 70), y.bfloat16())


@pytest.mark.parametrize("batch", [1, 2, 40])
def test_planes_keep_bfloat16(batch, cpu_capability) -> None:
    """With the very results of the same weights in float32, at 3 bytes for each instead of 5."""
    torch.manual_seed(0)
    weight, bias, mask = torch.randn(259, 1000).bfloat16(), torch.randn(259), uneven_mask(259, 1000)
    x = torch.randn(batch, 1000).bfloat16()
    x[0, 7], weight[3, 7], mask[3, 7] = torch.inf, 0, True
    packed, wide = (pack_sparse_weight(w, mask, "planes") for w in (weight, weight.float()))
    assert packed.numel() < 0.65 * wide.numel()
    y = sparse_linear(x.float(), wide, bias, 259)
    assert y[0, 3].isnan()
    assert y[0].isfinite().any()
    same = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)
    same(sparse_linear(x.float(), packed, bias, 259), y)
    # Also where so many elements are converted that torch does it.
    same(sparse_linear(x, packed, bias, 259), y.bfloat16())
    same(sparse_linear(x.T.contiguous().T, packed, bias.bfloat16(), 259),
         sparse_linear(x.float(), wide, bias.bfloat16().float(), 259).bfloat16())  # fmt: skip


@pytest.mark.parametrize("layout", ROUNDING)
def test_tiles_round_to_the_nearest_even(layout, cpu_capability) -> None:
    """Of x, of the weights and of a bfloat16 y: halves, and the largest that stays finite."""
    numbers = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.38e38, 3.4e38, 1.5, -0.0])
    one, diagonal = torch.ones(7), torch.eye(7, dtype=torch.bool)
    expected = numbers.bfloat16().float()
    weights = sparse_linear(
        one[None], pack_sparse_weight(numbers.diag(), diagonal, layout), None, 7
    )
    assert torch.equal(weights[0], expected)
    packed = pack_sparse_weight(torch.eye(7), diagonal, layout)
    for batch in (1, 20):
        assert torch.equal(sparse_linear(numbers.expand(batch, 7), packed, None, 7)[-1], expected)
        zeros = torch.zeros(batch, 7, dtype=torch.bfloat16)
        assert torch.equal(sparse_linear(zeros, packed, numbers, 7)[-1], numbers.bfloat16())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packing_operators_are_registered(layout) -> None:
    """They are not in the case table: what is packed is opaque, so no reference makes it."""
    weight, mask = torch.randn(20, 30), block_mask(20, 30)
    ops = torch.ops.simmim_ext
    torch.library.opcheck(ops.pack_sparse_weight.default, (weight, mask, layout))
    torch.library.opcheck(ops.compress_weight.default, (weight, mask))
    packed = pack_sparse_weight(weight, mask, layout)
    for bias in (None, torch.randn(20)):
        torch.library.opcheck(ops.sparse_linear.default, (torch.randn(3, 30), packed, bias, 20))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_do_not_depend_on_threads(layout, threads) -> None:
    weight, x = torch.randn(1000, 300), torch.randn(100, 300)
    packed = pack_sparse_weight(weight, block_mask(1000, 300), layout)
    threads(1)
    alone = sparse_linear(x, packed, None, 1000)
    threads(3)
    assert torch.equal(sparse_linear(x, packed, None, 1000), alone)


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [("element", torch.float32), ("block", torch.float32), ("pair", torch.float32),
     ("pair", torch.bfloat16)],
)  # fmt: skip
def test_batches_in_chunks(layout, dtype, threads) -> None:
    """Of so many inputs that the cache has room for one tile of x, or not even that."""
    torch.manual_seed(0)
    weight, bias = rounded(torch.randn(40, 9000), layout), torch.randn(40)
    mask = block_mask(40, 9000)
    packed = pack_sparse_weight(weight, mask, layout)
    x = rounded(torch.randn(150, 9000), layout).to(dtype)
    expected = F.linear(x.double(), (weight * mask).double(), bias.double())
    for count in (1, 2, 3, 8):  # 8: more than tiles
        threads(count)
        y = sparse_linear(x, packed, bias, 40)
        rtol = 2**-8 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(y.double(), expected, rtol=rtol, atol=1e-3)


@pytest.mark.parametrize("layout", ["element", "pair", "block"])
def test_threads_share_what_has_no_outputs(layout, threads) -> None:
    packed = pack_sparse_weight(torch.zeros(0, 20), torch.zeros(0, 20, dtype=torch.bool), layout)
    threads(3)
    assert sparse_linear(torch.zeros(200_000, 20), packed, None, 0).shape == (200_000, 0)


@pytest.mark.parametrize("shape", [(1, 1), (65, 9001), (1100, 1001)])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_compressed_form_does_not_depend_on_threads(shape, mode, threads) -> None:
    weight, mask = torch.randn(shape), uneven_mask(*shape)
    for count in (1, 3):
        threads(count)
        with mode():
            bitmap, values = torch.ops.simmim_ext.compress_weight(weight, mask)
            dense = torch.ops.simmim_ext.decompress_weight(bitmap, values, *shape)
        assert torch.equal(values, weight[mask])
        assert torch.equal(dense, weight.where(mask, 0))


def test_gather_takes_wide_layers() -> None:
    weight = torch.randn(3, 70_000)
    mask = torch.rand(3, 70_000) < 0.01
    x = torch.randn(2, 70_000)
    y = sparse_linear(x, pack_sparse_weight(weight, mask, "gather"), None, 3)
    expected = F.linear(x.double(), (weight * mask).double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("special", [torch.nan, -torch.inf])
def test_layouts_keep_nan_and_infinity_apart(layout, special, cpu_capability) -> None:
    torch.manual_seed(0)
    mask = (block_mask if layout == "block" else uneven_mask)(130, 517)
    packed = pack_sparse_weight(torch.ones(130, 517), mask, layout)
    for batch in (1, 3, 9, 40):
        x = torch.randn(batch, 517)
        clean = sparse_linear(x, packed, None, 130)
        # Windows of x begin with column 320, which is what idle lanes look at.
        x[-1, 320], x[0, 500] = special, torch.nan
        reached = torch.zeros(batch, 130, dtype=torch.bool)
        reached[-1] |= mask[:, 320]
        reached[0] |= mask[:, 500]
        y = sparse_linear(x, packed, None, 130)
        assert torch.equal(~y.isfinite(), reached)
        torch.testing.assert_close(y[~reached], clean[~reached], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("special", [torch.nan, torch.inf])
@pytest.mark.parametrize("mask", ["uneven", "block", "rows/columns", "half"])
@pytest.mark.parametrize("memory", ["fast", "small"])
@pytest.mark.parametrize("batch", [1, 20])
def test_only_kept_weights_see_nan_and_infinity(special, mask, memory, batch) -> None:
    layer = make(259, 131, mask, memory=memory)
    kept = MASKS[mask](259, 131)
    column = int((kept.any(0) & ~kept.all(0)).nonzero()[0])
    reached = kept[:, column]
    x = torch.randn(batch, 131)
    clean = layer(x)
    x[0, column] = special
    y = layer(x)
    torch.testing.assert_close(y[1:], clean[1:])
    torch.testing.assert_close(y[0][~reached], clean[0][~reached], rtol=1e-4, atol=1e-5)
    expected = layer.to_dense().weight[:, column] * special
    torch.testing.assert_close(y[0][reached], expected[reached], equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", ["uneven", "half"])
@pytest.mark.parametrize("memory", ["fast", "small"])
def test_samples_do_not_see_each_other(dtype, mask, memory) -> None:
    layer = make(259, 131, mask, dtype=dtype, memory=memory)
    x = torch.randn(20, 131).to(dtype)
    x[1, 5] = x[7] = torch.nan
    seen = layer(x).isnan().any(1)
    assert not seen[[0, *range(2, 7), *range(8, 20)]].any()
    assert seen[7]


def test_kept_zeros_let_nan_through() -> None:
    linear = nn.Linear(131, 259)
    nn.init.zeros_(linear.weight)
    layer = SparseLinear.from_linear(linear, uneven_mask(259, 131))
    y = layer(torch.full((1, 131), torch.nan))
    assert torch.equal(y[0].isnan(), uneven_mask(259, 131).any(1))


@pytest.mark.parametrize("mask", ["uneven", "block", "rows/columns", "all"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("x_dtype", [None, torch.float32])
def test_half_precision(mask, dtype, x_dtype) -> None:
    layer = make(259, 131, mask, dtype=dtype)
    for batch in (1, 20):
        x = torch.randn(batch, 131).to(dtype).to(x_dtype or dtype)
        y = layer(x)
        assert y.dtype == x.dtype
        torch.testing.assert_close(y.double(), exact(layer, x), rtol=0.01, atol=0.02)


def test_float64() -> None:
    layer, x = make(259, 131).double(), torch.randn(9, 131, dtype=torch.float64)
    assert layer.choice.kernel(9) == "dense"
    torch.testing.assert_close(layer(x), exact(layer, x))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_float32_matmul_precision(precision) -> None:
    """Sparse kernels stay exact; where dense is chosen, the setting is torch's to honour."""
    x = torch.randn(16, 517)
    sparse, dense = make(130, 517, "random"), make(130, 517, "all")
    assert (sparse.choice.kernel(16), dense.choice.kernel(16)) == ("element", "dense")
    expected, linear = sparse(x), dense.to_dense()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert torch.equal(sparse(x), expected)
        assert torch.equal(dense(x), linear(x))
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("mask", ["uneven", "rows/columns", "all"])
def test_autocast_gives_bfloat16(mask) -> None:
    layer, x = make(259, 131, mask), torch.randn(20, 131)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact(layer, x), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("mask", ["uneven", "rows/columns", "all"])
@pytest.mark.parametrize("memory", ["fast", "small"])
def test_gradient_of_input(mask, memory) -> None:
    layer = make(259, 131, mask, memory=memory)
    x = torch.randn(3, 131, requires_grad=True)
    grad = torch.randn(3, 259)
    (actual,) = torch.autograd.grad(layer(x), x, grad)
    torch.testing.assert_close(actual, grad @ layer.to_dense().weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("mask", "pattern"),
    [("none", "rows/columns"), ("all", "rows/columns"), ("rows/columns", "rows/columns"),
     ("block", "block 16x1"), ("n:m", "2:4"), ("random", "element")],
)  # fmt: skip
def test_recognises_patterns(mask, pattern) -> None:
    choice = make(256, 128, mask).choice
    assert choice.pattern == pattern
    assert choice.density == pytest.approx(MASKS[mask](256, 128).float().mean().item())
    assert pattern in str(choice)


def test_choice_is_what_runs() -> None:
    assert make(10, 33).choice.kernel(1) == "dense"
    assert make(512, 512, "half").choice.kernel(1) in ("dense", "gather", "window", "planes")
    assert make(512, 512, "rows/columns").choice.kernel(1) == "compact"
    assert make(512, 512, memory="small").choice.kernel(1) == "compressed"
    choice = make(512, 512, "random").choice
    smallest = {"avx512": "window", "avx512_bf16": "planes", "amx": "window"}
    assert choice.kernel(1) == smallest.get(cpu_capability(), "gather")
    assert choice.kernel(128) == choice.kernel(10_000) == "element"
    half = make(512, 512, "half", dtype=torch.bfloat16).choice
    # Without AMX it is for few samples: torch's own product does vdpbf16ps as well with many.
    assert (half.kernel(4) == "tile") == (cpu_capability() in ("avx512_bf16", "amx"))
    assert (half.kernel(64) == "tile") == (cpu_capability() == "amx")
    few = make(512, 512, "random", dtype=torch.bfloat16).choice
    assert (few.kernel(512) == "pair") == (cpu_capability() == "avx512_bf16")
    assert make(512, 512, "block").choice.kernel(16) == "block"


def test_concurrent_calls() -> None:
    layer, x = make(512, 300), torch.randn(64, 300)
    expected, results = layer(x), {}
    workers = [threading.Thread(target=lambda i=i: results.update({i: layer(x)})) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    assert all(torch.equal(y, expected) for y in results.values())


def packed_3x4() -> torch.Tensor:
    return pack_sparse_weight(torch.ones(3, 4), torch.eye(3, 4).bool(), "gather")


def shifted(t: torch.Tensor) -> torch.Tensor:
    """A copy that lies 8 bytes beyond the start of its memory, as a part of a file's may."""
    return torch.cat((t[:8], t))[8:]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: SparseLinear.from_linear(nn.Linear(4, 3), torch.ones(4, 3).bool()), ValueError,
         r"SparseLinear.from_linear: mask must have weight's shape \[3, 4\], got \[4, 3\]"),
        (lambda: SparseLinear.from_linear(nn.Linear(4, 3), torch.ones(3, 4)), TypeError,
         "SparseLinear.from_linear: mask must be a bool tensor, got torch.float32"),
        (lambda: SparseLinear.from_linear(nn.Conv1d(4, 3, 1)), TypeError,
         "SparseLinear.from_linear: linear must be an nn.Linear or a MaskedLinear, got Conv1d"),
        (lambda: SparseLinear.from_linear(nn.Linear(4, 3), memory="tiny"), ValueError,
         "SparseLinear: memory must be 'fast' or 'small', got 'tiny'"),
        (lambda: SparseLinear.from_linear(nn.Linear(4, 3), dtype=torch.int8), TypeError,
         "SparseLinear: dtype must be one of .*, got torch.int8"),
        (lambda: make(259, 131)(torch.randn(2, 130)), ValueError,
         r"x must have shape \[..., in_features\] with in_features = 131, got \[2, 130\]"),
        (lambda: make(259, 131, "rows/columns")(torch.randn(2, 130)), ValueError,
         r"x must have shape \[..., in_features\] with in_features = 131, got \[2, 130\]"),
        (lambda: make(3, 4)(torch.tensor(1.0)), ValueError, r"in_features = 4, got \[\]"),
        (lambda: make(3, 4)(torch.ones(2, 4).int()), TypeError, "x must be .*, got int32"),
        (lambda: make(259, 131)(torch.ones(2, 131) + 0j), TypeError, "x must be .*, got complex64"),
        (lambda: pack_sparse_weight(torch.ones(3, 4), torch.ones(3, 4).bool(), "csr"), ValueError,
         "pack_sparse_weight: layout must be 'element', .*, 'tile' or 'pair', got 'csr'"),
        (lambda: pack_sparse_weight(torch.ones(3, 4), torch.eye(3, 4).bool(), "block"), ValueError,
         "pack_sparse_weight: mask must keep or mask whole columns of 16 rows for layout 'block'"),
        (lambda: pack_sparse_weight(torch.ones(3, 4), torch.ones(3, 4), "block"), TypeError,
         "pack_sparse_weight: mask must be bool, got float32"),
        (lambda: sparse_linear(torch.ones(2, 4), torch.zeros(300).byte(), None, 3), ValueError,
         r"sparse_linear: packed must be what pack_sparse_weight returned, got uint8 \[300\]"),
        (lambda: sparse_linear(torch.ones(2, 4), torch.zeros(3), None, 3), ValueError,
         r"sparse_linear: packed must be what pack_sparse_weight returned, got float32 \[3\]"),
        (lambda: sparse_linear(torch.ones(2, 4), shifted(packed_3x4()), None, 3), ValueError,
         "packed must begin at a multiple of 64 bytes, got 8 bytes beyond one; use packed.clone()"),
        (lambda: sparse_linear(torch.ones(2, 4), packed_3x4(), None, 4), ValueError,
         "sparse_linear: out_features must be 3, as packed, got 4"),
        (lambda: sparse_linear(torch.ones(2, 4), packed_3x4(), torch.ones(4), 3), ValueError,
         r"sparse_linear: bias must have shape \[out_features\] = \[3\], got \[4\]"),
        (lambda: sparse_linear(torch.ones(2, 4).double(), packed_3x4(), None, 3), TypeError,
         "sparse_linear: x must be float32, float16 or bfloat16, got float64"),
        (lambda: sparse_linear(torch.ones(2, 4, requires_grad=True), packed_3x4(), None, 3),
         NotImplementedError, "sparse_linear: has no gradient; use compressed_linear"),
    ],
)  # fmt: skip
def test_bad_input(call, error, text) -> None:
    with pytest.raises(error, match=text):
        call()
