"""torch's kernels for 2:4 and block weights on CUDA; on the CPU, what surrounds them.

There dense products stand for torch's; tests/test_interpreted_blocks.py runs its block kernel.
"""

import copy
import dataclasses
import io
import math
import pickle

import pytest
import torch
from test_cuda_linear import TOLERANCE, wanted
from torch import Tensor, nn

from simmim_ext.nn import SparseLinear, choice_cuda, packing, structured_cuda
from simmim_ext.nn.choice import Choice
from simmim_ext.nn.pattern import recognise
from simmim_ext.nn.structured_cuda import TILES, fitting, offered

OUT, IN = 192, 256
DENSITY = {16: 0.05, 32: 0.1, 64: 0.1}  # of blocks, by their side: few enough to be chosen
KINDS = ("2:4", *DENSITY)


def structured_mask(kind: str | int, out: int = OUT, features: int = IN) -> Tensor:
    """2:4, or of blocks of that side."""
    torch.manual_seed(0)
    if kind == "2:4":
        return (torch.rand(out, features // 4, 4).argsort(-1) < 2).flatten(1)
    blocks = torch.rand(out // kind, features // kind) < DENSITY[kind]
    blocks[0, 0] = blocks[1, 1] = True
    return blocks.repeat_interleave(kind, 0).repeat_interleave(kind, 1)


@pytest.mark.parametrize("side", [16, 32, 64, 48])
def test_recognises_square_blocks(side) -> None:
    mask = torch.eye(4).bool().repeat_interleave(side, 0).repeat_interleave(side, 1)
    pattern = recognise(mask)
    assert (pattern.name, pattern.square) == ("block 16x1", 16 if side == 48 else side)
    mask[:16, 0] = False  # a column of a block
    assert (recognise(mask).name, recognise(mask).square) == ("block 16x1", 0)
    mask[0, 1] = False
    assert (recognise(mask).name, recognise(mask).square) == ("element", 0)


def test_rectangles_are_no_squares() -> None:
    mask = torch.eye(4).bool().repeat_interleave(16, 0).repeat_interleave(24, 1)
    assert recognise(mask).square == 0
    assert recognise(mask[:, :90]).square == 0
    assert recognise(structured_mask("2:4")).square == 0


def fit(mask: Tensor, dtype: torch.dtype = torch.float16, zeros: int = 0) -> str | None:
    weight = torch.ones(mask.shape, dtype=dtype).where(mask, 0)
    for row, column in mask.nonzero()[:zeros].tolist():
        weight[row, column] = 0
    return fitting(weight, recognise(mask))


@pytest.mark.parametrize("kind", KINDS)
def test_what_torchs_kernels_take(kind) -> None:
    mask, name = structured_mask(kind), "2:4" if kind == "2:4" else "bsr"
    assert fit(mask) == fit(mask, torch.bfloat16) == name
    assert fit(mask, torch.float32) is fit(mask, torch.float64) is None
    # A kept zero is not stored as 2:4, and what is stored in its place may be masked.
    assert fit(mask, zeros=1) == (None if kind == "2:4" else "bsr")


@pytest.mark.parametrize(
    ("out", "features", "fits"),
    [(32, 64, True), (16, 64, False), (48, 64, False), (32, 32, False), (32, 100, False),
     (96, 192, True), (33, 128, False)],
)  # fmt: skip
def test_2_of_4_takes_torchs_shapes_alone(out, features, fits) -> None:
    mask = structured_mask("2:4", out, features)
    assert fit(mask) == ("2:4" if fits else None)
    for backend in ("CUTLASS", "CUSPARSELT"):  # either of which torch can be told to use
        least = getattr(torch.sparse, f"SparseSemiStructuredTensor{backend}")
        least = least._DTYPE_SHAPE_CONSTRAINTS[torch.bfloat16]
        taken = out % least.sparse_min_rows == features % least.sparse_min_cols == 0
        assert taken or not fits


def test_sparser_patterns_are_not_taken_for_2_of_4() -> None:
    """Within 2:4, but stored with zeros that are masked, which would let NaN through."""
    one_of_four = torch.zeros(32, 64).bool()
    one_of_four[:, ::4] = True
    one_of_four[0] = one_of_four[0].roll(1)
    assert recognise(one_of_four).name == "1:4"
    assert fit(one_of_four) is None


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
@pytest.mark.parametrize("installed", [True, False])
def test_availability_is_the_devices(capability, installed, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: installed)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: installed)
    for kind, name in (("2:4", "2:4"), (32, "bsr")):
        mask = structured_mask(kind)
        weight = torch.ones(mask.shape).half().where(mask, 0)
        taken = installed and capability >= (8, 0)
        assert offered(weight, recognise(mask)) == (name if taken else None)
        assert offered(weight.float(), recognise(mask)) is None


def imitated_addmm(added, bsr, x, *, beta, out, meta) -> None:
    assert x.shape[-1] in {samples for samples, *_ in TILES.values()}
    product = bsr.to_dense().double() @ x.double()
    out.copy_(product + added if beta else product)


def imitated_semi_structured(weight: Tensor) -> Tensor:
    weight = weight.clone()
    weight.packed, weight.meta = weight[:, ::2].clone(), None
    return weight


@pytest.fixture
def chosen(device, monkeypatch) -> str:
    """The device, on which small layers take torch's kernels for batches from 66 on."""
    monkeypatch.setattr(choice_cuda, "SMALLEST", 1)
    monkeypatch.setattr(choice_cuda, "STRUCTURED_WORK", 1.0)
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("torch's kernels need compute capability 8.0")
    if device == "cpu":
        from torch.sparse import _triton_ops

        def choose(pattern, shape, capability, dtype) -> Choice:
            name = "bsr" if pattern.square else "2:4"
            made = choice_cuda.choose_on_cuda(pattern, math.prod(shape), dtype, name)
            return dataclasses.replace(made, kernels=made.kernels[-2:])  # without CUDA's own

        monkeypatch.setattr(packing, "choose", choose)
        monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", imitated_semi_structured)
        monkeypatch.setattr(_triton_ops, "bsr_dense_addmm", imitated_addmm)
    return str(device)


def make(kind: str | int, device: str, dtype: torch.dtype, bias: bool = True) -> SparseLinear:
    mask = structured_mask(kind)
    linear = nn.Linear(IN, OUT, bias, device=device, dtype=dtype)
    return SparseLinear.from_linear(linear, mask.to(device))


def runs(layer: SparseLinear, x: Tensor, monkeypatch) -> bool:
    """Whether a call goes to torch's kernel."""
    calls: list[Tensor] = []
    product = structured_cuda.Structured.__call__
    with monkeypatch.context() as patch:
        patch.setattr(
            structured_cuda.Structured,
            "__call__",
            lambda self, x, bias: calls.append(x) or product(self, x, bias),
        )
        layer(x)
    return bool(calls)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_value_against_float64(kind, dtype, bias, chosen, monkeypatch) -> None:
    layer, name = make(kind, chosen, dtype, bias), "2:4" if kind == "2:4" else "bsr"
    assert layer.choice.kernels[-2:] == ((65, "dense"), (None, name))
    dense, mask = layer.to_dense(), structured_mask(kind).to(chosen)
    x = torch.randn(3, 99, IN, device=chosen).to(dtype)
    odd = torch.cat([x.flatten(), x.new_zeros(1)])[1:].view(x.shape)  # not on a multiple of 16
    turned = x.transpose(0, 1)
    for sample in (x, odd, turned, x.float(), x[0], x[0, :1].expand(70, -1)):
        y = layer(sample)
        assert (y.dtype, y.device.type, y.is_contiguous()) == (sample.dtype, chosen, True)
        assert runs(layer, sample, monkeypatch)
        expected = wanted(sample.reshape(-1, IN), dense.weight, mask, dense.bias).view(y.shape)
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    assert not runs(layer, x[0, :65], monkeypatch)


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # by torch.func.jvp
@pytest.mark.parametrize("kind", KINDS)
def test_other_calls_go_to_the_dense_kernel(kind, chosen, monkeypatch) -> None:
    """Gradients, torch.func, forward mode and torch.compile; and what is wrong is named."""
    layer = make(kind, chosen, torch.float16)
    weight, x = layer.to_dense().weight, torch.randn(70, IN, device=chosen).half()
    x.requires_grad_()
    assert not runs(layer, x, monkeypatch)
    grad = torch.randn(70, OUT, device=chosen).half()
    (got,) = torch.autograd.grad(layer(x), x, grad)
    torch.testing.assert_close(got, grad @ weight, rtol=0.02, atol=0.02)
    x = x.detach()
    (got,) = torch.func.vjp(layer, x)[1](grad)
    torch.testing.assert_close(got, grad @ weight, rtol=0.02, atol=0.02)
    y, tangent = torch.func.jvp(layer, (x,), (x,))
    torch.testing.assert_close(tangent, x @ weight.t(), rtol=0.02, atol=0.02)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=0.02, atol=0.02)
    with pytest.raises(ValueError, match=rf"in_features = {IN}, got \[70, {IN - 1}\]"):
        layer(x[:, 1:])
    with pytest.raises(TypeError, match="x must"):
        layer(x.double())


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_decides_the_dtype_of_the_result(kind, chosen, monkeypatch) -> None:
    layer = make(kind, chosen, torch.float16)
    x = torch.randn(70, IN, device=chosen)
    with torch.autocast(chosen, torch.bfloat16):
        y = layer(x)
        assert runs(layer, x, monkeypatch)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_forms_of_the_layer(kind, chosen, monkeypatch) -> None:
    layer, x = make(kind, chosen, torch.float16), torch.randn(70, IN, device=chosen).half()
    expected = layer(x)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = SparseLinear(IN, OUT, device=chosen, dtype=torch.float16)
    loaded.load_state_dict(torch.load(file, map_location=chosen, weights_only=True))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert other.choice == layer.choice
        assert torch.equal(other(x), expected)
        assert runs(other, x, monkeypatch)
    # The dense weight of the smaller batches is held once, and what is packed beside it.
    held = sum(buffer.nbytes for buffer in layer.buffers()) + OUT * IN * 2
    packed = layer._made.kernels[-1].product.nbytes
    share = 0.5 if kind == "2:4" else layer.choice.density
    assert OUT * IN * 2 * share <= packed <= OUT * IN * 2 * (share + 1 / 16) + 1024
    assert layer.nbytes >= held + packed
    if chosen == "cpu":
        assert layer.nbytes == held + packed
    else:  # where the choice is no imitation
        assert layer.float().choice.kernels[-1] == (None, "dense")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_only_kept_weights_see_nan_and_infinity(kind, dtype, chosen) -> None:
    if chosen != "cuda":
        pytest.skip("a dense product stands for torch's there")
    layer, mask = make(kind, chosen, dtype), structured_mask(kind).cuda()
    dense, x = layer.to_dense(), torch.randn(70, IN, device=chosen).to(dtype)
    x[1, 3], x[40, 200], x[69, 0] = torch.nan, torch.inf, -torch.inf
    expected = wanted(x, dense.weight, mask, dense.bias)
    assert expected.isfinite().any(1).all()
    y, tolerance = layer(x).double(), TOLERANCE[dtype]
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_cuda_graph(kind, chosen) -> None:
    if chosen != "cuda":
        pytest.skip("a CUDA graph needs a CUDA device")
    layer, x = make(kind, chosen, torch.float16), torch.randn(70, IN, device=chosen).half()
    with torch.inference_mode():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            layer(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        x.copy_(torch.randn(70, IN))
        graph.replay()
        torch.testing.assert_close(y, layer(x))
