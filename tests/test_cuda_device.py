"""What only a GPU can show: graphs, streams, devices, and agreement with the CPU to the last bit.

Where there is none, all of it is skipped; tests/test_simt.py has what can be proven without.
"""

from collections.abc import Callable
from functools import partial
from itertools import islice

import pytest
import torch
from case import Case
from cases import CASES
from torch import Tensor
from torch.utils import _pytree as pytree

import simmim_ext as si
from simmim_ext.ops.compressed_linear import compress_weight, compressed_linear
from simmim_ext.ops.masked_linear import masked_linear
from simmim_ext.ops.sparse_linear import pack_sparse_weight, sparse_linear

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

by_name = pytest.mark.parametrize("case", CASES, ids=[f"cuda-{case.name}" for case in CASES])


def on_cpu(result: object) -> list[Tensor]:
    return [leaf.cpu() for leaf in pytree.tree_leaves(result)]


def values(samples: int = 4096, features: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, features, generator=generator).clamp_(-3, 3).cuda()


@by_name
def test_same_as_on_the_cpu_and_in_every_run(case: Case) -> None:
    for arguments in islice(case.arguments("cuda"), 12):
        first, again = on_cpu(case.op(*arguments)), on_cpu(case.op(*arguments))
        moved = pytree.tree_map(lambda a: a.cpu() if isinstance(a, Tensor) else a, arguments)
        for one, other, expected in zip(first, again, on_cpu(case.op(*moved)), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
            exact = not one.is_floating_point()
            atol = 0 if exact else max(1e-6, case.tolerance if case.differentiable else 0)
            torch.testing.assert_close(one, expected, rtol=0, atol=atol, equal_nan=True)


@pytest.mark.parametrize("width", [6.0, 1e-39, 1e-44])  # the last two leave no scale of float32
@pytest.mark.parametrize("bins", [3, 10, 49, 255])  # none of which has an exact reciprocal
def test_cuda_bins_are_the_cpus(bins: int, width: float) -> None:
    here = values().cpu() * (width / 6)
    for ends in (None, (-width / 2, width / 2)):
        bin_it = partial(si.discretize, bins=bins, range=ends, outliers="clip")
        expected, binned = bin_it(here), bin_it(here.cuda())
        assert torch.equal(binned.codes.cpu(), expected.codes)
        assert torch.equal(binned.edges.cpu(), expected.edges)


def graph_calls(x: Tensor) -> dict[str, Callable[[], Tensor]]:
    codes = si.discretize(x, bins=16, range=(-3.0, 3.0))
    labels = codes.codes[0].long()
    p = x[:, :8].softmax(1)
    low, high = x.new_full((x.shape[1],), -3.0), x.new_full((x.shape[1],), 3.0)
    weight = values(100, x.shape[1])
    mask, dense = weight > 0.5, weight.where(weight > 0.5, 0)
    compressed = compress_weight(weight, mask)
    packed = {dtype: pack_sparse_weight(weight.to(dtype), mask, "tile") for dtype in PACKED}
    lists = pack_sparse_weight(weight.bfloat16(), mask, "list")
    rows = {dtype: pack_sparse_weight(weight.to(dtype), mask, "row") for dtype in PACKED}
    wide = pack_sparse_weight(*(t.repeat(1, 65) for t in (weight, mask)), "row")
    return {
        "entropy": lambda: si.entropy(x, bins=16, range=(-3.0, 3.0)),
        "entropy of a range": lambda: si.entropy(x, bins=64, range=(low, high)),
        "discretize": lambda: si.discretize(x, bins=16, range=(-3.0, 3.0)).codes,
        "pairs": lambda: si.mutual_information(codes),
        "pairs by counters": lambda: si.joint_entropy(si.Discretized(codes.codes, 40)),
        "labels": lambda: si.mutual_information(codes, labels),
        "soft labels": lambda: si.mutual_information(codes, probabilities=p),
        "conditional": lambda: si.conditional_mutual_information(codes, None, labels),
        "predictive": lambda: si.predictive_information(x),
        "masked linear": lambda: masked_linear(x[:16], weight, mask),
        "masked linear by torch": lambda: masked_linear(x, weight, mask),
        "packed linear": lambda: sparse_linear(x[:9], packed[torch.float32], None, 100),
        "packed linear by lists": lambda: sparse_linear(x[:40], lists, None, 100),
        "packed linear by rows": lambda: sparse_linear(x[:9], rows[torch.float32], None, 100),
        "packed linear by rows of few samples": lambda: sparse_linear(
            x[:8], rows[torch.bfloat16], None, 100
        ),
        "packed linear by chunks of rows": lambda: sparse_linear(
            x[:3].repeat(1, 65), wide, None, 100
        ),
        "packed linear of many samples": lambda: sparse_linear(
            x[:99], packed[torch.bfloat16], None, 100
        ),
        "compressed linear": lambda: compressed_linear(x, *compressed, dense, None, 100, 64),
        "decompressed linear": lambda: compressed_linear(x, *compressed, None, None, 100, 64),
    }


PACKED = (torch.float32, torch.bfloat16)
GRAPHS = (
    *("entropy", "entropy of a range", "discretize", "pairs", "pairs by counters", "labels"),
    *("soft labels", "conditional", "predictive", "masked linear", "masked linear by torch"),
    *("packed linear", "packed linear of many samples", "packed linear by lists"),
    *("packed linear by rows", "packed linear by rows of few samples"),
    *("packed linear by chunks of rows", "compressed linear", "decompressed linear"),
)


def test_cuda_graphs_are_of_all_calls() -> None:
    assert sorted(graph_calls(values())) == sorted(GRAPHS)


@pytest.mark.parametrize("name", GRAPHS)
def test_cuda_graph_replays_on_new_values(name: str) -> None:
    x = values()
    call = graph_calls(x)[name]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for _ in range(2):
        x.copy_(x.flip(0).roll(1, 1))
        graph.replay()
        torch.cuda.synchronize()
        # Torch's products, in some of them, may take another way while a graph is recorded.
        atol = 1e-4 if "linear" in name else 0
        torch.testing.assert_close(captured, call(), rtol=0, atol=atol)


@pytest.mark.parametrize("batch", [1, 16])  # one plane of samples in shared memory, and two
@pytest.mark.parametrize("features", [3200, 8232])  # above 48 KB of it; three chunks
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cuda_packed_rows_of_many_columns(dtype, features, batch) -> None:
    weight, x, bias = (
        values(*shape).to(dtype) for shape in ((35, features), (batch, features), (1, 35))
    )
    mask = values(35, features) > 0.5
    y = sparse_linear(x, pack_sparse_weight(weight, mask, "row"), bias[0], 35)
    expected = x.double() @ weight.double().where(mask, 0).t() + bias.double()
    tolerance = 1e-3 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


def test_cuda_graph_gives_nan_where_a_call_would_raise() -> None:
    x = values()
    graph = torch.cuda.CUDAGraph()
    si.entropy(x, bins=16, range=(-3.0, 3.0))
    with torch.cuda.graph(graph):
        captured = si.entropy(x, bins=16, range=(-3.0, 3.0))
    x[:, 1] = torch.nan
    graph.replay()
    assert captured[1].isnan()
    assert captured[0].isfinite()


def test_cuda_graph_gives_nan_for_bad_probabilities() -> None:
    x = values()
    codes, p = si.discretize(x, bins=16, range=(-3.0, 3.0)), x[:, :8].softmax(1)
    si.mutual_information(codes, probabilities=p)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = si.mutual_information(codes, probabilities=p)
    p[3] = 0
    graph.replay()
    assert captured.isnan().all()


def test_cuda_graph_gives_nan_for_bad_labels() -> None:
    codes = si.discretize(values(), bins=16, range=(-3.0, 3.0))
    labels = codes.codes[0].long()
    calls = (
        lambda: si.mutual_information(codes, labels),
        lambda: si.conditional_mutual_information(codes, None, labels),
    )
    for call in calls:
        labels.clamp_min_(0)
        call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call()
        labels[3] = -1
        graph.replay()
        assert captured.isnan().all()


def test_cuda_stream_of_the_caller_is_used() -> None:
    """Work waits for what its own stream holds, and for nothing else's."""
    x, side = values(), torch.cuda.Stream()
    expected = si.discretize(x + 1, bins=16, range=(-4.0, 4.0)).codes
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late = x + 1
        codes = si.discretize(late, bins=16, range=(-4.0, 4.0), outliers="clip").codes
    side.synchronize()
    torch.testing.assert_close(codes, expected, rtol=0, atol=0)


def test_cuda_streams_overlap() -> None:
    """A graph's replay on one stream goes on while another stream sleeps."""
    x, side = values(), torch.cuda.Stream()
    si.entropy(x, bins=16, range=(-3.0, 3.0))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        si.entropy(x, bins=16, range=(-3.0, 3.0))
    slept, replayed = torch.cuda.Event(), torch.cuda.Event()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(500_000_000)
        slept.record()
    graph.replay()
    replayed.record()
    replayed.synchronize()
    assert not slept.query()
    torch.cuda.synchronize()


def test_cuda_device_guard() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    x = values()
    on_second = si.mutual_information(x.to("cuda:1"), bins=16, range=(-3.0, 3.0))
    assert on_second.device == torch.device("cuda:1")
    torch.testing.assert_close(
        on_second.cpu(), si.mutual_information(x, bins=16, range=(-3.0, 3.0)).cpu(), rtol=0, atol=0
    )


@pytest.mark.parametrize("argument", ["labels", "probabilities", "y", "z"])
def test_cuda_arguments_must_be_on_one_device(argument: str) -> None:
    codes = si.discretize(values(), bins=16, range=(-3.0, 3.0))
    elsewhere = si.Discretized(codes.codes.cpu(), 16)
    labels = elsewhere.codes[0].long()
    calls = {
        "labels": lambda: si.mutual_information(codes, labels),
        "probabilities": lambda: si.mutual_information(
            codes, probabilities=torch.full((4096, 4), 0.25)
        ),
        "y": lambda: si.mutual_information(codes, elsewhere),
        "z": lambda: si.conditional_mutual_information(codes, None, labels),
    }
    with pytest.raises(ValueError, match="device"):
        calls[argument]()
