"""Estimators against published values, scipy, and what theory says of them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from information_cases import ESTIMATORS
from information_reference import estimate
from scipy.stats import entropy as scipy_entropy
from scipy.stats import norm

import simmim_ext
from simmim_ext import Discretized
from simmim_ext.ops.entropy import entropy

# The counts in the documentation of R's package entropy (Hausser and Strimmer), and its results.
R_COUNTS = [4, 2, 3, 0, 2, 4, 0, 0, 2, 1, 1]
R_RESULTS = {
    "plugin": 1.968382408728,
    "miller_madow": 1.968382408728 + 7 / (2 * 19),
    "chao_shen": 2.201137101279,
    "shrink": 2.379602895309,
}


@pytest.mark.parametrize("estimator", R_RESULTS)
def test_agrees_with_r(estimator: str) -> None:
    result = entropy(torch.tensor(R_COUNTS), estimator)
    assert result.item() == pytest.approx(R_RESULTS[estimator], abs=1e-6)
    codes = torch.repeat_interleave(torch.arange(11, dtype=torch.uint8), torch.tensor(R_COUNTS))
    through_codes = simmim_ext.entropy(Discretized(codes[None], 11), estimator=estimator)
    assert through_codes.item() == result.item()


def test_chao_shen_of_singletons_agrees_with_r() -> None:
    assert entropy(torch.ones(6, dtype=torch.int64), "chao_shen").item() == pytest.approx(
        3.840549310406, abs=1e-6
    )


def test_grassberger_of_small_counts() -> None:
    """G(1) = -gamma - ln 2 and G(2) = 2 - gamma - ln 2, by hand."""
    gamma = 0.5772156649015329
    expected = math.log(3) - (1 * (-gamma - math.log(2)) + 2 * (2 - gamma - math.log(2))) / 3
    assert entropy(torch.tensor([1, 2]), "grassberger").item() == pytest.approx(expected, abs=1e-6)


def test_grassberger_where_its_series_takes_over() -> None:
    counts = np.arange(30, 60)
    for count in counts:  # one cell: ln N - G(N), which the reference takes from digamma
        mine = entropy(torch.tensor([count, 0]), "grassberger").item()
        assert mine == pytest.approx(estimate(np.array([count, 0]), "grassberger"), abs=1e-6)


@given(st.lists(st.integers(0, 2000), min_size=2, max_size=300), st.sampled_from(ESTIMATORS))
@settings(max_examples=200, deadline=None)
def test_agrees_with_reference(counts: list[int], estimator: str) -> None:
    if sum(counts) < 2:
        counts[0] += 2
    mine = entropy(torch.tensor(counts), estimator).item()
    assert mine == pytest.approx(estimate(np.array(counts), estimator), abs=1e-5)
    if estimator == "plugin":
        assert mine == pytest.approx(scipy_entropy(counts), abs=1e-5)
        assert -1e-7 <= mine <= math.log(len(counts)) + 1e-6


@given(st.lists(st.integers(0, 50), min_size=2, max_size=64), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_order_of_cells_does_not_matter(counts: list[int], random) -> None:
    counts[0] += 2
    shuffled = list(counts)
    random.shuffle(shuffled)
    for estimator in ESTIMATORS:
        a, b = (entropy(torch.tensor(c), estimator) for c in (counts, shuffled))
        assert torch.equal(a, b)


def test_one_cell_has_no_entropy() -> None:
    for estimator in ("plugin", "miller_madow", "chao_shen", "shrink"):
        for n in (2, 3, 1000, 12345, 2**40 + 1):
            assert entropy(torch.tensor([0, n, 0]), estimator).item() == 0


def test_base() -> None:
    counts = torch.tensor([1, 1, 2, 4])
    assert entropy(counts, "plugin", 2.0).item() == 1.75
    assert entropy(counts, "plugin", 10.0).item() == pytest.approx(1.75 * math.log10(2), abs=1e-6)


def test_corrections_reduce_the_bias() -> None:
    """True entropy ln 64 from 128 samples, mean over 200 draws."""
    draws = np.random.default_rng(0).multinomial(128, np.full(64, 1 / 64), size=200)
    error = {e: abs(entropy(torch.from_numpy(draws), e).mean().item() - math.log(64))
             for e in ESTIMATORS}  # fmt: skip
    assert error["plugin"] > 0.2
    for estimator in ESTIMATORS[1:]:
        assert error[estimator] < error["plugin"] / 2


def test_gaussian_entropy() -> None:
    """H of a finely binned Gaussian sample is 1/2 ln(2 pi e) - ln(width)."""
    x = torch.from_numpy(norm.ppf((np.arange(400_000) + 0.5) / 400_000))[:, None]
    expected = 0.5 * math.log(2 * math.pi * math.e) - math.log(12 / 240)
    measured = simmim_ext.entropy(x, bins=240, range=(-6.0, 6.0)).item()
    assert measured == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_gaussian_information(rho: float) -> None:
    """I of two correlated Gaussians is -1/2 ln(1 - rho^2), with Miller and Madow's correction."""
    a, b = np.random.default_rng(1).standard_normal((2, 400_000))
    x = torch.from_numpy(np.stack([a, rho * a + math.sqrt(1 - rho**2) * b], 1))
    matrix = simmim_ext.mutual_information(x, bins=128, range=(-6.0, 6.0), estimator="miller_madow")
    assert matrix[0, 1].item() == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.01)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("samples", [0, 1])
def test_no_features_share_nothing_given_few_samples(estimator: str, samples: int) -> None:
    """Nor is the entropy of so few samples asked for, which may be none."""
    none = Discretized(torch.empty(0, samples, dtype=torch.uint8), 4)
    labels = torch.zeros(samples, dtype=torch.int64)
    options = {"z": labels, "estimator": estimator}
    given_z = simmim_ext.conditional_mutual_information
    assert given_z(none, none, **options).shape == (0, 0)
    assert given_z(none, labels, **options).shape == (0,)
    one = Discretized(torch.zeros(1, samples, dtype=torch.uint8), 4)
    for x, y, name in ((none, one, "y"), (one, none, "x"), (one, labels, "x")):
        text = f"{name} must have at least 2 valid samples in every feature, got {samples}"
        with pytest.raises(ValueError, match=text):
            given_z(x, y, **options)
