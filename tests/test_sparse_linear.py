"""SparseLinear against float64, its stored form and its copies."""

import copy
import io
import pickle
import threading
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_nn import uneven_mask
from torch import nn

from simmim_ext.nn import MaskedLinear, SparseLinear
from simmim_ext.nn.tuned import InForce, default_table
from simmim_ext.ops._library import cpu_capability
from simmim_ext.ops.sparse_linear import pack_sparse_weight, sparse_linear

LAYOUTS = ("element", "gather", "block", "window")
BATCHES = (0, 1, 2, 7, 16, 33, 130)
# out_features, in_features: large ones take the sparse kernels; none is a multiple of a vector
SHAPES = ((1, 1), (1, 300), (300, 1), (10, 33), (259, 131), (130, 517))


def block_mask(out_features: int, in_features: int, density: float = 0.2) -> torch.Tensor:
    torch.manual_seed(0)
    blocks = torch.rand((out_features + 15) // 16, in_features) < density
    return blocks.repeat_interleave(16, 0)[:out_features]


def n_of_m_mask(out_features: int, in_features: int) -> torch.Tensor:
    """2:4, as far as the features are a multiple of 4; random beyond."""
    torch.manual_seed(0)
    whole = in_features // 4 * 4
    order = torch.rand(out_features, whole // 4, 4).argsort(-1) < 2
    rest = torch.rand(out_features, in_features - whole) < 0.5
    return torch.cat([order.flatten(1), rest], 1)


def outer_mask(out_features: int, in_features: int) -> torch.Tensor:
    torch.manual_seed(0)
    return (torch.rand(out_features, 1) < 0.5) & (torch.rand(in_features) < 0.5)


MASKS = {
    "none": lambda o, i: torch.zeros(o, i).bool(),
    "all": lambda o, i: torch.ones(o, i).bool(),
    "random": lambda o, i: torch.rand(o, i, generator=torch.Generator().manual_seed(0)) < 0.1,
    "uneven": uneven_mask,
    "half": lambda o, i: torch.rand(o, i, generator=torch.Generator().manual_seed(0)) < 0.5,
    "block": block_mask,
    "n:m": n_of_m_mask,
    "rows/columns": outer_mask,
}


@pytest.fixture(autouse=True)
def patterns_have_their_kernels(monkeypatch) -> None:
    """Default speeds, with those of the kernels for patterns so high that they are tested."""

    def in_force(capability: str) -> InForce:
        table = default_table(capability).table
        row = (*(99.0,) * (len(table.densities) - 1), 0.5)  # all kept: dense
        high = ((row,) * len(table.batches),) * len(table.sizes)
        return InForce(
            replace(table, speeds={**table.speeds, "block": high, "compact": high}), None
        )

    monkeypatch.setattr("simmim_ext.nn.choice.in_force", in_force)


def make(out_features: int, in_features: int, mask: str = "uneven", **kwargs) -> SparseLinear:
    torch.manual_seed(1)
    linear = nn.Linear(in_features, out_features)
    return SparseLinear.from_linear(linear, MASKS[mask](out_features, in_features), **kwargs)


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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_under_every_capability(layout, cpu_capability) -> None:
    torch.manual_seed(0)
    for out_features, in_features in SHAPES:
        weight, bias = torch.randn(out_features, in_features), torch.randn(out_features)
        mask = (block_mask if layout == "block" else uneven_mask)(out_features, in_features)
        packed = pack_sparse_weight(weight, mask, layout)
        for batch in BATCHES:
            x = torch.randn(batch, in_features)
            for b in (bias, None):
                expected = F.linear(
                    x.double(), (weight * mask).double(), None if b is None else b.double()
                )
                y = sparse_linear(x, packed, b, out_features)
                torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)


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
        x[-1, 77], x[0, 500] = special, torch.nan
        reached = torch.zeros(batch, 130, dtype=torch.bool)
        reached[-1] |= mask[:, 77]
        reached[0] |= mask[:, 500]
        y = sparse_linear(x, packed, None, 130)
        assert torch.equal(~y.isfinite(), reached)
        torch.testing.assert_close(y[~reached], clean[~reached])


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
    assert make(512, 512, "half").choice.kernel(1) in ("dense", "gather", "window")
    assert make(512, 512, "rows/columns").choice.kernel(1) == "compact"
    assert make(512, 512, memory="small").choice.kernel(1) == "compressed"
    choice = make(512, 512, "random").choice
    assert choice.kernel(1) == ("window" if cpu_capability() == "avx512" else "gather")
    assert choice.kernel(128) == choice.kernel(10_000) == "element"
    assert make(512, 512, "block").choice.kernel(16) == "block"


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(3, 5), (500, 784), (1024, 1024)])
def test_stored_form_is_small(density, shape) -> None:
    linear = nn.Linear(shape[1], shape[0])
    mask = torch.rand(shape) < density
    layer = SparseLinear.from_linear(linear, mask, memory="small")
    dense = sum(p.nbytes for p in linear.parameters())
    share = mask.float().mean().item() + 1 / 32
    limit = (share + 0.02) * dense + linear.bias.nbytes + 1
    assert layer.nbytes <= limit
    assert sum(t.nbytes for t in layer.state_dict().values()) <= limit
    fast = SparseLinear.from_linear(linear, mask)
    assert fast.nbytes >= layer.nbytes
    assert fast.state_dict().keys() == layer.state_dict().keys()


def test_state_dict_is_portable(cpu_capability) -> None:
    source, x = make(259, 131), torch.randn(20, 131)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    for memory in ("fast", "small"):
        target = SparseLinear(131, 259, memory=memory)
        assert torch.equal(target(x), torch.zeros(20, 259))
        file.seek(0)
        target.load_state_dict(torch.load(file, weights_only=True))
        torch.testing.assert_close(target(x), source(x), rtol=1e-4, atol=1e-5)
        assert torch.equal(target.to_dense().weight, source.to_dense().weight)


def test_state_dict_of_another_layer_is_refused() -> None:
    layer, x = make(259, 131), torch.randn(2, 131)
    before = layer(x)
    with pytest.raises(RuntimeError, match="size mismatch for bias"):
        layer.load_state_dict(make(131, 259).state_dict())
    state = layer.state_dict()
    state["values"] = state["values"][:-1]
    kept = layer.values.numel()
    text = rf"values must have one entry for each of {kept} bits set in bitmap, got \[{kept - 1}\]"
    with pytest.raises(RuntimeError, match=text):
        layer.load_state_dict(state)
    assert torch.equal(layer(x), before)


CLONES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "to": lambda layer: layer.to("cpu", torch.float32),
}


@pytest.mark.parametrize("clone", CLONES)
@pytest.mark.parametrize("mask", ["uneven", "block", "rows/columns"])
def test_copies(clone, mask) -> None:
    layer, x = make(259, 131, mask).eval(), torch.randn(20, 131)
    other = CLONES[clone](layer)
    assert torch.equal(other(x), layer(x))
    assert other.choice == layer.choice
    assert not other.training


def test_pickle_holds_the_compressed_form_alone() -> None:
    layer = make(512, 512, "random")
    assert len(pickle.dumps(layer)) < sum(t.nbytes for t in layer.buffers()) + 4096 < layer.nbytes


def test_other_devices_raise_clearly() -> None:
    layer = make(259, 131).to("meta")
    assert layer(torch.empty(3, 131, device="meta")).shape == (3, 259)
    assert layer.choice.reason == "there are no kernels for meta"


def test_to_dense_is_a_plain_linear() -> None:
    masked = MaskedLinear.from_linear(nn.Linear(21, 9).eval(), uneven_mask(9, 21))
    for layer in (masked, masked.to_sparse()):
        dense = layer.to_dense()
        assert type(dense) is nn.Linear
        assert torch.equal(dense.weight, masked.weight * masked.mask)
        assert torch.equal(dense.bias, masked.bias)
        assert not dense.training


def test_from_linear_without_mask() -> None:
    linear = nn.Linear(40, 30)
    with torch.no_grad():
        linear.weight[torch.rand(30, 40) < 0.8] = 0
    layer = SparseLinear.from_linear(linear)
    assert layer.values.numel() == linear.weight.count_nonzero()
    masked = MaskedLinear.from_linear(linear, uneven_mask(30, 40))
    assert SparseLinear.from_linear(masked).values.numel() == uneven_mask(30, 40).sum()
    with torch.no_grad():
        linear.weight.zero_()
    assert layer.values.count_nonzero() == layer.values.numel()


@pytest.mark.parametrize("mask", ["uneven", "rows/columns", "block"])
@pytest.mark.parametrize("memory", ["fast", "small"])
def test_export_needs_standard_operators_alone(mask, memory) -> None:
    layer, x = make(259, 131, mask, memory=memory), torch.randn(3, 131)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(layer, (x,), dynamic_shapes=((batch, None),))
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert targets
    assert not any("simmim" in target for target in targets)
    for rows in (x, torch.randn(40, 131)):
        torch.testing.assert_close(exported.module()(rows), layer(rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", ["uneven", "rows/columns", "block"])
def test_compiles_whole(mask) -> None:
    layer = make(259, 131, mask)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for batch in (1, 20, 40):
            x = torch.randn(batch, 131)
            torch.testing.assert_close(compiled(x), layer(x))
    x = torch.randn(3, 131, requires_grad=True)
    compiled(x).sum().backward()
    torch.testing.assert_close(
        x.grad, layer.to_dense().weight.sum(0).expand(3, -1), rtol=1e-4, atol=1e-4
    )


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
         "pack_sparse_weight: layout must be 'element', 'gather', 'block' or 'window', got 'csr'"),
        (lambda: pack_sparse_weight(torch.ones(3, 4), torch.eye(3, 4).bool(), "block"), ValueError,
         "pack_sparse_weight: mask must keep or mask whole columns of 16 rows for layout 'block'"),
        (lambda: pack_sparse_weight(torch.ones(3, 4), torch.ones(3, 4), "block"), TypeError,
         "pack_sparse_weight: mask must be bool, got float32"),
        (lambda: sparse_linear(torch.ones(2, 4), torch.zeros(300).byte(), None, 3), ValueError,
         r"sparse_linear: packed must be what pack_sparse_weight returned, got uint8 \[300\]"),
        (lambda: sparse_linear(torch.ones(2, 4), torch.zeros(3), None, 3), ValueError,
         r"sparse_linear: packed must be what pack_sparse_weight returned, got float32 \[3\]"),
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
