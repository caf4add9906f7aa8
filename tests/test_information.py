"""The information functions: known answers, peers, and invariants."""

import math
from collections.abc import Callable
from typing import Any

import information_reference as reference
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from information_cases import ESTIMATORS
from inputs import normal
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score
from torch import Tensor

from simmim_ext import (
    Discretized,
    conditional_entropy,
    conditional_mutual_information,
    discretize,
    entropy,
    joint_entropy,
    mutual_information,
    predictive_information,
)
from simmim_ext.ops import _library

LN2 = math.log(2)


def codes(rows: Any, bins: int) -> Discretized:
    return Discretized(torch.tensor(rows, dtype=torch.uint8), bins)


# Known answers


def test_cover_and_thomas_2_2_1() -> None:
    """Example 2.2.1 of Elements of Information Theory, in bits; 32 samples show its p(x, y)."""
    joint = torch.tensor([[4, 2, 1, 1], [2, 4, 1, 1], [2, 2, 2, 2], [8, 0, 0, 0]])  # rows: y
    cells = torch.repeat_interleave(torch.arange(16), joint.flatten()).to(torch.uint8)[None]
    x, y = Discretized(cells % 4, 4), Discretized(cells // 4, 4)
    assert entropy(x, base=2).item() == 7 / 4
    assert entropy(y, base=2).item() == 2
    assert conditional_entropy(x, y, base=2).item() == 11 / 8
    assert conditional_entropy(y, x, base=2).item() == 13 / 8
    assert joint_entropy(x, y, base=2).item() == 27 / 8
    assert mutual_information(x, y, base=2).item() == 3 / 8


def test_xor_and_and() -> None:
    x, y = codes([[0, 0, 1, 1]], 2), codes([[0, 1, 0, 1]], 2)
    xor, both = codes([[0, 1, 1, 0]], 2), codes([[0, 0, 0, 1]], 2)
    assert mutual_information(x, xor).item() == 0
    assert conditional_mutual_information(x, xor, y).item() == pytest.approx(LN2, abs=1e-7)
    assert conditional_mutual_information(x, y, xor).item() == pytest.approx(LN2, abs=1e-7)
    expected = (2 * LN2 - 0.75 * math.log(3)) - LN2 / 2  # H(AND) - H(AND | x)
    assert mutual_information(x, both).item() == pytest.approx(expected, abs=1e-7)
    labels = torch.tensor([0, 1, 1, 0])
    assert conditional_mutual_information(x, labels, y).item() == pytest.approx(LN2, abs=1e-7)
    assert conditional_mutual_information(x, y, labels).item() == pytest.approx(LN2, abs=1e-7)


def test_agrees_with_scikit_learn() -> None:
    x, y = normal(3000, 4), normal(3000, 3, 1) + normal(3000, 4)[:, :3]
    labels = torch.randint(0, 10, (3000,), generator=torch.Generator().manual_seed(2))
    x_codes, y_codes = discretize(x, bins=16).codes.numpy(), discretize(y, bins=16).codes.numpy()
    matrix, by_label = mutual_information(x, y), mutual_information(x, labels)
    means = {"min": "min", "max": "max", "arithmetic": "arithmetic", "geometric": "geometric"}
    for i, a in enumerate(x_codes):
        assert by_label[i].item() == pytest.approx(mutual_info_score(a, labels), abs=1e-6)
        for j, b in enumerate(y_codes):
            assert matrix[i, j].item() == pytest.approx(mutual_info_score(a, b), abs=1e-6)
    for name, average in means.items():
        mine = mutual_information(x, y, normalized=name)[1, 2].item()
        theirs = normalized_mutual_info_score(x_codes[1], y_codes[2], average_method=average)
        assert mine == pytest.approx(theirs, abs=1e-6)


def test_predictive_information() -> None:
    certain = torch.full((4, 4), -torch.inf).fill_diagonal_(0)
    assert predictive_information(certain).item() == pytest.approx(math.log(4), abs=1e-7)
    assert predictive_information(certain, base=2).item() == 2
    assert predictive_information(normal(1, 5).expand(7, 5)).item() == pytest.approx(0, abs=1e-7)
    logits = 50 * normal(40_000, 10)
    assert predictive_information(logits).item() < math.log(10)
    shifted = logits + 1e4 * normal(40_000, 1)
    assert predictive_information(shifted.double()).item() == pytest.approx(
        predictive_information(logits).item(), abs=1e-3
    )


@pytest.mark.parametrize("spread", [3, 400])  # beyond 708 nats a class is out of the question
@pytest.mark.parametrize(("samples", "classes"), [(2, 1), (7, 3), (8, 2), (9, 17), (131, 5)])
def test_predictive_information_is_the_same_to_the_bit_on_every_cpu(
    samples: int, classes: int, spread: float, cpu_capability: str
) -> None:
    logits = spread * normal(samples, classes).double()
    logits[::3, 0] = -torch.inf if classes > 1 else 0
    found = predictive_information(logits)
    torch.testing.assert_close(found, reference.predictive_information(logits), rtol=0, atol=1e-7)
    _library._C.set_cpu_capability("portable")
    assert torch.equal(found, predictive_information(logits))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("sample", [0, 8, 130])
def test_predictive_information_names_the_first_bad_sample(
    sample: int, bad: float, cpu_capability: str
) -> None:
    logits = normal(131, 4)
    logits[sample:, slice(None) if bad < 0 else 2] = bad
    with pytest.raises(ValueError, match=rf"got NaN or infinity in sample {sample}$"):
        predictive_information(logits)


def test_soft_labels_that_are_certain_are_labels() -> None:
    x = normal(500, 5)
    labels = torch.randint(0, 7, (500,), generator=torch.Generator().manual_seed(1))
    onehot = torch.nn.functional.one_hot(labels, 7)
    for normalized in (None, "min", "geometric"):
        torch.testing.assert_close(
            mutual_information(x, probabilities=onehot.double(), normalized=normalized),
            mutual_information(x, labels, normalized=normalized), rtol=0, atol=1e-6,
        )  # fmt: skip


# Invariants


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("quantity", [joint_entropy, mutual_information])
def test_pairs_within_are_symmetric(quantity: Callable[..., Tensor], estimator: str) -> None:
    x = normal(700, 70)
    x[:, 3] = x[:, 2]
    x[torch.rand(x.shape) < 0.1] = torch.nan
    own = quantity(x, estimator=estimator, nan_policy="omit")
    assert torch.equal(own, own.t())
    assert torch.equal(own.diagonal(), entropy(x, estimator=estimator, nan_policy="omit"))
    across = quantity(x, x.clone(), estimator=estimator, nan_policy="omit")
    off_diagonal = ~torch.eye(70, dtype=torch.bool)
    assert torch.equal(own[off_diagonal], across[off_diagonal])


def test_swapping_x_and_y_transposes() -> None:
    x, y = normal(300, 5), normal(300, 4, 1)
    for estimator in ESTIMATORS:
        assert torch.equal(
            mutual_information(x, y, estimator=estimator),
            mutual_information(y, x, estimator=estimator).t(),
        )


@given(st.integers(2, 400), st.integers(2, 256), st.integers(2, 256), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_bounds(samples: int, x_bins: int, y_bins: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, x_bins, (3, samples), generator=generator).to(torch.uint8)
    y = torch.randint(0, y_bins, (2, samples), generator=generator).to(torch.uint8)
    y[0] = x[0].clamp(max=y_bins - 1)
    x, y = Discretized(x, x_bins), Discretized(y, y_bins)
    hx, hy, hxy = entropy(x)[:, None], entropy(y)[None], joint_entropy(x, y)
    information = mutual_information(x, y)
    slack = 2e-6
    assert (information >= 0).all()
    assert (information <= torch.minimum(hx, hy) + slack).all()
    assert (hxy <= hx + hy + slack).all()
    assert (hxy >= torch.maximum(hx, hy) - slack).all()
    torch.testing.assert_close(conditional_entropy(x, y), hxy - hy, rtol=0, atol=slack)


def test_chain_rule() -> None:
    """I(X; Y,Z) = I(X;Z) + I(X;Y|Z), with (Y,Z) coded as one variable."""
    generator = torch.Generator().manual_seed(0)
    x, y, z = torch.randint(0, 4, (3, 1, 900), generator=generator).to(torch.uint8)
    x = (x + y) % 4
    both = Discretized(y * 4 + z, 16)
    x, y, z = (Discretized(c, 4) for c in (x, y, z))
    torch.testing.assert_close(
        mutual_information(x, both),
        mutual_information(x, z) + conditional_mutual_information(x, y, z), rtol=0, atol=1e-6,
    )  # fmt: skip


def test_constant_features_have_exactly_nothing() -> None:
    x = normal(999, 4)
    x[:, 1] = 0.1
    y = normal(999, 3, 1)
    y[:, 2] = -7
    labels = torch.randint(0, 9, (999,), generator=torch.Generator().manual_seed(0))
    soft = normal(999, 9, 2).softmax(1)
    assert entropy(x)[1] == 0
    for matrix in (mutual_information(x, y), conditional_mutual_information(x, y, labels),
                   conditional_mutual_information(x, y, y[:, :1])):  # fmt: skip
        assert (matrix[1] == 0).all()
        assert (matrix[:, 2] == 0).all()
    assert mutual_information(x)[1].eq(0).all()
    assert mutual_information(x, labels)[1] == 0
    assert mutual_information(x, torch.zeros(999, dtype=torch.int64)).eq(0).all()
    assert mutual_information(x, probabilities=soft)[1] == 0
    assert conditional_mutual_information(x, labels, labels).eq(0).all()
    for normalized in ("min", "max", "arithmetic", "geometric"):
        assert mutual_information(x, y, normalized=normalized)[1].eq(0).all()


@pytest.mark.parametrize("normalized", ["min", "max", "arithmetic", "geometric"])
def test_what_rounding_leaves_of_no_entropy_divides_nothing(normalized) -> None:
    generator = torch.Generator().manual_seed(119)
    x = torch.rand(550, 4, generator=generator)[50:] * 2 - 1
    options = {"range": (-0.5, 0.5), "outliers": "drop", "normalized": normalized}
    assert mutual_information(x, probabilities=torch.ones(500, 1), **options).eq(0).all()


def test_order_of_samples_does_not_matter() -> None:
    x, y = normal(500, 4), normal(500, 3, 1)
    labels = torch.randint(0, 9, (500,), generator=torch.Generator().manual_seed(0))
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    calls = (
        lambda i, e: entropy(x[i], estimator=e),
        lambda i, e: mutual_information(x[i], y[i], estimator=e),
        lambda i, e: mutual_information(x[i], labels[i], estimator=e),
        lambda i, e: conditional_mutual_information(x[i], y[i], labels[i], estimator=e),
        lambda i, e: conditional_mutual_information(x[i], labels[i], y[i, :1], estimator=e),
    )
    for call in calls:
        for estimator in ESTIMATORS:
            assert torch.equal(call(slice(None), estimator), call(order, estimator))
