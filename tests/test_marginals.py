"""Marginal counts where the fast ways of counting end: at values out of range, and at edges."""

import re

import pytest
import torch
from inputs import normal
from torch import Tensor

from simmim_ext import Discretized, discretize, entropy, mutual_information
from simmim_ext.ops.histogram import histogram


def counts_of(x: Tensor, bins: int, low: Tensor, high: Tensor) -> Tensor:
    """The rule of binning.h, one float32 operation after another; outside counts nowhere."""
    values = x.float()
    width = high - low
    scale = torch.where(width == 0, torch.zeros(()), bins / width)
    inside = (values >= low) & (values <= high)
    position = torch.where(inside, (values - low) * scale, torch.zeros(()))
    codes = position.int().clamp_max(bins - 1).masked_fill(~inside, bins)
    return torch.stack([c.long().bincount(minlength=bins + 1)[:bins] for c in codes.t()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bins", [2, 16, 17, 32, 33, 64, 65, 256])
@pytest.mark.parametrize("rare", [0.0, 1e-5, 0.2])
def test_values_out_of_range_count_nowhere(
    dtype: torch.dtype, bins: int, rare: float, cpu_capability: str
) -> None:
    generator = torch.Generator().manual_seed(bins)
    x = torch.randn(9000, 70, generator=generator).clamp_(-2, 2).to(dtype)
    low, high = torch.full((70,), -2.0), torch.full((70,), 2.0)
    x[:, 5] = torch.where(x[:, 5] > 0, x[:, 5], -0.0)  # -0 is not below 0
    low[5] = 0.0
    x[:, 6], low[6], high[6] = 1.0, 1.0, 1.0
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 2.5, -2.5, -7e4]).to(dtype)
    gone = torch.rand(x.shape, generator=generator) < rare
    picked = odd[torch.randint(len(odd), x.shape, generator=generator)]
    x = torch.where(gone, picked, x)
    counts = histogram(x, bins, low, high, None, "omit", "drop")
    assert torch.equal(counts, counts_of(x, bins, low, high))


@pytest.mark.parametrize("bins", [16, 64, 256])
def test_outside_by_less_than_a_bin_shows(bins: int, cpu_capability: str) -> None:
    """A value just above high, or below low by what a product with the scale rounds to 0."""
    tiny, huge = 1e-45, 3e38
    for low, high, outside in (
        (-1.0, 0.0, tiny), (0.0, 1.0, -tiny), (0.0, huge, -tiny), (1.0, 1.0, 1 + 2**-23),
        (1.0, 1.0, 1 - 2**-24),
    ):  # fmt: skip
        x = torch.full((64, 64), low)
        assert entropy(x, bins=bins, range=(low, high)).eq(0).all()
        x[63, 63] = outside
        with pytest.raises(ValueError, match="entropy: x must lie in range .* in feature 63"):
            entropy(x, bins=bins, range=(low, high))
        kept = histogram(
            x, bins, torch.full((64,), low), torch.full((64,), high), None, "omit", "drop"
        )
        assert kept.sum(1).tolist() == [64] * 63 + [63]


@pytest.mark.parametrize("row_bytes", [2048, 2176, 2688, 2752, 4096, 8192, 16384, 16448])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
def test_all_samples_in_one_bin(row_bytes: int, dtype: torch.dtype, cpu_capability: str) -> None:
    """Tiles have more or fewer rows by the width of x, and carries are put away in time in all."""
    features = row_bytes // dtype.itemsize
    bounds = () if dtype == torch.uint8 else (torch.zeros(features), torch.ones(features))
    labels = torch.arange(3000) % 2
    for samples in (257, 770, 3000):
        x = torch.zeros(samples, features, dtype=dtype)
        x[::300] = 1
        first = x[:, :1].float()
        ones = len(range(0, samples, 300))
        expected = torch.tensor([samples - ones] + [0] * 15)
        expected[1 if dtype == torch.uint8 else 15] = ones
        assert histogram(x, 16, *bounds).eq(expected).all()
        if dtype == torch.uint8:
            found = mutual_information(Discretized(x.t(), 16), labels[:samples])
        else:
            found = mutual_information(x, labels[:samples], bins=16, range=(0.0, 1.0))
        alone = mutual_information(first, labels[:samples], bins=16, range=(0.0, 1.0))
        assert found.eq(alone).all()


@pytest.mark.parametrize("seed", range(12))
def test_wide_and_mostly_equal(seed: int, cpu_capability: str) -> None:
    """As behind a ReLU: most samples of many features are in one bin."""
    generator = torch.Generator().manual_seed(seed)
    samples = int(torch.randint(250, 1500, (), generator=generator))
    features = int(
        torch.randint(*((500, 700) if seed < 8 else (700, 1500)), (), generator=generator)
    )
    x = (torch.randn(samples, features, generator=generator) - seed % 3).relu()
    x[:, ::5] = 1.0
    bins = (2, 8, 16, 17, 64, 256)[seed % 6]
    low, high = torch.zeros(features), torch.full((features,), 4.0)
    counts = histogram(x, bins, low, high, None, "raise", "clip")
    assert torch.equal(counts, counts_of(x.clamp(max=4.0), bins, low, high))


@pytest.mark.parametrize("features", [1, 7, 31, 33, 500, 4097])
def test_widths_that_fill_no_vector(features: int, cpu_capability: str) -> None:
    x = torch.rand(130, features + 3, generator=torch.Generator().manual_seed(0))
    low, high = torch.zeros(features), torch.ones(features)
    for view in (x[:, :features], x[:, 3:], x[:, 3:].contiguous(), x[::2, 2 : features + 2]):
        for given in (view, view.bfloat16(), view.t().contiguous().t()):
            for bins in (16, 40, 100):
                counts = histogram(given, bins, low, high)
                assert torch.equal(counts, counts_of(given, bins, low, high))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("samples", [511, 512, 513, 1024])
def test_the_range_of_a_few_long_columns(samples: int, dtype: torch.dtype, cpu_capability) -> None:
    """Columns that lie one after the other are read as rows of 512, of which none may be left."""
    x = normal(samples, 3).to(dtype).t().contiguous().t()
    assert x.stride() == (1, samples)
    for call in (entropy, lambda x: discretize(x, bins=7).codes.double()):
        assert torch.equal(call(x), call(x.contiguous()))


@pytest.mark.parametrize("edges", ["shared", "of each feature"])
@pytest.mark.parametrize(
    ("values", "low", "high", "text"),
    [
        ([0.0, 0.07, 0.1], 0.0, 0.1, "must lie in range [0, 0.1], got 0.10000000149011612 in"),
        ([0.7, 0.8], 0.7, 1.0, "must lie in range [0.7, 1], got 0.69999998807907104 in feature 1"),
        ([0.7, 1.5], 0.5, 1.0, "must lie in range [0.5, 1], got 1.5 in feature 1"),
    ],
)
def test_what_is_outside_by_less_than_a_float32_can_tell(values, low, high, text, edges) -> None:
    x = torch.tensor(values)[:, None].expand(-1, 2).clone()
    x[:, 0] = 0.75 * low + 0.25 * high
    bins = torch.linspace(low, high, 3, dtype=torch.float64)
    if edges != "shared":
        bins = bins.expand(2, -1)
    with pytest.raises(ValueError, match=re.escape(text)):
        discretize(x, bins=bins)
    kept = discretize(x, bins=bins, outliers="drop").codes
    assert (kept == 255).sum() == 1


def test_half_precision_outside_of_a_range() -> None:
    x = torch.tensor([[0.0], [0.1]], dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"range \[0, 0.1\], got 0.100098"):
        discretize(x, bins=2, range=(0.0, 0.1))
