"""discretize and Discretized: bins, edges, policies, dtypes and strides."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import simmim_ext
from simmim_ext import Discretized, discretize
from simmim_ext.discretization import Binning

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bins", [2, 16, 256])  # whose edges float arithmetic meets exactly
def test_counts_are_numpys(dtype: torch.dtype, bins: int) -> None:
    x = (torch.randint(-512, 513, (400, 3), generator=torch.Generator().manual_seed(0)) / 512).to(
        dtype
    )
    result = discretize(x, bins=bins, range=(-1.0, 1.0))
    assert result.codes.shape == (3, 400)
    assert result.bins == bins
    for codes, column, edges in zip(result.codes, x.t(), result.edges, strict=True):
        expected, numpy_edges = np.histogram(column.double().numpy(), bins, (-1, 1))
        np.testing.assert_allclose(edges, numpy_edges, rtol=0, atol=1e-15)
        np.testing.assert_array_equal(codes.long().bincount(minlength=bins).numpy(), expected)


@given(hnp.arrays(np.float32, (40, 2), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
       st.integers(2, 256))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_codes_agree_with_edges(array: np.ndarray, bins: int) -> None:
    """Every value lies within the edges of its bin, but for rounding."""
    result = discretize(torch.from_numpy(array), bins=bins)
    for column, codes, edges in zip(
        array.T, result.codes.numpy(), result.edges.numpy(), strict=True
    ):
        width = edges[-1] - edges[0]
        assert (codes < bins).all()
        assert (column >= edges[codes] - 1e-5 * width).all()
        assert (column <= edges[codes.astype(int) + 1] + 1e-5 * width).all()


@given(hnp.arrays(np.float32, (60, 1), elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0, 3.0])),
       st.integers(2, 20))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_equal_values_share_a_quantile_bin(array: np.ndarray, bins: int) -> None:
    codes = discretize(torch.from_numpy(array), bins=bins, binning="quantile").codes[0].numpy()
    order = np.argsort(array[:, 0], kind="stable")
    for value in np.unique(array):
        assert len(set(codes[array[:, 0] == value])) == 1
    assert (np.diff(codes[order].astype(int)) >= 0).all()


def test_quantile_bins_hold_equally_many() -> None:
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    codes = discretize(x, bins=10, binning="quantile").codes
    for row in codes:
        assert row.long().bincount().tolist() == [100] * 10


def test_explicit_edges() -> None:
    x = torch.tensor([[0.0], [0.5], [1.0], [3.0], [10.0]])
    shared = discretize(x, bins=torch.tensor([0.0, 1.0, 3.0, 10.0]))
    assert shared.codes.tolist() == [[0, 0, 1, 2, 2]]
    own = discretize(x.repeat(1, 2), bins=torch.tensor([[0, 1, 3, 10], [0, 5, 6, 10]]))
    assert own.codes.tolist() == [[0, 0, 1, 2, 2], [0, 0, 0, 0, 2]]
    assert own.edges.tolist() == [[0, 1, 3, 10], [0, 5, 6, 10]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bins", [2, 16, 17, 100, 255])
def test_edges_as_doubles_compare(dtype, bins, cpu_capability) -> None:
    """Edges between two values of x's dtype, equal to one of them, and coinciding."""
    generator = torch.Generator().manual_seed(bins)
    x = torch.randn(131, 37, generator=generator).to(dtype)
    chosen = torch.randint(131, (37, bins + 1), generator=generator)
    edges = x.double().t().gather(1, chosen)
    nudge = torch.randint(-1, 2, edges.shape, generator=generator)
    edges = torch.where(nudge == 0, edges, edges.nextafter(nudge * torch.inf)).sort(1).values
    edges[::3, :2] = edges[::3, :1]
    edges[1::3, -2:] = edges[1::3, -1:]
    x[5, 0], x[6, 1], x[7, 2] = torch.nan, torch.inf, -torch.inf
    for outliers in ("drop", "clip"):
        options = {"bins": edges, "nan_policy": "omit", "outliers": outliers}
        codes = discretize(x, **options).codes
        for column, code, own in zip(x.double().t().contiguous(), codes, edges, strict=True):
            valid = (column >= own[0]) & (column <= own[-1])
            clipped = column if outliers == "drop" else column.clamp(own[0], own[-1])
            expected = torch.searchsorted(own[1:-1].contiguous(), clipped, right=True)
            expected[~valid if outliers == "drop" else column.isnan()] = 255
            assert torch.equal(code.long(), expected)
        counts = torch.stack([code.long().bincount(minlength=256)[:bins] for code in codes])
        for own in (x, x.t().contiguous().t()):
            assert torch.equal(discretize(own, **options).codes, codes)
            assert torch.equal(Binning("f", **options).histogram(own), counts)


@pytest.mark.parametrize("features", [1, 31, 33, 70])
@pytest.mark.parametrize("samples", [2, 63, 64, 65, 200])
def test_ragged_tiles(samples, features, cpu_capability) -> None:
    x = torch.randint(-9, 10, (samples, features), generator=torch.Generator().manual_seed(3)) / 4
    x[0, 0] = torch.nan
    expected = ((x + 2) * 2).floor().clamp(max=7)
    expected = expected.masked_fill((x < -2) | (x > 2) | x.isnan(), 255).t().to(torch.uint8)
    for own in (x, x.t().contiguous().t(), x.repeat(1, 2)[:, :features], x.double()):
        result = discretize(own, bins=8, range=(-2.0, 2.0), nan_policy="omit", outliers="drop")
        assert torch.equal(result.codes, expected)


def test_threads_share_the_samples(threads) -> None:
    x = torch.randn(300_000, 3, generator=torch.Generator().manual_seed(0))
    threads(1)
    expected = discretize(x, bins=16, range=(-9.0, 9.0)).codes
    threads(4)
    assert torch.equal(discretize(x, bins=16, range=(-9.0, 9.0)).codes, expected)
    with pytest.raises(ValueError, match=r"x must lie in range \[-1, 1\]"):
        discretize(x, bins=16, range=(-1.0, 1.0))


def test_range_by_feature() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    result = discretize(x, bins=4, range=(torch.tensor([0.0, -1.0]), torch.tensor([1.0, 3.0])))
    assert result.codes.tolist() == [[0, 3], [1, 2]]


def test_range_of_scalar_tensors() -> None:
    x, y = torch.rand(9, 2), 2 * torch.rand(9, 3)
    low, high = torch.tensor(0.0), torch.tensor(2.0)
    assert torch.equal(
        simmim_ext.mutual_information(x, y, range=(low, high)),
        simmim_ext.mutual_information(x, y, range=(0.0, 2.0)),
    )


def test_policies() -> None:
    x = torch.tensor([[0.0], [torch.nan], [2.0], [-torch.inf], [1.0]])
    options = {"bins": 2, "range": (0.0, 1.0), "nan_policy": "omit"}
    assert discretize(x, **options, outliers="drop").codes.tolist() == [[0, 255, 255, 255, 1]]
    assert discretize(x, **options, outliers="clip").codes.tolist() == [[0, 255, 1, 0, 1]]
    own = discretize(x, bins=2, nan_policy="omit", outliers="drop")  # the finite 0, 2 and 1
    assert own.codes.tolist() == [[0, 255, 1, 255, 1]]
    quantile = discretize(x, bins=2, binning="quantile", nan_policy="omit", outliers="clip")
    assert quantile.codes.tolist() == [[0, 255, 1, 0, 1]]


def test_strides_and_smallest_shape() -> None:
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    expected = discretize(x[::3, 1::2].contiguous(), bins=9)
    assert torch.equal(discretize(x[::3, 1::2], bins=9).codes, expected.codes)
    transposed = x[::3, 1::2].t().contiguous().t()
    assert torch.equal(discretize(transposed, bins=9).codes, expected.codes)
    expanded = discretize(torch.randn(7, 1).expand(7, 3), bins=9).codes
    assert torch.equal(expanded[0], expanded[2])
    assert discretize(torch.tensor([[3.0], [4.0]]), bins=2).codes.tolist() == [[0, 1]]


def test_constant_and_extreme_features() -> None:
    assert discretize(torch.full((3, 1), 7.0), bins=4).codes.tolist() == [[0, 0, 0]]
    huge = torch.tensor([[-3e38], [0.0], [3e38]])
    assert discretize(huge, bins=4).codes.tolist() == [[0, 2, 3]]
    tiny = torch.tensor([[0.0], [1e-45], [4e-45]])
    assert discretize(tiny, bins=2).codes.tolist() == [[0, 0, 1]]


def test_no_gradient_flows() -> None:
    x = torch.randn(9, 2, requires_grad=True)
    for binning in ("uniform", "quantile"):
        result = discretize(x, bins=4, binning=binning)
        assert not result.edges.requires_grad
    assert not simmim_ext.mutual_information(x).requires_grad
    assert not simmim_ext.predictive_information(x).requires_grad


X = torch.linspace(0, 1, 18).view(9, 2)
BAD = [
    (lambda: discretize(X, bins=1), ValueError,
     "discretize: bins must be between 2 and 256, got 1"),
    (lambda: discretize(X, bins=257), ValueError,
     "discretize: bins must be between 2 and 256, got 257"),
    (lambda: discretize(X, bins=2.5), TypeError,
     "discretize: bins must be an int, or a tensor of edges, got float"),
    (lambda: discretize(X, bins=256, outliers="drop"), ValueError,
     "discretize: bins must be at most 255 where nan_policy is 'omit' or outliers is 'drop'"),
    (lambda: discretize(X, bins=torch.zeros(2, 2, 2)), ValueError,
     "discretize: bins given as edges must have shape [bins + 1] or [features, bins + 1], got "
     "[2, 2, 2]"),
    (lambda: discretize(X, bins=torch.tensor([0.0, 2.0, 1.0])), ValueError,
     "discretize: bins given as edges must ascend"),
    (lambda: discretize(X, bins=torch.tensor([0.0, torch.nan, 1.0])), ValueError,
     "discretize: bins given as edges must be finite"),
    (lambda: discretize(X, bins=torch.rand(3, 4)), ValueError,
     "discretize: bins given as edges must have shape [bins + 1] or [features, bins + 1] with "
     "features = 2, got [3, 4]"),
    (lambda: discretize(X, bins=torch.tensor([0.0, 2.0, 3.0]), range=(0.0, 1.0)), ValueError,
     "discretize: range must be None where bins are edges"),
    (lambda: discretize(X, bins=4, range=(0.0, 1.0), binning="quantile"), ValueError,
     "discretize: range must be None where binning is 'quantile'"),
    (lambda: discretize(X, bins=torch.tensor([0.0, 2.0, 3.0]), binning="quantile"), ValueError,
     "discretize: bins must be an int where binning is 'quantile'"),
    (lambda: discretize(X, bins=4, range=(1.0, 0.0)), ValueError,
     "discretize: range must be finite with low <= high in every feature, got (1, 0) in feature 0"),
    (lambda: discretize(X, bins=4, range=(0.0, torch.inf)), ValueError,
     "discretize: range must be finite with low <= high in every feature, got (0, inf)"),
    (lambda: discretize(X, bins=4, range=(0.0, 1e39)), ValueError,
     "discretize: range must be finite with low <= high in every feature, got (0, inf) in feature 0"
     "; x is binned in float32, which ends at 3.4e38"),
    (lambda: discretize(X, bins=4, range=(0.0, 10**400)), ValueError,
     "discretize: range must be within 1.8e308, got an int beyond"),
    (lambda: discretize(X, bins=4, range=(0.0, torch.ones(2))), TypeError,
     "discretize: range must be (low, high), two floats or two tensors, or None, got (float, "
     "Tensor)"),
    (lambda: discretize(X, bins=4, range=X.numpy()), TypeError,
     "discretize: range must be (low, high), two floats or two tensors, or None, got ndarray"),
    (lambda: discretize(X, bins=4, range=(torch.zeros(2), torch.tensor(1.0))), ValueError,
     "discretize: range given as tensors must have one shape, got [2] and []"),
    (lambda: discretize(X, bins=4, range=(torch.zeros(3), torch.ones(3))), ValueError,
     "discretize: range given as tensors must have shape [features] = [2], got [3]"),
    (lambda: discretize(X, bins=4, range=0.5), TypeError,
     "discretize: range must be (low, high), two floats or two tensors, or None, got 0.5"),
    (lambda: discretize(X, bins=4, range=(0.0, 0.5)), ValueError,
     "discretize: x must lie in range [0, 0.5], got "),
    (lambda: discretize(X, bins=4, binning="log"), ValueError,
     "discretize: binning must be one of 'uniform', 'quantile', got 'log'"),
    (lambda: discretize(X, bins=4, nan_policy="keep"), ValueError,
     "discretize: nan_policy must be one of 'raise', 'omit', got 'keep'"),
    (lambda: discretize(X, bins=4, outliers="keep"), ValueError,
     "discretize: outliers must be one of 'raise', 'drop', 'clip', got 'keep'"),
    (lambda: discretize(X.int(), bins=4), TypeError,
     "discretize: x must be float16, bfloat16, float32 or float64, got torch.int32; wrap integer "
     "codes as Discretized(codes, bins), codes [features, samples] uint8"),
    (lambda: discretize(X.to(torch.complex64), bins=4), TypeError,
     "discretize: x must be float16, bfloat16, float32 or float64, got torch.complex64"),
    (lambda: discretize(X.numpy(), bins=4), TypeError,
     "discretize: x must be a tensor, got ndarray; give torch.from_numpy(numpy.asarray(x))"),
    (lambda: discretize(X[0], bins=4), ValueError,
     "discretize: x must have shape [samples, features], got [2]; one feature is x[:, None]"),
    (lambda: discretize(X[:0], bins=4), ValueError,
     "discretize: x must have at least 1 sample where range is None, got [0, 2]"),
    (lambda: discretize(Discretized(torch.zeros(2, 3, dtype=torch.uint8), 4), bins=4), TypeError,
     "discretize: x must be a tensor, got Discretized"),
    (lambda: Discretized(torch.zeros(2, 3), 4), TypeError,
     "Discretized: codes must be a uint8 tensor, got torch.float32"),
    (lambda: Discretized([[1]], 4), TypeError,
     "Discretized: codes must be a uint8 tensor, got list"),
    (lambda: Discretized(torch.zeros(3, dtype=torch.uint8), 4), ValueError,
     "Discretized: codes must have shape [features, samples], got [3]"),
    (lambda: Discretized(torch.zeros(2, 3, dtype=torch.uint8), 1), ValueError,
     "Discretized: bins must be between 2 and 256, got 1"),
    (lambda: Discretized(torch.zeros(2, 3, dtype=torch.uint8), 4, torch.zeros(2, 4)), ValueError,
     "Discretized: edges must have shape [features, bins + 1] = [2, 5], got [2, 4]"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), BAD, ids=[text for _, _, text in BAD])
def test_bad_input(call, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match="^" + re.escape(text)):
        call()
