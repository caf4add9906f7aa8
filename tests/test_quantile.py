"""quantile_edges: the edges that sorting gives, to the bit, whatever way they are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from simmim_ext.ops.discretize import quantile_edges

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
FEW = 1 << 15  # so many samples are sorted at once; of more, digits are counted first


def reference(x: torch.Tensor, bins: int) -> torch.Tensor:
    """By sorting; of a column of finite values and others, the finite ones."""
    rows = []
    for column in x.double().numpy().T:
        values = np.sort(column[np.isfinite(column)])
        if len(values) == 0:
            rows.append(np.zeros(bins + 1))
            continue
        last = len(values) - 1
        places = np.arange(bins + 1) * last
        low, high = values[places // bins], values[np.minimum(places // bins + 1, last)]
        fraction = (places % bins) / bins
        with np.errstate(over="ignore", invalid="ignore"):
            width = high - low
            edges = np.where(
                np.isfinite(width),
                low + width * fraction,
                low * (1 - fraction) + high * fraction,
            )
        rows.append(edges.clip(low, high))
    return torch.from_numpy(np.array(rows))


def columns(samples: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Columns whose values differ in their first digits, in their last ones, or seldom."""
    normal = torch.randn(samples, generator=torch.Generator().manual_seed(seed)).double()
    step = torch.finfo(dtype).eps
    parts = [
        normal,
        normal.relu(),
        1 + (100 * normal).round() * step,  # equal but for the last bits
        normal.round(),
        torch.zeros_like(normal),
        torch.where(normal > 2, 1.0, -1.0),
        normal.sign() * 10 ** (3 * normal),
        normal * torch.finfo(dtype).tiny / 8,  # subnormal, and zeros of both signs
        torch.arange(samples, dtype=torch.float64),
    ]
    x = torch.stack(parts, 1).to(dtype)
    return torch.where(x.isfinite(), x, 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("samples", [1, 2, 3, 257, FEW, FEW + 1, 150_000])
def test_edges_are_those_of_sorted_columns(dtype, samples, cpu_capability) -> None:
    x = columns(samples, dtype)
    for bins in (2, 16, 256):
        assert torch.equal(quantile_edges(x, bins), reference(x, bins))


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 90), st.integers(1, 3)),
                  elements=st.floats(allow_nan=False, allow_infinity=False)),
       st.integers(2, 256), st.sampled_from(DTYPES))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_edges_of_any_values(array: np.ndarray, bins: int, dtype: torch.dtype) -> None:
    x = torch.from_numpy(array).to(dtype)
    x = torch.where(x.isfinite(), x, 0.0)
    assert torch.equal(quantile_edges(x, bins), reference(x, bins))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1,
                max_size=9),
       st.integers(FEW + 1, FEW + 3000), st.integers(2, 256))  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_edges_of_many_equal_values(values: list[float], samples: int, bins: int) -> None:
    x = torch.tensor(values).repeat(samples // len(values) + 1)[:samples, None]
    assert torch.equal(quantile_edges(x, bins), reference(x, bins))


@pytest.mark.parametrize("samples", [500, 3 * FEW])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_is_left_out(samples, dtype) -> None:
    x = columns(samples, dtype)
    x[::3, 0], x[::5, 0], x[::7, 0] = torch.nan, torch.inf, -torch.inf
    x[1:, 1], x[:, 2] = torch.nan, -torch.inf
    x[::2, 3] = -torch.nan
    expected = reference(x, 16)
    assert torch.equal(quantile_edges(x, 16, "omit", "drop"), expected)
    assert torch.equal(quantile_edges(x, 16, "omit", "clip"), expected)
    with pytest.raises(ValueError, match="x has infinity in feature 0; pass outliers='drop'"):
        quantile_edges(x, 16, "omit")
    with pytest.raises(ValueError, match="x has NaN in feature 0; pass nan_policy='omit'"):
        quantile_edges(x, 16, "raise", "drop")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_and_threads(dtype, threads) -> None:
    x = torch.randn(40_000, 37, generator=torch.Generator().manual_seed(1)).to(dtype)
    threads(1)
    expected = quantile_edges(x, 9)
    kept = x.clone()
    threads(3)
    assert torch.equal(quantile_edges(x, 9), expected)
    assert torch.equal(quantile_edges(x.t().contiguous().t(), 9), expected)
    assert torch.equal(quantile_edges(x[:, ::3], 9), expected[::3])
    assert torch.equal(quantile_edges(x[::2], 9), quantile_edges(x[::2].contiguous(), 9))
    assert torch.equal(quantile_edges(x[:, :1].expand(-1, 5), 9), expected[:1].expand(5, -1))
    assert torch.equal(x, kept)
