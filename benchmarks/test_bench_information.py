"""Entropies and information against pure PyTorch and the tools people would pick instead.

Answers are asserted before they are timed. Ratios compare medians taken in turn; the fraction of
the read bandwidth is against summing the same tensor, in the same turns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import baselines
import numpy as np
import pytest
import torch
from timing import interleaved, report, report_scaling

import simmim_ext as si
from simmim_ext.ops import _library

LOW, HIGH = -4.0, 4.0


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def activations(samples: int, features: int) -> torch.Tensor:
    torch.manual_seed(samples + features)
    mixing = torch.randn(features, features) / features**0.5
    return (torch.randn(samples, features) @ mixing).clamp_(LOW, HIGH)


@pytest.mark.parametrize("bins", [16, 64, 256])
@pytest.mark.parametrize("given", [True, False], ids=["range", "no range"])
def test_entropy(benchmark, bins, given) -> None:
    x = activations(65536, 512)
    bounds = (LOW, HIGH) if given else (None, None)
    keywords = {"bins": bins, "range": (LOW, HIGH) if given else None}
    rivals = {
        "ours": lambda: si.entropy(x, **keywords),
        "torch scatter_add": lambda: baselines.entropy(x, bins, *bounds),
    }
    torch.testing.assert_close(rivals["ours"](), rivals["torch scatter_add"](), rtol=0, atol=1e-5)
    if given:
        fast_histogram = pytest.importorskip("fast_histogram")
        columns = x.double().t().contiguous().numpy()

        def by_fast_histogram() -> list[np.ndarray]:
            return [fast_histogram.histogram1d(c, bins, (LOW, HIGH)) for c in columns]

        rivals["fast-histogram, contiguous columns"] = by_fast_histogram
    report(benchmark, rivals, elements=x.numel(), read=x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_entropy_dtype(benchmark, dtype) -> None:
    single = activations(65536, 512)
    x = single.to(dtype)
    rivals = {
        "ours": lambda: si.entropy(x, bins=16, range=(LOW, HIGH)),
        "ours in float32": lambda: si.entropy(single, bins=16, range=(LOW, HIGH)),
        "torch scatter_add": lambda: baselines.entropy(x.float(), 16, LOW, HIGH),
    }
    expected = baselines.entropy(x.to(torch.promote_types(dtype, torch.float32)), 16, LOW, HIGH)
    torch.testing.assert_close(rivals["ours"](), expected, rtol=0, atol=1e-5)
    report(benchmark, rivals, elements=x.numel())


def test_entropy_many_features(benchmark) -> None:
    x = activations(8192, 4096)
    rivals = {
        "ours": lambda: si.entropy(x, bins=16, range=(LOW, HIGH)),
        "torch scatter_add": lambda: baselines.entropy(x, 16, LOW, HIGH),
    }
    torch.testing.assert_close(rivals["ours"](), rivals["torch scatter_add"](), rtol=0, atol=1e-5)
    report(benchmark, rivals, elements=x.numel(), read=x)


def test_smallest_call(benchmark) -> None:
    x = torch.rand(64, 8)
    column = x[:, 0].contiguous()
    many = range(200)
    rivals = {
        "ours": lambda: [si.entropy(x, range=(0.0, 1.0)) for _ in many],
        "torch.histc of one column": lambda: [torch.histc(column, 16, 0, 1) for _ in many],
    }
    report(benchmark, rivals, elements=200)


def pairwise_rivals(bins: int) -> dict[str, Callable[[], torch.Tensor]]:
    """All 512 x 512 pairs, by us and by the better of torch's one-hot products, each checked."""
    x = activations(16384, 512)
    code = baselines.codes(x, bins, LOW, HIGH)
    binned = si.discretize(x, bins=bins, range=(LOW, HIGH))
    names = {torch.int8: "torch int8 one-hot", torch.float32: "torch fp32 one-hot"}
    few = {
        dtype: partial(baselines.pairwise_by_one_hot, code[:, :64], bins, dtype) for dtype in names
    }
    expected = baselines.pairwise_by_scatter(code[:, :8], code, bins)
    for call in few.values():
        torch.testing.assert_close(call()[:8], expected[:, :64], rtol=0, atol=2e-5)
    taken = interleaved({names[dtype]: call for dtype, call in few.items()}, rounds=3)
    dtype = min(names, key=lambda dtype: taken[names[dtype]])
    ours = partial(si.mutual_information, binned)
    torch.testing.assert_close(ours()[:8], expected, rtol=0, atol=2e-5)
    metrics = pytest.importorskip("sklearn.metrics")
    seen = metrics.mutual_info_score(code[:, 0].numpy(), code[:, 1].numpy())
    assert abs(ours()[0, 1] - seen) < 1e-5
    rival = partial(baselines.pairwise_by_one_hot, code, bins, dtype)
    return {"ours": ours, names[dtype]: rival}


@pytest.mark.parametrize("bins", [8, 16, 32])
def test_pairwise(benchmark, bins) -> None:
    report(benchmark, pairwise_rivals(bins), elements=512 * 512)


@pytest.mark.parametrize("capability", ["avx2", "portable"])
def test_pairwise_capability(benchmark, capability) -> None:
    before = _library.cpu_capability()
    _library._C.set_cpu_capability(capability)
    try:
        report(benchmark, pairwise_rivals(16), elements=512 * 512)
    finally:
        _library._C.set_cpu_capability(before)


def test_pairwise_many_features(benchmark) -> None:
    few, many = (
        si.discretize(activations(8192, f), bins=16, range=(LOW, HIGH)) for f in (512, 4096)
    )
    rivals = {
        "ours": lambda: si.mutual_information(many),
        "64 times 512 features": lambda: [si.mutual_information(few) for _ in range(64)],
    }
    torch.testing.assert_close(si.mutual_information(many)[0, 0], si.entropy(many)[0])
    report(benchmark, rivals, elements=4096 * 4096)


def test_labels(benchmark) -> None:
    x = activations(65536, 512)
    labels = torch.randint(10, (65536,))
    code = baselines.codes(x, 16, LOW, HIGH)
    rivals = {
        "ours": lambda: si.mutual_information(x, labels, bins=16, range=(LOW, HIGH)),
        "torch scatter_add": lambda: baselines.label_by_scatter(
            baselines.codes(x, 16, LOW, HIGH), labels, 16, 10
        ),
    }
    expected = baselines.label_by_scatter(code, labels, 16, 10)
    torch.testing.assert_close(rivals["ours"](), expected, rtol=0, atol=1e-5)
    report(benchmark, rivals, elements=x.numel(), read=x)


def test_soft_labels(benchmark) -> None:
    x, p = activations(16384, 512), torch.randn(16384, 10).mul(3).softmax(1)
    rivals = {
        "ours": lambda: si.mutual_information(x, probabilities=p, bins=16, range=(LOW, HIGH)),
        "torch one-hot matmul": lambda: baselines.soft_label_by_one_hot(
            baselines.codes(x, 16, LOW, HIGH), p, 16
        ),
    }
    torch.testing.assert_close(*(call() for call in rivals.values()), rtol=0, atol=1e-4)
    report(benchmark, rivals, elements=x.numel())


def test_conditional(benchmark) -> None:
    x, labels = activations(8192, 256), torch.randint(10, (8192,))
    code = baselines.codes(x, 8, LOW, HIGH)
    binned = si.discretize(x, bins=8, range=(LOW, HIGH))
    rivals = {
        "ours": lambda: si.conditional_mutual_information(binned, binned, labels),
        "torch scatter_add": lambda: baselines.conditional_by_scatter(code, labels, 8, 10),
    }
    torch.testing.assert_close(*(call() for call in rivals.values()), rtol=0, atol=1e-5)
    report(benchmark, rivals, elements=256 * 256)


@pytest.mark.parametrize(("samples", "classes"), [(65536, 10), (16384, 1000)])
def test_predictive(benchmark, samples, classes) -> None:
    logits = torch.randn(samples, classes).mul(3)
    rivals = {
        "ours": lambda: si.predictive_information(logits),
        "torch log_softmax": lambda: baselines.predictive_information(logits),
    }
    torch.testing.assert_close(*(call() for call in rivals.values()), rtol=0, atol=1e-5)
    report(benchmark, rivals, elements=logits.numel(), read=logits)


def test_permutations(benchmark) -> None:
    x, labels = activations(4096, 64), torch.randint(10, (4096,))
    code = baselines.codes(x, 16, LOW, HIGH)
    binned = si.discretize(x, bins=16, range=(LOW, HIGH))
    keywords = {"method": "permutation", "permutations": 200, "seed": 0}
    rivals = {
        "ours": lambda: si.independence_test(binned, labels, **keywords).p_value,
        "torch scatter_add": lambda: baselines.permutation_p_values(code, labels, 16, 10, 200, 0),
    }
    ours, theirs = (call() for call in rivals.values())  # whose float32 ties may break otherwise
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1.5 / 201)
    report(benchmark, rivals, elements=200 * 64)


@pytest.mark.parametrize("kind", ["uniform", "edges"])
def test_discretize(benchmark, kind) -> None:
    x = activations(65536, 512)
    edges = torch.linspace(LOW, HIGH, 17)
    bins = {"bins": 16, "range": (LOW, HIGH)} if kind == "uniform" else {"bins": edges}

    def by_torch() -> torch.Tensor:
        if kind == "uniform":
            code = baselines.codes(x, 16, LOW, HIGH)
        else:
            code = torch.bucketize(x, edges[1:-1].contiguous(), out_int32=True, right=True)
        return code.to(torch.uint8).t().contiguous()

    rivals = {
        "ours": lambda: si.discretize(x, **bins).codes,
        f"torch {'arithmetic' if kind == 'uniform' else 'bucketize'}": by_torch,
        "one read of x and one write of codes": lambda: (
            x.sum(),
            torch.full((512, 65536), 1, dtype=torch.uint8),
        ),
    }
    assert torch.equal(rivals["ours"](), by_torch())
    report(benchmark, rivals, elements=x.numel())


def test_quantile(benchmark) -> None:
    x = activations(1_000_000, 64)
    rivals = {
        "ours": lambda: si.discretize(x, bins=16, binning="quantile").codes,
        "torch.quantile + bucketize": lambda: baselines.quantile_codes(x, 16),
    }
    ours, theirs = (call() for call in rivals.values())  # which round their edges to float32
    assert (ours != theirs).sum() <= 15 * 64
    assert all((code.long().bincount() - 62_500).abs().max() <= 1 for code in ours)
    report(benchmark, rivals, elements=x.numel())


@pytest.mark.parametrize("work", ["entropy", "pairwise"])
def test_scaling(benchmark, work) -> None:
    """How a second thread speeds us up, against how it speeds up loops that nothing holds back."""
    x = activations(65536, 512)
    few = si.discretize(x[:16384, :256], bins=16, range=(LOW, HIGH))
    code = few.codes.t().long()
    calls = {
        "entropy": lambda: si.entropy(x, bins=16, range=(LOW, HIGH)),
        "pairwise": lambda: si.mutual_information(few),
    }
    torch.set_num_threads(2)
    if work == "entropy":
        torch.testing.assert_close(calls[work](), baselines.entropy(x, 16, LOW, HIGH))
    else:
        expected = baselines.pairwise_by_scatter(code[:, :8], code, 16)
        torch.testing.assert_close(calls[work]()[:8], expected, rtol=0, atol=2e-5)
    cached = torch.rand(1 << 17)
    out = torch.empty_like(cached)
    loops = {
        "a read": lambda: x.sum(),
        "arithmetic": lambda: [torch.lgamma(cached, out=out) for _ in range(8)],
    }
    report_scaling(benchmark, calls[work], loops)
